//! `./dev demo`.

use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Parser;
use culvert_proto::sa::Cipher;
use culvert_tests::demo::{self, Keys, Options};
use culvert_tests::lab::Plan;
use culvert_tests::netns;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// Two hypervisors as network namespaces, Geneve between them: first in clear, then sealed by Culvert.
/// Ends with 0 if traffic flowed sealed, no ping was lost, and nothing was in clear.
#[derive(Parser)]
#[command(name = "./dev demo")]
struct Arguments {
    /// Print the result as JSON, and nothing else on standard output
    #[arg(long)]
    json: bool,
    /// Length of each iperf3 run
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Leave everything standing, and say how to look at it
    #[arg(long)]
    keep: bool,
    /// Cipher of the SAs
    #[arg(long, default_value = "aes256gcm16", value_parser = cipher)]
    cipher: Cipher,
    /// Tunnels over IPv6
    #[arg(long)]
    ipv6: bool,
    /// Where the keys come from
    #[arg(long, value_enum, default_value_t = Keys::File)]
    keys: Keys,
    /// Remove what earlier demos and tests left, also what was kept, and end
    #[arg(long)]
    clean: bool,
}

fn cipher(name: &str) -> Result<Cipher, String> {
    Cipher::from_name(name).map_err(|error| error.to_string())
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            eprintln!("demo: not as it should be, see above");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("demo: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> Result<bool> {
    if arguments.clean {
        let count = netns::sweep(true)?;
        eprintln!("removed {count} labs");
        return Ok(true);
    }
    if arguments.keys == Keys::Ovs && arguments.cipher != Cipher::Aes256Gcm16 {
        bail!("--cipher is ovs-monitor-ipsec's to choose, and it chooses aes256gcm16");
    }
    clean_on_signal()?;
    let options = Options {
        plan: Plan {
            ipv6: arguments.ipv6,
            cipher: arguments.cipher,
            keep: arguments.keep,
            ..Plan::default()
        },
        keys: arguments.keys,
        seconds: arguments.seconds,
    };
    let (report, stage) = demo::run(options, |what| eprintln!("… {what}"))?;
    if arguments.json {
        println!("{}", serde_json::to_string_pretty(&report)?);
    } else {
        println!("\n{report}");
    }
    if arguments.keep {
        eprint!("{}", demo::hints(stage.lab()));
    }
    Ok(report.good())
}

/// ^C removes the lab at once.
fn clean_on_signal() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            eprintln!("demo: ending, and removing the lab");
            netns::remove_own();
            std::process::exit(128 + signal);
        }
    });
    Ok(())
}

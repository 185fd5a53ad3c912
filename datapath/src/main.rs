//! `culvert-datapath`: seals and opens the Geneve traffic of this host.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use culvert_datapath::{daemon, settings};
use culvert_proto::RUN_DIRECTORY;

/// Seals and opens this host's Geneve traffic with ESP, in userspace. It is told what to do by
/// culvert-keymgr, and asked how it is by `culvert status`.
#[derive(Parser)]
#[command(name = "culvert-datapath", version)]
struct Arguments {
    /// Settings file; it needs at least `wire = "NIC"`
    #[arg(long, value_name = "FILE", default_value = settings::PATH)]
    config: PathBuf,
    /// Where the control socket and the lock are
    #[arg(long, value_name = "DIR", default_value = RUN_DIRECTORY)]
    run_dir: PathBuf,
    /// Check the settings and end
    #[arg(long)]
    check: bool,
    /// Remove the eBPF programs and the host port that stay when the datapath ends. From then on,
    /// Geneve leaves in clear!
    #[arg(long, conflicts_with = "check")]
    remove: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert-datapath: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let settings = settings::Settings::load(&arguments.config)?;
    if arguments.check {
        println!("{}: good", arguments.config.display());
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("needs root, for AF_XDP and eBPF");
    }
    if arguments.remove {
        daemon::remove(&settings, &arguments.run_dir)
    } else {
        daemon::run(&settings, &arguments.run_dir)
    }
}

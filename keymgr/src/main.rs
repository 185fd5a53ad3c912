//! `culvert-keymgr`: gives the datapath its SAs and policies.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use culvert_keymgr::{config, daemon, used_keys};
use culvert_proto::RUN_DIRECTORY;

/// Gives culvert-datapath its SAs and policies, and keeps the state that must outlive it. SIGHUP and
/// `culvert reload` read the file again.
#[derive(Parser)]
#[command(name = "culvert-keymgr", version)]
struct Arguments {
    /// File of SAs and policies
    #[arg(long, value_name = "FILE", default_value = config::PATH)]
    config: PathBuf,
    /// Where the control sockets and the SA state are; must be cleared by a reboot
    #[arg(long, value_name = "DIR", default_value = RUN_DIRECTORY)]
    run_dir: PathBuf,
    /// Where the list of used keys is; must survive a reboot
    #[arg(long, value_name = "DIR", default_value = used_keys::STATE_DIRECTORY)]
    state_dir: PathBuf,
    /// Check the file and end
    #[arg(long)]
    check: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        // As compilers have it, so that editors find the line.
        Err(error) if error.is::<config::Problems>() => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("culvert-keymgr: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    if arguments.check {
        let config = daemon::check(&arguments.config)?;
        println!(
            "{}: good; SAs: {}, policies: {}",
            arguments.config.display(),
            config.sas.len(),
            config.policies.len()
        );
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("needs root: its sockets and its state are root's");
    }
    daemon::run(daemon::Paths {
        config: arguments.config,
        run: arguments.run_dir,
        state: arguments.state_dir,
    })
}

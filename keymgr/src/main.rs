//! `culvert-keymgr`: gives the datapath its SAs and policies.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use culvert_keymgr::{config, daemon, used_keys};
use culvert_proto::RUN_DIRECTORY;

/// Gives culvert-datapath its SAs and policies, from a file and from strongSwan, and keeps the state that must
/// outlive it. SIGHUP and `culvert reload` read the file again.
#[derive(Parser)]
#[command(name = "culvert-keymgr", version)]
struct Arguments {
    /// File of static SAs and policies; if none is named, /etc/culvert/keymgr.toml, which may be missing
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the control sockets and the SA state are; must be cleared by a reboot
    #[arg(long, value_name = "DIR", default_value = RUN_DIRECTORY)]
    run_dir: PathBuf,
    /// Where the list of used keys is; must survive a reboot
    #[arg(long, value_name = "DIR", default_value = used_keys::STATE_DIRECTORY)]
    state_dir: PathBuf,
    /// Where strongSwan's plugin finds us
    #[arg(long, value_name = "SOCKET", default_value = culvert_bridge::SOCKET)]
    bridge: PathBuf,
    /// Where the datapath pins its eBPF maps: `pins` of its settings
    #[arg(long, value_name = "DIR", default_value = "/sys/fs/bpf/culvert")]
    pins: PathBuf,
    /// Check the file and end
    #[arg(long)]
    check: bool,
    /// Remove what stays when the key manager ends: its SAs and policies in the kernel, and the list of peers that
    /// strongSwan has protected. From then on, what the kernel protected leaves in clear!
    #[arg(long, conflicts_with = "check")]
    remove: bool,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    env_logger::Builder::from_env(env_logger::Env::default().default_filter_or("info")).init();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match error.downcast_ref::<config::Problems>() {
                // As compilers have it, so that editors find the line.
                Some(problems) => eprintln!("{problems}"),
                None => eprintln!("culvert-keymgr: {error:#}"),
            }
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config_may_be_missing = arguments.config.is_none();
    let path = arguments.config.unwrap_or_else(|| config::PATH.into());
    if arguments.check {
        let config = daemon::check(&path)?;
        println!(
            "{}: good; SAs: {}, policies: {}",
            path.display(),
            config.sas.len(),
            config.policies.len()
        );
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        anyhow::bail!("needs root: its sockets and its state are root's");
    }
    let paths = daemon::Paths {
        config: path,
        config_may_be_missing,
        bridge: arguments.bridge,
        pins: arguments.pins,
        run: arguments.run_dir,
        state: arguments.state_dir,
    };
    if arguments.remove {
        daemon::remove(&paths)
    } else {
        daemon::run(paths)
    }
}

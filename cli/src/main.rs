//! `culvert`: what runs, whether it runs well, and what to do if not.
//!
//! Each command has a module; [`ask`] talks to the daemons, [`table`] lays out. Everything that people read has a
//! `--json` twin for programs, on stdout alone. Exit codes: 0 good, 1 not, 2 wrong usage.

mod ask;
mod bench;
mod doctor;
mod down;
mod handover;
mod pcap;
mod release;
mod reload;
mod status;
mod table;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use culvert_proto::RUN_DIRECTORY;

/// Looks after Culvert, which seals and opens this host's Geneve traffic with IPsec ESP.
#[derive(Parser)]
#[command(name = "culvert", version)]
struct Arguments {
    /// Where the daemons' control sockets are
    #[arg(long, value_name = "DIR", default_value = RUN_DIRECTORY, global = true)]
    run_dir: PathBuf,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Show ports, workers, who protects what, SAs and drops
    Status(status::Arguments),
    /// Let the key manager read its sources of keys again
    Reload(reload::Arguments),
    /// Let Geneve go in clear to a peer that strongSwan protected and no longer has a policy for
    Release(release::Arguments),
    /// Hand what is protected over to the kernel's IPsec, until "culvert resume"
    ///
    /// For work on culvert-datapath, or with it: keys and sequence numbers go to the kernel, and Geneve goes on, sealed by
    /// the kernel, while the datapath is stopped, replaced or started again. What is culvert-only is not handed over: its
    /// Geneve is dropped meanwhile. Nothing is ever in clear.
    Drain(handover::Arguments),
    /// Take back from the kernel's IPsec what "culvert drain" has handed over
    Resume(handover::Arguments),
    /// Take everything away on purpose: from then on, Geneve leaves in clear!
    ///
    /// First it says whose Geneve that is, and asks. Then both daemons end, and what stays behind them to guard is removed:
    /// the kernel's SAs and policies that are Culvert's, the list of peers that strongSwan protected, the eBPF programs, the
    /// host port. Configurations, the list of used keys and the state of SAs stay, for the next start. A service that is
    /// restarted even after a clean end (systemd: Restart=always) must be stopped before.
    Down(down::Arguments),
    /// Check what this machine lacks for Culvert, and say what mends it
    Doctor(doctor::Arguments),
    /// Measure Culvert beside plain Geneve, kernel xfrm and others
    #[command(disable_help_flag = true)]
    Bench(bench::Arguments),
    /// Seal or open the packets of a capture file
    Pcap(pcap::Arguments),
    /// Print the completions for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        // `culvert status | head`: who reads has enough.
        Err(error) if is_broken_pipe(&error) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("culvert: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Whether all is good.
fn run(arguments: Arguments) -> anyhow::Result<bool> {
    let run = arguments.run_dir;
    match arguments.command {
        Command::Status(arguments) => status::run(&arguments, &run),
        Command::Reload(arguments) => reload::run(&arguments, &run),
        Command::Release(arguments) => release::run(&arguments, &run),
        Command::Drain(arguments) => handover::run(handover::Way::Drain, &arguments, &run),
        Command::Resume(arguments) => handover::run(handover::Way::Resume, &arguments, &run),
        Command::Down(arguments) => down::run(&arguments, &run),
        Command::Doctor(arguments) => doctor::run(&arguments, &run),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Pcap(arguments) => pcap::run(&arguments),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Arguments::command(), "culvert", &mut script);
            io::stdout().write_all(&script)?;
            Ok(true)
        }
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// Prints to stdout; unlike `println!`, does not panic when nobody reads any more.
fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Prints what came of a command, and on stderr what was wrong with it; whether nothing was.
fn print_report(
    report: &impl serde::Serialize,
    json: bool,
    text: &str,
    problems: &[String],
) -> anyhow::Result<bool> {
    if json {
        print_json(report)?;
    } else {
        print(text)?;
        for problem in problems {
            eprintln!("culvert: {problem}");
        }
    }
    Ok(problems.is_empty())
}

/// Prints as JSON to stdout.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value)?;
    text.push('\n');
    Ok(print(&text)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn the_run_directory_may_stand_anywhere() {
        for line in ["culvert --run-dir /x status", "culvert status --run-dir /x"] {
            let arguments = Arguments::try_parse_from(line.split(' ')).unwrap();
            assert_eq!(arguments.run_dir, PathBuf::from("/x"));
        }
    }
}

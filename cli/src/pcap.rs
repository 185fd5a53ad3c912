//! `culvert pcap`: the datapath's own worker on capture files, so that anyone can check it with any tool.

use std::fmt::Write;
use std::path::PathBuf;

use culvert_datapath::offline::{self, Report};
use culvert_esp::Choice;

use crate::{print, print_json};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Geneve in, ESP out. Use keys made for the purpose: the numbers start anew at every run, and what
    /// is sealed twice under a live key gives it away
    Seal(Files),
    /// ESP in, Geneve out
    Open(Files),
}

#[derive(clap::Args)]
struct Files {
    /// File of SAs and policies, as culvert-keymgr takes it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Capture to read, pcap or pcapng
    #[arg(long = "in", value_name = "A.pcap")]
    input: PathBuf,
    /// Capture to write
    #[arg(long = "out", value_name = "B.pcap")]
    output: PathBuf,
    /// Sequence number that the capture starts with; with ESN, all 64 bits of it
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..))]
    first_sequence: u64,
    /// Implementation of the ciphers
    #[arg(long, value_name = "NAME", default_value = Choice::AUTO)]
    aead: Choice,
    /// For programs: one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Runs it; true if no packet was dropped.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let (task, files) = match &arguments.task {
        Task::Seal(files) => (offline::Task::Seal, files),
        Task::Open(files) => (offline::Task::Open, files),
    };
    let config = culvert_keymgr::config::load(&files.config)?;
    let options = offline::Options {
        task,
        aead: files.aead,
        first_sequence: files.first_sequence,
    };
    let report = offline::run(
        options,
        config.sas,
        config.policies,
        &files.input,
        &files.output,
    )?;
    if files.json {
        print_json(&report)?;
    } else {
        print(&text(&report))?;
    }
    Ok(report.drops.is_empty())
}

fn text(report: &Report) -> String {
    let mut text = format!(
        "read     {:>10}\nwritten  {:>10}\n",
        report.read, report.written
    );
    for (reason, count) in &report.drops {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "dropped  {count:>10}  {}: {}",
            reason.name(),
            reason.help()
        );
    }
    text
}

//! `culvert pcap`: the same core on capture files, so that anyone can check it with any tool.

use std::path::PathBuf;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(clap::Subcommand)]
enum Task {
    /// Geneve in, ESP out
    Seal(Files),
    /// ESP in, Geneve out
    Open(Files),
}

#[derive(clap::Args)]
struct Files {
    /// File of SAs and policies, as culvert-keymgr takes it
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Capture to read
    #[arg(long = "in", value_name = "A.pcap")]
    input: PathBuf,
    /// Capture to write
    #[arg(long = "out", value_name = "B.pcap")]
    output: PathBuf,
    /// For programs: one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// To be joined with `culvert_datapath::offline::run` and `culvert_keymgr::config::load`.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<bool> {
    let (Task::Seal(files) | Task::Open(files)) = &arguments.task;
    let _ = (&files.config, &files.input, &files.output, files.json);
    anyhow::bail!("pcap: not in this build")
}

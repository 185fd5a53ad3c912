//! `culvert-bench`: `./dev bench` and `culvert bench`. See [`culvert_bench`].

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::{Args, Parser, Subcommand};
use culvert_bench::run::collect::{Collector, keep};
use culvert_bench::run::stage::Remote;
use culvert_bench::run::{Event, Stop, guest, iperf, looped, micro, scale};
use culvert_bench::way::Way;
use culvert_bench::{agent, report};
use culvert_proto::channel::Lock;
use culvert_proto::sa::Cipher;
use culvert_tests::record::{Place, Record};

/// Measures Culvert beside plain Geneve, kernel xfrm and others. All of it is run in namespaces of its own, unless
/// --remote names another machine. Root, as that makes namespaces and loads eBPF.
#[derive(Parser)]
#[command(name = "culvert-bench", bin_name = "culvert bench", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// iperf3 through the tunnel: throughput, CPU, latency; the sides alternate
    Iperf(IperfArguments),
    /// More SAs, more workers: throughput and memory
    Scale(ScaleArguments),
    /// The host port alone: iperf3 over TAPs and two workers whose wire is memory, with ESP and without
    Loop(LoopArguments),
    /// Pieces of the packet's way in memory, by criterion and in clocks; needs the source tree
    Micro(MicroArguments),
    /// Make tables, charts and a page from the records
    Report(Folder),
    /// Check the records, and that the report is what they give
    Check(Folder),
    /// One side, told what to do on standard input: for the other commands
    #[command(hide = true)]
    Agent,
}

#[derive(Args)]
struct Folder {
    /// Folder of the records
    #[arg(long, value_name = "DIR", default_value = "bench-results")]
    records: PathBuf,
}

#[derive(Args)]
struct IperfArguments {
    /// Who protects [default: all that this machine has]
    #[arg(long, value_delimiter = ',', value_enum)]
    sides: Vec<Way>,
    /// Ciphers
    #[arg(long, value_delimiter = ',', default_values = ["aes128gcm16", "aes256gcm16", "chacha20poly1305"], value_parser = cipher)]
    ciphers: Vec<String>,
    /// Loads
    #[arg(long, value_delimiter = ',', default_values = iperf::LOADS, value_parser = iperf::LOADS)]
    loads: Vec<String>,
    /// Rounds, in each of which all sides have their turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of each TCP run
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// In a guest with a stock kernel, which has ESP, counted by instructions; needs the source tree
    #[arg(long, conflicts_with = "remote")]
    lab: bool,
    /// Between this machine and another one, reached by ssh as root, which has culvert-bench too
    #[arg(long, value_name = "HOST", requires = "wire")]
    remote: Option<String>,
    /// This machine's underlay NIC, for --remote
    #[arg(long, value_name = "NIC", requires = "remote")]
    wire: Option<String>,
    /// The other machine's, if it has another name
    #[arg(long, value_name = "NIC", requires = "remote")]
    remote_wire: Option<String>,
    /// culvert-bench on the other machine
    #[arg(
        long,
        value_name = "PATH",
        requires = "remote",
        default_value = "culvert-bench"
    )]
    remote_program: String,
    /// What to call instead of ssh, as words
    #[arg(
        long,
        value_name = "COMMAND",
        requires = "remote",
        default_value = "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5"
    )]
    ssh: String,
    /// Folder to keep the record in
    #[arg(long, value_name = "DIR", default_value = "bench-results")]
    records: PathBuf,
    /// Report events instead of keeping a record: this is the guest's side
    #[arg(long, hide = true)]
    events: bool,
}

#[derive(Args)]
struct ScaleArguments {
    /// Cipher
    #[arg(long, default_value = "aes256gcm16", value_parser = cipher)]
    cipher: String,
    /// Numbers of SAs
    #[arg(long, value_delimiter = ',', default_values_t = scale::SAS, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    sas: Vec<u32>,
    /// Numbers of workers on each side [default: 1 to the number of cores]
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=64))]
    workers: Vec<u32>,
    /// Rounds
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of each run
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Folder to keep the record in
    #[arg(long, value_name = "DIR", default_value = "bench-results")]
    records: PathBuf,
}

#[derive(Args)]
struct LoopArguments {
    /// Ciphers
    #[arg(long, value_delimiter = ',', default_values = ["aes256gcm16"], value_parser = cipher)]
    ciphers: Vec<String>,
    /// Loads
    #[arg(long, value_delimiter = ',', default_values = ["tcp-85k", "tcp"], value_parser = looped::LOADS)]
    loads: Vec<String>,
    /// One thread for both workers, which take turns, or two
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=2))]
    threads: u32,
    /// Rounds, in each of which both sides have their turn
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
    /// Length of each run
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=600))]
    seconds: u32,
    /// Folder to keep the record in
    #[arg(long, value_name = "DIR", default_value = "bench-results")]
    records: PathBuf,
}

#[derive(Args)]
struct MicroArguments {
    /// How often
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    passes: u32,
    /// Folder to keep the record in
    #[arg(long, value_name = "DIR", default_value = "bench-results")]
    records: PathBuf,
}

fn cipher(name: &str) -> Result<String, String> {
    const MEASURED: [&str; 3] = ["aes128gcm16", "aes256gcm16", "chacha20poly1305"];
    let cipher = Cipher::from_name(name).map_err(|error| error.to_string())?;
    let name = cipher.to_string();
    if MEASURED.contains(&name.as_str()) {
        Ok(name)
    } else {
        Err(format!(
            "not everybody has it; measured are {}",
            MEASURED.join(", ")
        ))
    }
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("culvert-bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Iperf(arguments) => run_iperf(arguments),
        Command::Scale(arguments) => run_scale(arguments),
        Command::Loop(arguments) => run_loop(arguments),
        Command::Micro(arguments) => {
            can_keep(&arguments.records)?;
            let record = micro::measure(arguments.passes, &Stop::on_signal()?)?;
            kept(&record, &arguments.records, 0)
        }
        Command::Report(folder) => {
            for file in report::write(&folder.records)? {
                println!("{}", file.display());
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Check(folder) => report::check(&folder.records).map(|()| ExitCode::SUCCESS),
        Command::Agent => agent::serve().map(|()| ExitCode::SUCCESS),
    }
}

fn must_be_root() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "needs root, for namespaces and eBPF: try sudo"
    );
    Ok(())
}

/// Sees that a record can be kept, before an hour is spent on it.
fn can_keep(records: &Path) -> Result<()> {
    std::fs::create_dir_all(records)
        .and_then(|()| tempfile::tempfile_in(records))
        .map(drop)
        .with_context(|| format!("no record can be kept in {}", records.display()))
}

/// Sees that nobody else measures on this machine.
fn alone() -> Result<Lock> {
    Lock::take(Path::new("/run"), "culvert-bench")
        .context("two measurements on one machine measure each other")
}

fn run_iperf(arguments: IperfArguments) -> Result<ExitCode> {
    must_be_root()?;
    let _alone = if arguments.events {
        None
    } else {
        can_keep(&arguments.records)?;
        Some(alone()?)
    };
    let stop = Stop::on_signal()?;
    let in_guest = std::env::var_os("CULVERT_GUEST").is_some();
    let remote = arguments.remote.map(|host| {
        let wire = arguments.wire.unwrap_or_default();
        Remote {
            host,
            ssh: arguments
                .ssh
                .split_whitespace()
                .map(str::to_owned)
                .collect(),
            remote_wire: arguments.remote_wire.unwrap_or_else(|| wire.clone()),
            wire,
            program: arguments.remote_program,
        }
    });
    let options = iperf::Options {
        place: match &remote {
            Some(_) => Place::Remote,
            None if in_guest => Place::Guest,
            None => Place::Namespaces,
        },
        remote,
        ways: if arguments.sides.is_empty() {
            Way::ALL.to_vec()
        } else {
            arguments.sides
        },
        ciphers: arguments.ciphers,
        loads: arguments.loads,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
    };
    if arguments.events {
        iperf::measure(&options, &stop, &mut |event| guest::report(&event))?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut collector = Collector::new("");
    let mut tell = |event: Event| collector.hear(event);
    let result = if arguments.lab {
        let mut words: Vec<String> = std::env::args().skip(1).collect();
        words.retain(|word| word != "--lab");
        words.push("--events".to_owned());
        guest::measure(&words, &stop, &mut tell)
    } else {
        iperf::measure(&options, &stop, &mut tell)
    };
    let failures = collector.failures();
    finish(result, &stop, failures, &arguments.records, |complete| {
        collector.iperf(own_command(), options.seconds, complete)
    })
}

fn run_scale(arguments: ScaleArguments) -> Result<ExitCode> {
    must_be_root()?;
    can_keep(&arguments.records)?;
    let _alone = alone()?;
    let stop = Stop::on_signal()?;
    let cores = u32::try_from(std::thread::available_parallelism()?.get())?;
    let options = scale::Options {
        cipher: arguments.cipher,
        sas: arguments.sas,
        workers: if arguments.workers.is_empty() {
            (1..=cores).collect()
        } else {
            arguments.workers
        },
        rounds: arguments.rounds,
        seconds: arguments.seconds,
    };
    let mut collector = Collector::new(&options.cipher);
    let result = scale::measure(&options, &stop, &mut |event| collector.hear(event));
    let failures = collector.failures();
    finish(result, &stop, failures, &arguments.records, |complete| {
        collector.scale(own_command(), complete)
    })
}

fn run_loop(arguments: LoopArguments) -> Result<ExitCode> {
    must_be_root()?;
    can_keep(&arguments.records)?;
    let _alone = alone()?;
    let stop = Stop::on_signal()?;
    let options = looped::Options {
        ciphers: arguments.ciphers,
        loads: arguments.loads,
        threads: arguments.threads,
        rounds: arguments.rounds,
        seconds: arguments.seconds,
    };
    let mut collector = Collector::new("");
    let result = looped::measure(&options, &stop, &mut |event| collector.hear(event));
    let failures = collector.failures();
    finish(result, &stop, failures, &arguments.records, |complete| {
        collector.looped(own_command(), &options, complete)
    })
}

/// The command that repeats this, but for the folder that its record goes to.
fn own_command() -> String {
    let mut words = vec!["culvert bench".to_owned()];
    let mut arguments = std::env::args().skip(1);
    while let Some(word) = arguments.next() {
        if word == "--records" {
            arguments.next();
        } else if !word.starts_with("--records=") {
            words.push(word);
        }
    }
    words.join(" ")
}

/// Keeps what there is, also of a run that did not come to its end.
fn finish(
    result: Result<()>,
    stop: &Stop,
    failures: usize,
    folder: &Path,
    record: impl FnOnce(bool) -> Result<Record>,
) -> Result<ExitCode> {
    match (result, record(!stop.is_set())) {
        (Ok(()), record) => kept(&record?, folder, failures),
        (Err(error), Ok(record)) => {
            eprintln!();
            kept(&record, folder, failures)?;
            if stop.is_set() {
                return Ok(ExitCode::from(130));
            }
            Err(error).context("the record has what was measured before")
        }
        (Err(error), Err(_)) => Err(error),
    }
}

fn kept(record: &Record, folder: &Path, failures: usize) -> Result<ExitCode> {
    let path = keep(record, folder)?;
    eprintln!("record: {}", path.display());
    if failures > 0 {
        eprintln!("failed: {failures}, see above");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

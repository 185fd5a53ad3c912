//! How many instructions a packet takes, counted by callgrind: the same on a busy machine as on an idle one.
//!
//! Without arguments, a test: sealing and opening may take no more than the record allows. `--record` measures
//! anew and changes the record, which belongs into the same commit as what made it change. `--packets` is what
//! callgrind runs.
//!
//! Callgrind's CPU has AES-NI and AVX2 and nothing newer, on every x86 machine. So the cipher's share is not what an
//! AVX-512 machine runs; that of ESP is.

use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

use culvert_benches::{
    aead, counted, geneve, inbound_sa, nonce, outbound_sa, text_length, with_room,
};
use culvert_esp::buffer::HeapFrame;
use culvert_esp::{Backend, UDP_HEADER, open, seal};
use culvert_packet::headers;
use culvert_proto::sa::Cipher;
use libtest_mimic::{Arguments, Trial};
use serde::{Deserialize, Serialize};

const CIPHER: Cipher = Cipher::Aes256Gcm16;
/// Bytes behind the UDP header.
const SIZES: [usize; 3] = [64, 512, 1400];
/// Those that the test looks at.
const GUARDED: [usize; 2] = [64, 1400];
/// What every build has, so that the record is for every machine.
const BACKEND: Backend = Backend::AwsLc;
/// How much more, or less, than recorded is no change.
const TOLERANCE: f64 = 0.03;
/// Packets that are made ready together, as a worker takes them.
const BATCH: usize = 64;
/// Packets of the two runs whose difference counts: what is done once falls out of it.
const RUNS: [usize; 2] = [1024, 3072];
/// A wire that takes them all.
const MTU: usize = 9216;

/// The record, and the command that makes it.
const RECORD: &str = "bench-results/instructions.json";
const COMMAND: &str =
    "cargo run --release -p culvert-benches --bin culvert-instructions -- --record";

#[derive(Deserialize, Serialize)]
struct Record {
    command: String,
    rustc: String,
    valgrind: String,
    libc: String,
    cipher: String,
    backend: String,
    packets: Vec<Packet>,
}

/// Instructions of a packet.
#[derive(Deserialize, Serialize)]
struct Packet {
    what: String,
    payload: usize,
    instructions: f64,
    outside_the_cipher: f64,
}

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["--packets", what, size, count] => packets(what, number(size), number(count)),
        ["--record"] => record(),
        _ => guard(),
    }
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

// ---- the test ------------------------------------------------------------------------------------

fn guard() {
    let missing = said(Command::new("valgrind").arg("--version"))
        .is_none()
        .then_some("there is no valgrind; `apt install valgrind`");
    let cases = ["seal", "open"]
        .into_iter()
        .flat_map(|what| GUARDED.map(|size| (what, size)));
    let trials = cases.map(|(what, size)| {
        let name = format!("instructions_{what}_{size}");
        match missing {
            None => Trial::test(name, move || Ok(compare(what, size)?)),
            Some(why) => {
                Trial::test(format!("{name}: skipped: {why}"), || Ok(())).with_ignored_flag(true)
            }
        }
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit();
}

/// Measures, and compares with the record.
fn compare(what: &str, size: usize) -> Result<(), String> {
    let text =
        fs::read_to_string(root().join(RECORD)).map_err(|error| format!("{RECORD}: {error}"))?;
    let record: Record =
        serde_json::from_str(&text).map_err(|error| format!("{RECORD}: {error}"))?;
    let packet = record
        .packets
        .iter()
        .find(|packet| packet.what == what && packet.payload == size);
    let recorded = packet
        .ok_or(format!("{RECORD} has no {what} at {size} bytes"))?
        .instructions;
    let measured = instructions(&own(), what, size);
    let change = measured / recorded - 1.0;
    let mut report = format!(
        "{what} of {size} bytes takes {measured:.0} instructions, {:+.1} % against {recorded:.0} of {RECORD}",
        change * 100.0
    );
    for (before, now) in [
        (&record.rustc, rustc()),
        (&record.valgrind, valgrind()),
        (&record.libc, libc()),
    ] {
        if *before != now {
            report += &format!("; recorded with {before}, measured with {now}");
        }
    }
    if change > TOLERANCE {
        return Err(format!(
            "{report}. If that is as it should be, commit with it what this writes: {COMMAND}"
        ));
    }
    if change < -TOLERANCE {
        eprintln!("warning: {report}. Keep what was gained: {COMMAND}");
    }
    Ok(())
}

// ---- the record ----------------------------------------------------------------------------------

fn record() {
    let core = own();
    let pipeline = pipeline();
    let mut packets = Vec::new();
    for (program, what, cipher) in [
        (&core, "seal", "bare-seal"),
        (&core, "open", "bare-open"),
        (&pipeline, "out", "bare-seal"),
        (&pipeline, "in", "bare-open"),
    ] {
        for payload in SIZES {
            let whole = instructions(program, what, payload);
            let bare = instructions(&core, cipher, payload);
            let what = if *program == core {
                what.to_owned()
            } else {
                format!("pipeline {what}")
            };
            println!(
                "{what} of {payload} bytes: {whole:.1}, {:.1} outside the cipher",
                whole - bare
            );
            packets.push(Packet {
                what,
                payload,
                instructions: rounded(whole),
                outside_the_cipher: rounded(whole - bare),
            });
        }
    }
    let record = Record {
        command: COMMAND.to_owned(),
        rustc: rustc(),
        valgrind: valgrind(),
        libc: libc(),
        cipher: CIPHER.to_string(),
        backend: BACKEND.name().to_owned(),
        packets,
    };
    let json = serde_json::to_string_pretty(&record).expect("JSON");
    fs::write(root().join(RECORD), json + "\n").expect("the record is written");
}

fn rounded(instructions: f64) -> f64 {
    (instructions * 10.0).round() / 10.0
}

fn own() -> PathBuf {
    std::env::current_exe().expect("this program")
}

/// Builds the bench of the pipeline, which this program does without, and says where it is.
fn pipeline() -> PathBuf {
    let mut cargo = Command::new("cargo");
    cargo.args([
        "bench",
        "-p",
        "culvert-benches",
        "--bench",
        "pipeline",
        "--no-run",
        "--message-format=json",
    ]);
    let messages = said(cargo.current_dir(root())).expect("the bench of the pipeline is built");
    let mut messages = messages
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let program = messages.find(|message| message["target"]["name"] == "pipeline");
    let program = program
        .as_ref()
        .and_then(|message| message["executable"].as_str());
    program.expect("cargo says where it is").into()
}

/// What a command says, if it does its work.
fn said(command: &mut Command) -> Option<String> {
    let output = command
        .stderr(std::process::Stdio::inherit())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    output.status.success().then_some(text)
}

fn rustc() -> String {
    said(Command::new("rustc").arg("--version")).unwrap_or_default()
}

fn valgrind() -> String {
    said(Command::new("valgrind").arg("--version")).unwrap_or_default()
}

/// It has the copying of memory, in variants for CPUs.
fn libc() -> String {
    said(Command::new("getconf").arg("GNU_LIBC_VERSION")).unwrap_or_default()
}

/// Instructions of one packet.
fn instructions(program: &Path, what: &str, size: usize) -> f64 {
    let [few, many] = RUNS.map(|count| collected(program, what, size, count));
    (many - few) as f64 / (RUNS[1] - RUNS[0]) as f64
}

/// Instructions that callgrind counts while `program` takes so many packets.
fn collected(program: &Path, what: &str, size: usize, count: usize) -> u64 {
    let mut valgrind = Command::new("valgrind");
    // The environment lies on the stack, and moves it: that changes how memory is copied by a few instructions.
    valgrind
        .env_clear()
        .envs(std::env::var_os("PATH").map(|path| ("PATH", path)));
    valgrind.args([
        "--tool=callgrind",
        "--callgrind-out-file=/dev/null",
        "--toggle-collect=*culvert_benches*counted*",
    ]);
    valgrind
        .arg(program)
        .args(["--packets", what, &size.to_string(), &count.to_string()]);
    let output = valgrind.output().expect("valgrind starts");
    let said = String::from_utf8_lossy(&output.stderr);
    let collected = said
        .lines()
        .find_map(|line| line.split_once("Collected : "));
    let collected = collected.and_then(|(_, count)| count.trim().parse().ok());
    match collected {
        Some(collected) if output.status.success() => collected,
        _ => panic!("callgrind did not do it: {said}"),
    }
}

// ---- what callgrind runs -------------------------------------------------------------------------

fn packets(what: &str, size: usize, count: usize) {
    assert!(count.is_multiple_of(BATCH), "whole batches");
    let batches = count / BATCH;
    match what {
        "bare-seal" => bare_seal(size, batches),
        "bare-open" => bare_open(size, batches),
        "seal" => sealing(size, batches),
        "open" => opening(size, batches),
        _ => panic!("there is no {what}"),
    }
}

fn bare_seal(size: usize, batches: usize) {
    let key = aead(CIPHER, BACKEND);
    let mut texts = vec![vec![0; text_length(UDP_HEADER + size)]; BATCH];
    for _ in 0..batches {
        counted(&mut || {
            for (number, text) in (1..).zip(&mut texts) {
                black_box(key.seal(nonce(number), &[0; 12], text)).expect("sealed");
            }
        });
    }
}

fn bare_open(size: usize, batches: usize) {
    let key = aead(CIPHER, BACKEND);
    let mut sealed = vec![0; text_length(UDP_HEADER + size)];
    let icv = key.seal(nonce(0), &[0; 12], &mut sealed).expect("sealed");
    sealed.extend(icv);
    for _ in 0..batches {
        let mut texts = vec![sealed.clone(); BATCH];
        counted(&mut || {
            for text in &mut texts {
                black_box(key.open(nonce(0), &[0; 12], text)).expect("opened");
            }
        });
    }
}

fn sealing(size: usize, batches: usize) {
    let sa = outbound_sa(CIPHER, BACKEND);
    let (clear, headers) = geneve(UDP_HEADER + size);
    for _ in 0..batches {
        let mut frames = vec![with_room(&clear); BATCH];
        counted(&mut || {
            let mut lease = sa.lease(BATCH as u32);
            for frame in &mut frames {
                let sequence = lease.take().expect("a number");
                let plan = seal::plan(&sa, &headers, MTU);
                black_box(seal::seal(&sa, sequence, &plan, &headers, frame)).expect("sealed");
            }
        });
    }
}

fn opening(size: usize, batches: usize) {
    let outbound = outbound_sa(CIPHER, BACKEND);
    let (inbound, _) = inbound_sa(CIPHER, BACKEND);
    let (clear, headers) = geneve(UDP_HEADER + size);
    for _ in 0..batches {
        let mut lease = outbound.lease(BATCH as u32);
        let mut frames: Vec<HeapFrame> = vec![with_room(&clear); BATCH];
        for frame in &mut frames {
            let plan = seal::plan(&outbound, &headers, MTU);
            let sequence = lease.take().expect("a number");
            seal::seal(&outbound, sequence, &plan, &headers, frame).expect("sealed");
        }
        let headers = headers::walk(frames[0].bytes()).expect("good");
        counted(&mut || {
            for frame in &mut frames {
                black_box(open::open(&inbound, false, &headers, frame)).expect("opened");
            }
        });
    }
}

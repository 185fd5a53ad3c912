//! The structs as they are written down, against strongSwan's headers.
//!
//! `keymgr/strongswan/headers` fetches them; where it cannot, the test is skipped and says why.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use libtest_mimic::{Arguments, Failed, Trial};
use strongswan_kernel_culvert::layout::{VERSION, facts};

/// Exit status of `headers` for what cannot be had here.
const UNAVAILABLE: i32 = 69;

fn main() {
    let arguments = Arguments::from_args();
    let name = format!("layout of strongSwan {VERSION}");
    let trial = match headers() {
        Headers::At(source) => Trial::test(name, move || compare(&source)),
        Headers::Missing(why) => {
            let why = why.replace('\n', "; ");
            Trial::test(format!("{name}: skipped: {why}"), || Ok(())).with_ignored_flag(true)
        }
        Headers::Broken(why) => Trial::test(name, || Err(why.into())),
    };
    libtest_mimic::run(&arguments, vec![trial]).exit();
}

enum Headers {
    At(PathBuf),
    Missing(String),
    Broken(String),
}

fn here() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn headers() -> Headers {
    let output = match Command::new(here().join("headers")).arg(VERSION).output() {
        Ok(output) => output,
        Err(error) => return Headers::Broken(format!("headers cannot be run: {error}")),
    };
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    match output.status.code() {
        Some(0) => Headers::At(text(&output.stdout).into()),
        Some(UNAVAILABLE) => Headers::Missing(text(&output.stderr)),
        _ => Headers::Broken(format!("headers: {}", text(&output.stderr))),
    }
}

/// Compiles the probe, runs it, and compares line by line.
fn compare(source: &Path) -> Result<(), Failed> {
    let facts = facts();
    let dir = tempfile::tempdir()?;
    let mut calls = String::new();
    for fact in &facts {
        writeln!(calls, "{fact}")?;
    }
    std::fs::write(dir.path().join("facts.h"), calls)?;

    let probe = dir.path().join("probe");
    let ours = here().join("tests/layout");
    let compiler = Command::new("cc")
        .args(["-std=gnu11", "-w", "-include"])
        .arg(ours.join("config.h"))
        .arg("-I")
        .arg(dir.path())
        .arg("-I")
        .arg(source.join("src/libstrongswan"))
        .arg("-I")
        .arg(source.join("src/libcharon"))
        .arg("-o")
        .arg(&probe)
        .arg(ours.join("probe.c"))
        .output()?;
    if !compiler.status.success() {
        return Err(String::from_utf8_lossy(&compiler.stderr)
            .into_owned()
            .into());
    }
    let said = String::from_utf8(Command::new(&probe).output()?.stdout)?;

    let said: Vec<&str> = said.lines().collect();
    if said.len() != facts.len() {
        return Err(format!("{} facts, {} lines of the probe", facts.len(), said.len()).into());
    }
    let wrong: Vec<String> = facts
        .iter()
        .zip(said)
        .filter(|(fact, said)| fact.numbers() != **said)
        .map(|(fact, said)| format!("{fact} is {said}, not {}", fact.numbers()))
        .collect();
    if wrong.is_empty() {
        Ok(())
    } else {
        Err(wrong.join("\n").into())
    }
}

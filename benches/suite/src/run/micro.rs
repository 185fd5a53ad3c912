//! Pieces in memory: criterion's benches of this source tree, and the clocks that they print.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use culvert_tests::record::{Clocks, Host, Micro, Record, Results, Time};
use serde_json::Value;

use super::Stop;

/// The benches, and what cargo is told for each. ring is compared with, and not used.
const BENCHES: [(&str, &str); 7] = [
    ("aead", " --features ring"),
    ("esp", ""),
    ("pipeline", ""),
    ("replay", ""),
    ("spd", ""),
    ("gso", ""),
    ("tap", ""),
];

/// Runs them `passes` times.
///
/// # Errors
/// This is not run in the source tree, or one of them fails.
pub fn measure(passes: u32, stop: &Stop) -> Result<Record> {
    ensure!(
        Path::new("benches/Cargo.toml").exists(),
        "the benches are compiled when they are run: go to the source tree, and run ./dev bench micro"
    );
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| "target".into(), PathBuf::from);
    // Not where criterion keeps what a developer compares with.
    let results = target.join("criterion-suite");
    let mut times = BTreeMap::<String, Vec<f64>>::new();
    let mut clocks = Vec::new();
    let mut complete = true;
    'passes: for pass in 1..=passes {
        for (bench, options) in BENCHES {
            if stop.is_set() {
                complete = false;
                break 'passes;
            }
            eprintln!("pass {pass} of {passes}: {bench}");
            let _ = fs::remove_dir_all(&results);
            let output = Command::new("cargo")
                .args(line(bench, options).split(' ').skip(1))
                .env("CRITERION_HOME", &results)
                .stderr(Stdio::inherit())
                .output()?;
            if stop.is_set() {
                complete = false;
                break 'passes;
            }
            ensure!(output.status.success(), "bench {bench}: {}", output.status);
            let text = String::from_utf8_lossy(&output.stdout);
            clocks.extend(text.lines().filter_map(parse));
            for (id, ns) in text.lines().filter_map(parse_time) {
                times.entry(id).or_default().push(ns);
            }
            read(&results, &mut times)?;
        }
    }
    ensure!(!times.is_empty(), "nothing was measured");
    let times = times.into_iter().map(|(id, ns)| Time { id, ns }).collect();
    let commands = BENCHES.map(|(bench, options)| line(bench, options));
    let results = Results::Micro(Micro { times, clocks });
    Ok(Record::new(
        Host::this(),
        commands.into(),
        complete,
        results,
    ))
}

/// The command of a bench.
fn line(bench: &str, options: &str) -> String {
    format!("cargo bench -p culvert-benches{options} --bench {bench}")
}

/// Adds nanoseconds a packet of each of criterion's benchmarks.
fn read(folder: &Path, times: &mut BTreeMap<String, Vec<f64>>) -> Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry?.path();
        if path.file_name().is_some_and(|name| name == "new") {
            let json = |name: &str| -> Result<Value> {
                Ok(serde_json::from_str(&fs::read_to_string(path.join(name))?)?)
            };
            let (benchmark, estimates) = (json("benchmark.json")?, json("estimates.json")?);
            let id = benchmark["full_id"].as_str().context("full_id")?;
            let packets = benchmark["throughput"]["Elements"].as_f64().unwrap_or(1.0);
            let ns = estimates["median"]["point_estimate"]
                .as_f64()
                .context("median")?;
            times.entry(id.to_owned()).or_default().push(ns / packets);
        } else if path.is_dir() {
            read(&path, times)?;
        }
    }
    Ok(())
}

/// A line of the benches: `clocks WHAT/CIPHER/BACKEND/BYTES[/BATCH] best=… median=… [bare_best=…]`, where WHAT may have a slash.
fn parse(line: &str) -> Option<Clocks> {
    let mut words = line.strip_prefix("clocks ")?.split_whitespace();
    let mut id: Vec<&str> = words.next()?.split('/').collect();
    let values: BTreeMap<&str, f64> = words
        .filter_map(|word| {
            let (name, value) = word.split_once('=')?;
            Some((name, value.parse().ok()?))
        })
        .collect();
    let last: u32 = id.pop()?.parse().ok()?;
    let (bytes, batch) = match id.last()?.parse() {
        Ok(bytes) => {
            id.pop();
            (bytes, last)
        }
        Err(_) => (last, 1),
    };
    let (backend, cipher) = (id.pop()?.to_owned(), id.pop()?.to_owned());
    Some(Clocks {
        what: id.join("/"),
        cipher,
        backend,
        bytes,
        batch,
        best: *values.get("best")?,
        median: *values.get("median")?,
        bare: values.get("bare_best").copied(),
    })
}

/// A line of a bench that is not criterion's: `time ID ns=… …`, where ID may have spaces.
fn parse_time(line: &str) -> Option<(String, f64)> {
    let (id, values) = line.strip_prefix("time ")?.split_once(" ns=")?;
    Some((id.to_owned(), values.split(' ').next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_benches_are_read() {
        let line = "clocks pipeline/out/aes256gcm16/aws-lc-rs/1400/256 best=500.5 median=510 bare_best=450 over=50.5";
        let clocks = parse(line).unwrap();
        assert_eq!(
            (clocks.what.as_str(), clocks.bytes, clocks.batch),
            ("pipeline/out", 1400, 256)
        );
        assert_eq!((clocks.best, clocks.bare), (500.5, Some(450.0)));
        let line = "clocks seal/aes256gcm16/ipsec-mb/64 best=117 median=121";
        let clocks = parse(line).unwrap();
        assert_eq!(
            (clocks.what.as_str(), clocks.backend.as_str()),
            ("seal", "ipsec-mb")
        );
        assert_eq!((clocks.bytes, clocks.batch, clocks.bare), (64, 1, None));
        assert!(parse("test result: ok").is_none());
        let line = "time tap/out/read, one buffer/8 ns=5012 low=4900 high=5600 clocks=12280";
        let time = parse_time(line).unwrap();
        assert_eq!(time, ("tap/out/read, one buffer/8".to_owned(), 5012.0));
        assert!(parse_time("time to go").is_none());
    }
}

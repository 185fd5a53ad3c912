//! What the report is made of: the records in a folder, each looked at, and the count of instructions.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use culvert_tests::record::{Faults, Host, Iperf, Loop, Micro, Record, Results, Scale};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::plausible;

/// The guard's record of instructions, which is of the code and not of a run: it has no date and no machine.
pub(super) const INSTRUCTIONS: &str = "instructions.json";

/// A record and its file.
#[derive(Debug)]
pub(super) struct Named {
    pub(super) file: String,
    pub(super) record: Record,
}

/// Everything there is.
#[derive(Debug, Default)]
pub(super) struct Input {
    /// The newest of each kind of machine and of what was measured.
    pub(super) newest: Vec<Named>,
    /// Those that a newer one stands for.
    pub(super) older: Vec<Named>,
    pub(super) instructions: Option<Instructions>,
}

/// Instructions of a packet, as the guard counts them.
#[derive(Debug, Deserialize)]
pub(super) struct Instructions {
    pub(super) command: String,
    pub(super) rustc: String,
    pub(super) valgrind: String,
    pub(super) cipher: String,
    pub(super) backend: String,
    pub(super) packets: Vec<Packet>,
}

/// Instructions of one packet.
#[derive(Debug, Deserialize)]
pub(super) struct Packet {
    pub(super) what: String,
    pub(super) payload: u32,
    pub(super) instructions: f64,
    pub(super) outside_the_cipher: f64,
}

impl Input {
    pub(super) fn read(folder: &Path) -> Result<Self> {
        let mut input = Self::default();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).with_context(|| folder.display().to_string())? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        // The newest first, as a name begins with its date.
        names.sort_by(|one, other| other.cmp(one));
        let mut seen = BTreeSet::new();
        for file in names
            .into_iter()
            .filter(|name| name.ends_with(".json") && name != "schema.json")
        {
            let text = std::fs::read_to_string(folder.join(&file)).with_context(|| file.clone())?;
            if file == INSTRUCTIONS {
                input.instructions =
                    Some(typed(&value(&text).context(INSTRUCTIONS)?, "").context(INSTRUCTIONS)?);
                continue;
            }
            let record = record(&file, &text).with_context(|| file.clone())?;
            let named = Named { file, record };
            match seen.insert(named.kind()) {
                true => input.newest.push(named),
                false => input.older.push(named),
            }
        }
        input.newest.sort_by_key(Named::kind);
        Ok(input)
    }

    pub(super) fn iperf(&self) -> impl Iterator<Item = (&Named, &Iperf)> {
        self.newest
            .iter()
            .filter_map(|named| match &named.record.results {
                Results::Iperf(iperf) => Some((named, iperf)),
                _ => None,
            })
    }

    pub(super) fn micro(&self) -> impl Iterator<Item = (&Named, &Micro)> {
        self.newest
            .iter()
            .filter_map(|named| match &named.record.results {
                Results::Micro(micro) => Some((named, micro)),
                _ => None,
            })
    }

    pub(super) fn scale(&self) -> impl Iterator<Item = (&Named, &Scale)> {
        self.newest
            .iter()
            .filter_map(|named| match &named.record.results {
                Results::Scale(scale) => Some((named, scale)),
                _ => None,
            })
    }

    pub(super) fn loops(&self) -> impl Iterator<Item = (&Named, &Loop)> {
        self.newest
            .iter()
            .filter_map(|named| match &named.record.results {
                Results::Loop(looped) => Some((named, looped)),
                _ => None,
            })
    }

    pub(super) fn faults(&self) -> impl Iterator<Item = (&Named, &Faults)> {
        self.newest
            .iter()
            .filter_map(|named| match &named.record.results {
                Results::Faults(faults) => Some((named, faults)),
                _ => None,
            })
    }
}

impl Named {
    /// What of which the newest is shown.
    fn kind(&self) -> (String, &'static str) {
        (self.record.host.class.clone(), self.record.results.what())
    }

    pub(super) fn host(&self) -> &Host {
        &self.record.host
    }
}

/// Reads a record, and refuses one that is not as the types have it, or cannot be.
fn record(file: &str, text: &str) -> Result<Record> {
    let value = value(text)?;
    plausible::numbers(&value, "")?;
    let record: Record =
        typed(&value, "").map_err(|error| within_results(&value).unwrap_or(error))?;
    plausible::record(&record)?;
    let expected = record.file_name();
    ensure!(
        file == expected,
        "date, host.class and results.what make it {expected}"
    );
    Ok(record)
}

fn value(text: &str) -> Result<Value> {
    serde_json::from_str(text).context("is not JSON")
}

fn typed<T: DeserializeOwned>(value: &Value, within: &str) -> Result<T> {
    serde_path_to_error::deserialize(value)
        .map_err(|error| anyhow::anyhow!("{within}{}: {}", error.path(), error.inner()))
}

/// What is wrong within the results: serde does not say where in an enum, so that what is in it is read by itself.
fn within_results(value: &Value) -> Option<anyhow::Error> {
    let mut results = value.get("results")?.as_object()?.clone();
    let what = results.remove("what")?;
    let results = Value::Object(results);
    match what.as_str()? {
        "micro" => typed::<Micro>(&results, "results.").err(),
        "iperf" => typed::<Iperf>(&results, "results.").err(),
        "loop" => typed::<Loop>(&results, "results.").err(),
        "scale" => typed::<Scale>(&results, "results.").err(),
        "faults" => typed::<Faults>(&results, "results.").err(),
        _ => None,
    }
}

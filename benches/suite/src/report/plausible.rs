//! What no measurement can say.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use culvert_tests::record::{Latency, Micro, Place, Record, Results, Round, SCHEMA, Scale, Series};
use serde_json::Value;

use crate::way::Way;

/// Nothing that is measured is less than nothing; that it is finite, JSON sees to.
pub(super) fn numbers(value: &Value, path: &str) -> Result<()> {
    match value {
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or(f64::NAN);
            ensure!(
                number.is_finite() && number >= 0.0,
                "{path}: {number} cannot be"
            );
        }
        Value::Array(list) => {
            for (index, value) in list.iter().enumerate() {
                numbers(value, &format!("{path}[{index}]"))?;
            }
        }
        Value::Object(fields) => {
            let dot = if path.is_empty() { "" } else { "." };
            for (name, value) in fields {
                numbers(value, &format!("{path}{dot}{name}"))?;
            }
        }
        Value::Null | Value::Bool(_) | Value::String(_) => {}
    }
    Ok(())
}

/// What the types cannot say.
pub(super) fn record(record: &Record) -> Result<()> {
    let host = &record.host;
    ensure!(
        record.schema == SCHEMA,
        "schema: {} is not {SCHEMA}",
        record.schema
    );
    ensure!(
        is_date(&record.date),
        "date: {:?} is not as in 2026-11-28",
        record.date
    );
    ensure!(!record.commit.is_empty(), "commit: is empty");
    ensure!(
        is_slug(&host.class),
        "host.class: {:?} is not as in amd-epyc-2",
        host.class
    );
    ensure!(host.cores > 0, "host.cores: is 0");
    ensure!(!record.commands.is_empty(), "commands: are empty");
    match &record.results {
        Results::Micro(results) => micro(results),
        Results::Iperf(results) => series(&results.series, results.place != Place::Remote),
        Results::Loop(results) => series(&results.series, true),
        Results::Scale(results) => scale(results),
        Results::Faults(results) => {
            ensure!(!results.events.is_empty(), "results.events: are empty");
            Ok(())
        }
    }
}

fn micro(micro: &Micro) -> Result<()> {
    ensure!(
        !micro.times.is_empty() || !micro.clocks.is_empty(),
        "results: neither times nor clocks"
    );
    for (index, time) in micro.times.iter().enumerate() {
        ensure!(
            !time.ns.is_empty(),
            "results.times[{index}].ns: no pass of {}",
            time.id
        );
    }
    for (index, clocks) in micro.clocks.iter().enumerate() {
        ensure!(
            clocks.best <= clocks.median,
            "results.clocks[{index}].best: {} is more than the median, {}",
            clocks.best,
            clocks.median
        );
    }
    Ok(())
}

/// `watched`: what is said of the wire was seen there; at a NIC's own end the kernel shows what it has opened once more.
fn series(all: &[Series], watched: bool) -> Result<()> {
    ensure!(!all.is_empty(), "results.series: are empty");
    let mut seen = BTreeSet::new();
    for (index, series) in all.iter().enumerate() {
        let path = format!("results.series[{index}]");
        let name = (&series.side, &series.cipher, &series.load);
        ensure!(
            seen.insert(name),
            "{path}: {} under {} comes twice",
            series.side,
            series.load
        );
        ensure!(!series.rounds.is_empty(), "{path}.rounds: are empty");
        let sealed = protects(&series.side);
        for (number, round) in series.rounds.iter().enumerate() {
            let path = format!("{path}.rounds[{number}]");
            ensure!(
                !(sealed && watched && round.wire.geneve > 0),
                "{path}.wire.geneve: {} in clear, so that this is no measurement of {}",
                round.wire.geneve,
                series.side
            );
            self::round(round).context(path)?;
        }
    }
    Ok(())
}

/// Whoever is not known protects, too.
fn protects(side: &str) -> bool {
    let known = Way::ALL.into_iter().find(|way| way.name() == side);
    known.is_none_or(Way::protects)
}

fn round(round: &Round) -> Result<()> {
    if let Some(percent) = round.lost_percent {
        ensure!(percent <= 100.0, "lost_percent: {percent} cannot be");
    }
    if let Some(Latency {
        sent,
        received,
        p50,
        p99,
        p999,
    }) = round.latency
    {
        ensure!(received <= sent, "latency.received: more than were sent");
        ensure!(
            p50 <= p99 && p99 <= p999,
            "latency: {p50}, {p99}, {p999} do not rise"
        );
    }
    Ok(())
}

fn scale(scale: &Scale) -> Result<()> {
    ensure!(!scale.points.is_empty(), "results.points: are empty");
    for (index, point) in scale.points.iter().enumerate() {
        ensure!(
            !point.mpps.is_empty() || !point.gbit_per_s.is_empty(),
            "results.points[{index}]: no round"
        );
        ensure!(point.workers > 0, "results.points[{index}].workers: is 0");
    }
    Ok(())
}

fn is_date(text: &str) -> bool {
    let shape: String = text
        .chars()
        .map(|character| {
            if character.is_ascii_digit() {
                '0'
            } else {
                character
            }
        })
        .collect();
    shape == "0000-00-00"
}

fn is_slug(text: &str) -> bool {
    let allowed = |character: char| {
        character.is_ascii_lowercase() || character.is_ascii_digit() || character == '-'
    };
    !text.is_empty() && text.chars().all(allowed)
}

//! Who hears the events of a run: shows how far it is, and makes the record.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_tests::record::{
    Host, Iperf, Loop, Place, Record, Results, Round, Scale, Series, Wire,
};

use super::{Event, Served, looped};

/// What was heard so far.
pub struct Collector {
    begun: Instant,
    steps: usize,
    done: usize,
    failed: usize,
    left_out: Vec<String>,
    aead: BTreeMap<String, String>,
    place: Place,
    hosts: Vec<Host>,
    wire: Wire,
    series: Vec<Series>,
    scale: Scale,
}

impl Collector {
    /// Nothing yet. `cipher` is that of a scale run.
    #[must_use]
    pub fn new(cipher: &str) -> Self {
        Self {
            begun: Instant::now(),
            steps: 0,
            done: 0,
            failed: 0,
            left_out: Vec::new(),
            aead: BTreeMap::new(),
            place: Place::Namespaces,
            hosts: Vec::new(),
            wire: Wire::default(),
            series: Vec::new(),
            scale: Scale {
                cipher: cipher.to_owned(),
                points: Vec::new(),
            },
        }
    }

    /// Hears one.
    pub fn hear(&mut self, event: Event) {
        match event {
            Event::Begin {
                place,
                hosts,
                wire,
                steps,
                left_out,
            } => {
                self.begun = Instant::now();
                (self.place, self.hosts, self.wire, self.steps) = (place, hosts, wire, steps);
                for what in &left_out {
                    eprintln!("left out: {what}");
                }
                self.left_out = left_out;
            }
            Event::Step(what) => {
                eprint!("[{}/{}{}] {what}: ", self.done + 1, self.steps, self.left());
            }
            Event::Round {
                side,
                cipher,
                load,
                round,
                served,
            } => {
                eprintln!("{}", shown(&round));
                if let Some(Served { xdp, af_xdp, aead }) = served {
                    (self.wire.xdp, self.wire.af_xdp) = (xdp, af_xdp);
                    self.aead.extend(aead);
                }
                self.add(&side, cipher, &load, *round);
                self.done += 1;
            }
            Event::Point(point) => {
                eprintln!(
                    "{:.3} Mpps, {:.2} Gbit/s, datapath {:.0} MiB, key manager {:.0} MiB",
                    super::scale::median(&point.mpps),
                    super::scale::median(&point.gbit_per_s),
                    point.datapath_mib,
                    point.keymgr_mib
                );
                self.scale.points.push(*point);
                self.done += 1;
            }
            Event::Failed(why) => {
                eprintln!("failed: {why}");
                self.done += 1;
                self.failed += 1;
            }
        }
    }

    fn add(&mut self, side: &str, cipher: Option<String>, load: &str, round: Round) {
        let known = self
            .series
            .iter_mut()
            .find(|series| series.side == side && series.cipher == cipher && series.load == load);
        match known {
            Some(series) => series.rounds.push(round),
            None => self.series.push(Series {
                side: side.to_owned(),
                cipher,
                load: load.to_owned(),
                rounds: vec![round],
            }),
        }
    }

    fn left(&self) -> String {
        if self.done == 0 {
            return String::new();
        }
        let steps = u32::try_from(self.steps.saturating_sub(self.done)).unwrap_or(u32::MAX);
        let one = self.begun.elapsed() / u32::try_from(self.done).unwrap_or(u32::MAX);
        format!(", {} left", duration(one * steps))
    }

    /// Whether something failed on the way.
    #[must_use]
    pub fn failures(&self) -> usize {
        self.failed
    }

    /// The record of the iperf matrix.
    ///
    /// # Errors
    /// Nothing was measured.
    pub fn iperf(self, command: String, seconds: u32, complete: bool) -> Result<Record> {
        ensure!(!self.series.is_empty(), "nothing was measured");
        let mut hosts = self.hosts.into_iter();
        let host = hosts.next().unwrap_or_default();
        let results = Results::Iperf(Iperf {
            place: self.place,
            peer: hosts.next().filter(|_| self.place == Place::Remote),
            wire: self.wire,
            seconds,
            aead: self.aead,
            left_out: self.left_out,
            series: self.series,
        });
        Ok(Record::new(
            host,
            vec![command],
            complete && self.failed == 0,
            results,
        ))
    }

    /// The record of the loop.
    ///
    /// # Errors
    /// Nothing was measured.
    pub fn looped(
        self,
        command: String,
        options: &looped::Options,
        complete: bool,
    ) -> Result<Record> {
        ensure!(!self.series.is_empty(), "nothing was measured");
        let results = Results::Loop(Loop {
            seconds: options.seconds,
            threads: options.threads,
            mtu: self.wire.mtu,
            inner_mtu: self.wire.inner_mtu,
            geneve: self.wire.geneve,
            aead: self.aead,
            series: self.series,
        });
        let host = self.hosts.into_iter().next().unwrap_or_default();
        let complete = complete && self.failed == 0;
        Ok(Record::new(host, vec![command], complete, results))
    }

    /// The record of the scale run.
    ///
    /// # Errors
    /// Nothing was measured.
    pub fn scale(self, command: String, complete: bool) -> Result<Record> {
        ensure!(!self.scale.points.is_empty(), "nothing was measured");
        let host = self.hosts.into_iter().next().unwrap_or_default();
        let complete = complete && self.failed == 0;
        Ok(Record::new(
            host,
            vec![command],
            complete,
            Results::Scale(self.scale),
        ))
    }
}

/// Writes a record to the folder; where.
///
/// # Errors
/// It cannot be written.
pub fn keep(record: &Record, folder: &Path) -> Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    let path = folder.join(record.file_name());
    let text = serde_json::to_string_pretty(record)? + "\n";
    std::fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    Ok(path)
}

fn shown(round: &Round) -> String {
    let mut text = format!("{:.2} Gbit/s", round.gbit_per_s);
    if let Some(mpps) = round.mpps {
        let _ = write!(text, ", {:.0} packets/s", mpps * 1e6);
    }
    if let Some(machine) = round.cores.get("machine") {
        let _ = write!(text, ", {machine:.2} cores");
    }
    if let Some(latency) = &round.latency {
        let _ = write!(
            text,
            ", round trip {:.0} µs, 99 % {:.0}",
            latency.p50, latency.p99
        );
    }
    if let Some(superpackets) = &round.superpackets {
        let _ = write!(
            text,
            ", superpackets of {:.1} out, {:.1} in",
            superpackets.cut, superpackets.joined
        );
    }
    if let Some(instructions) = round.instructions_per_byte {
        let _ = write!(text, ", {instructions:.1} instructions a byte");
    }
    text
}

fn duration(time: Duration) -> String {
    match time.as_secs() {
        seconds @ ..100 => format!("{seconds} s"),
        seconds => format!("{} min", seconds.div_ceil(60)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round(collector: &mut Collector, side: &str) {
        collector.hear(Event::Round {
            side: side.to_owned(),
            cipher: None,
            load: "tcp".to_owned(),
            round: Box::default(),
            served: None,
        });
    }

    #[test]
    fn rounds_of_one_side_are_one_series() {
        let mut collector = Collector::new("");
        for side in ["plain", "null", "plain"] {
            round(&mut collector, side);
        }
        let record = collector.iperf("run".into(), 3, true).unwrap();
        assert!(record.complete);
        let Results::Iperf(iperf) = record.results else {
            panic!("{record:?}")
        };
        let lengths: Vec<_> = iperf
            .series
            .iter()
            .map(|series| series.rounds.len())
            .collect();
        assert_eq!(lengths, [2, 1]);
    }

    #[test]
    fn what_failed_or_was_interrupted_is_not_complete() {
        assert!(Collector::new("").iperf(String::new(), 1, true).is_err());
        let mut collector = Collector::new("");
        round(&mut collector, "plain");
        collector.hear(Event::Failed("why".into()));
        assert_eq!(collector.failures(), 1);
        assert!(!collector.iperf(String::new(), 1, true).unwrap().complete);
    }
}

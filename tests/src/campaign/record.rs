//! What a campaign measured: a table for people, a record for later.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use super::events::{Event, Kind};
use super::load::{Recovery, Totals};
use crate::record::{Fault, Faults, Host, Record, Results, Traffic};

/// What is known of one event.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// The event.
    pub event: Event,
    /// How traffic came back.
    pub recovery: Recovery,
}

/// What is known of a campaign.
#[derive(Debug)]
pub struct Report {
    /// Its seed.
    pub seed: u64,
    /// Its events.
    pub outcomes: Vec<Outcome>,
    /// The load.
    pub totals: Totals,
    /// Packets of ESP that were looked at.
    pub esp_packets: u64,
    /// SAs that they were of.
    pub sas: usize,
    /// What the peer counted, if it is one that counts.
    pub peer: BTreeMap<String, u64>,
}

/// Milliseconds.
#[derive(Debug)]
struct Times {
    median: f64,
    worst: f64,
}

impl Times {
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut times: Vec<f64> = times.map(milliseconds).collect();
        times.sort_by(f64::total_cmp);
        let at = |index: usize| times.get(index).copied().unwrap_or(f64::NAN);
        Self {
            median: f64::midpoint(at(times.len().saturating_sub(1) / 2), at(times.len() / 2)),
            worst: at(times.len().saturating_sub(1)),
        }
    }
}

/// Events of one kind.
#[derive(Debug)]
struct Row {
    kind: &'static str,
    events: usize,
    udp_ms: Times,
    tcp_ms: Times,
    gap_ms: Times,
}

impl Report {
    fn rows(&self) -> Vec<Row> {
        let row = |kind: Kind| {
            let outcomes: Vec<_> = self
                .outcomes
                .iter()
                .filter(|outcome| outcome.event.kind == kind)
                .collect();
            let times = |of: fn(&Recovery) -> Duration| {
                Times::of(outcomes.iter().map(|outcome| of(&outcome.recovery)))
            };
            (!outcomes.is_empty()).then(|| Row {
                kind: kind.name(),
                events: outcomes.len(),
                udp_ms: times(|recovery| recovery.udp),
                tcp_ms: times(|recovery| recovery.tcp),
                gap_ms: times(|recovery| recovery.gap),
            })
        };
        Kind::ALL.into_iter().filter_map(row).collect()
    }

    /// The table: milliseconds, median and worst, until UDP and TCP flowed again, and without a UDP packet.
    #[must_use]
    pub fn table(&self) -> String {
        let mut text = format!(
            "seed {}: {} events, {} packets of ESP under {} SAs; UDP {} of {} packets; TCP {} MB, {} connections anew\n\
             ms (median, worst)        events  UDP again        TCP again        longest gap\n",
            self.seed,
            self.outcomes.len(),
            self.esp_packets,
            self.sas,
            self.totals.udp_received,
            self.totals.udp_sent,
            self.totals.tcp_received / 1_000_000,
            self.totals.tcp_anew,
        );
        for row in self.rows() {
            let _ = write!(text, "{:25} {:6}", row.kind, row.events);
            for times in [row.udp_ms, row.tcp_ms, row.gap_ms] {
                let _ = write!(text, "  {:6.0} {:8.0}", times.median, times.worst);
            }
            text.push('\n');
        }
        text
    }

    /// The record, of one of the tests that have a campaign: `system` or `kernel`.
    #[must_use]
    pub fn record(&self, test: &str) -> Record {
        let event = |Outcome { event, recovery }: &Outcome| Fault {
            kind: event.kind.name().to_owned(),
            side: event.side_name().to_owned(),
            length_ms: milliseconds(event.length),
            gap_ms: milliseconds(recovery.gap),
            udp_ms: Some(milliseconds(recovery.udp)),
            tcp_ms: Some(milliseconds(recovery.tcp)),
        };
        let faults = Faults {
            seed: self.seed,
            esp_packets: self.esp_packets,
            traffic: Some(Traffic {
                sas: self.sas as u64,
                udp_sent: self.totals.udp_sent,
                udp_received: self.totals.udp_received,
                tcp_bytes: self.totals.tcp_received,
                tcp_anew: self.totals.tcp_anew,
            }),
            peer: self.peer.clone(),
            events: self.outcomes.iter().map(event).collect(),
        };
        let command = format!(
            "CULVERT_CAMPAIGN_SEED={} CULVERT_CAMPAIGN_EVENTS={} CULVERT_RECORD=- cargo test -p culvert-tests --test {test} -- fault_campaign",
            self.seed,
            self.outcomes.len(),
        );
        Record::new(Host::this(), vec![command], true, Results::Faults(faults))
    }
}

fn milliseconds(time: Duration) -> f64 {
    (time.as_secs_f64() * 10_000.0).round() / 10.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        let times = |list: &[u64]| {
            let times = Times::of(list.iter().map(|&time| Duration::from_millis(time)));
            (times.median, times.worst)
        };
        assert_eq!(times(&[5]), (5.0, 5.0));
        assert_eq!(times(&[1, 9]), (5.0, 9.0));
        assert_eq!(times(&[9, 1, 2]), (2.0, 9.0));
    }
}

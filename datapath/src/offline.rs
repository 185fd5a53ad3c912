//! The worker on capture files: what `culvert pcap` does.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use anyhow::ensure;
use culvert_esp::Choice;
use culvert_packet::reason::DropReason;
use culvert_proto::message::Update;
use culvert_proto::sa::{Direction, Limits, PolicySpec, SaSpec, StateRef};
use culvert_state::Words;
use culvert_state::layout::{inbound, outbound};
use serde::Serialize;

use crate::frame::Pool;
use crate::port::pcap::{Clock, PcapPort};
use crate::tables::Database;
use crate::worker::{Mtu, Worker};

/// Chunk for one packet of a capture: the longest IP packet, and room for ESP.
const CHUNK: u32 = 66_000;
/// Frames: some for the ports, and those of datagrams in fragments.
const FRAMES: u32 = 160;
/// No port that a packet could be too long for.
const NO_MTU: Mtu = Mtu {
    wire: usize::MAX,
    host: usize::MAX,
};

/// What to do with a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Task {
    /// Geneve in, ESP out.
    Seal,
    /// ESP in, Geneve out.
    Open,
}

/// How to do it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Seal or open.
    pub task: Task,
    /// Implementations of the ciphers.
    pub aead: Choice,
    /// What sequence numbers start at: what is sealed has them, what is opened is expected around there.
    pub first_sequence: u64,
}

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Packets read.
    pub read: u64,
    /// Packets written.
    pub written: u64,
    /// Packets dropped, by reason; only reasons that occurred.
    #[serde(serialize_with = "by_name")]
    pub drops: BTreeMap<DropReason, u64>,
}

fn by_name<S: serde::Serializer>(
    drops: &BTreeMap<DropReason, u64>,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    serializer.collect_map(drops.iter().map(|(reason, count)| (reason.name(), count)))
}

/// Whether both paths name one file, which writing would empty before it is read.
fn same_file(one: &Path, other: &Path) -> bool {
    let id = |path: &Path| path.metadata().map(|data| (data.dev(), data.ino())).ok();
    id(one).is_some() && id(one) == id(other)
}

/// Runs the packets of `input` through a worker with these SAs and policies, into `output`.
///
/// # Errors
/// An SA or policy that the datapath refuses; a capture that cannot be read or written.
pub fn run(
    options: Options,
    mut sas: Vec<SaSpec>,
    policies: Vec<PolicySpec>,
    input: &Path,
    output: &Path,
) -> anyhow::Result<Report> {
    for sa in &mut sas {
        // A capture has no time of its own.
        for limits in [&mut sa.lifetime.soft, &mut sa.lifetime.hard] {
            *limits = Limits {
                seconds: None,
                seconds_in_use: None,
                ..*limits
            };
        }
        let words = match sa.id.direction {
            Direction::In => inbound::words(sa.replay_window),
            Direction::Out => outbound::WORDS,
        };
        sa.state = StateRef {
            offset: 0,
            words: u32::try_from(words)?,
        };
    }
    let update = Update {
        reset: true,
        add_sas: sas,
        add_policies: policies,
        ..Update::default()
    };
    let before_first = options.first_sequence.saturating_sub(1);
    let database = Database::new(options.aead).updated(update, |state| {
        let words = Words::on_heap(state.words as usize);
        const { assert!(inbound::HIGHEST == outbound::LEASED) };
        words[outbound::LEASED].store(before_first, Ordering::Relaxed);
        Ok(words)
    })?;

    ensure!(
        !same_file(input, output),
        "{} is to be read and written",
        input.display()
    );
    let clock = Clock::default();
    let (source, sink) = (
        PcapPort::reading(input, &clock)?,
        PcapPort::writing(output, &clock)?,
    );
    let (wire, host) = match options.task {
        Task::Seal => (sink, source),
        Task::Open => (source, sink),
    };
    let (mut worker, handle) = Worker::new(vec![wire], host, NO_MTU, Pool::on_heap(FRAMES, CHUNK))?;
    handle.publish(Arc::new(database.snapshot()));
    while worker.turn() > 0 {}
    worker.give_up_fragments();

    let (wire, host) = worker.into_ports();
    let mut report = Report {
        read: 0,
        written: 0,
        drops: DropReason::ALL
            .iter()
            .map(|reason| (*reason, handle.counters().dropped(*reason)))
            .filter(|(_, count)| *count > 0)
            .collect(),
    };
    for port in wire.into_iter().chain([host]) {
        report.read += port.read;
        report.written += port.written;
        port.finish()?;
    }
    Ok(report)
}

//! The host port alone: TCP from one tunnel's end through a TAP to a worker, over a wire in memory to the other worker, and through
//! its TAP to the other end. What `iperf` has beside that, a wire and its sockets, is not there, so that what superpackets gain
//! is not hidden by what each packet of a wire costs. With ESP and without, alternated.
//!
//! TAPs only: the `AF_XDP` socket of a veth takes frames of its own worker's UMEM, so that each would have to be copied on
//! the way, and a copy is just what a memory wire does without.

mod joined;
mod pair;

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use culvert_proto::sa::Cipher;
use culvert_tests::lab::{HOST_PORT, Lab, Plan, Side};
use culvert_tests::record::{Host, OnWire, Place, Round, Superpackets, Wire};
use serde_json::Value;

use super::iperf::{load, of};
use super::stage::{OVERHEAD, WIRE_MTU};
use super::{Event, Served, Stop};
use crate::agent::Usage;
use crate::agent::load::{self as iperf3, Load};
use crate::way::Way;
use pair::{Done, Pair};

/// The loads, by name.
pub const LOADS: [&str; 3] = ["tcp-85k", "tcp", "tcp-4"];

/// What to measure.
#[derive(Clone, Debug)]
pub struct Options {
    /// Ciphers.
    pub ciphers: Vec<String>,
    /// Loads, by name.
    pub loads: Vec<String>,
    /// Threads: one for both workers, or one for each.
    pub threads: u32,
    /// How often.
    pub rounds: u32,
    /// Seconds of each run.
    pub seconds: u32,
}

/// Measures, and tells what it does and sees.
///
/// # Errors
/// It cannot begin, or is interrupted. What fails later is told, and the next thing done.
pub fn measure(options: &Options, stop: &Stop, tell: &mut dyn FnMut(Event)) -> Result<()> {
    if let Some(why) = Way::CulvertTap.missing() {
        bail!("{why}");
    }
    let endpoint = new_lab()?.endpoint;
    let cells: Vec<(Way, Option<&str>)> = [Way::NullTap, Way::CulvertTap]
        .into_iter()
        .flat_map(|way| {
            let ciphers = way.ciphers(&options.ciphers);
            ciphers.into_iter().map(move |cipher| (way, cipher))
        })
        .collect();
    tell(Event::Begin {
        place: Place::Namespaces,
        hosts: vec![Host::this()],
        wire: Wire {
            mtu: WIRE_MTU,
            inner_mtu: WIRE_MTU - OVERHEAD,
            geneve: endpoint.to_owned(),
            ..Wire::default()
        },
        steps: cells.len() * options.loads.len() * options.rounds as usize,
        left_out: Vec::new(),
    });
    for round in 1..=options.rounds {
        for &(way, cipher) in &cells {
            let mut stage = None;
            for name in &options.loads {
                stop.check()?;
                let what = format!("round {round}: {}{}, {name}", way.name(), of(cipher));
                tell(Event::Step(what));
                let mut step = || -> Result<_> {
                    // What one load has broken must not hurt the next.
                    let stage = match &mut stage {
                        Some(stage) => stage,
                        none => none.insert(Stage::new(cipher, options.threads)?),
                    };
                    stage.one(load(name)?, options.seconds)
                };
                match step() {
                    Ok((round, served)) => tell(Event::Round {
                        side: way.name().to_owned(),
                        cipher: cipher.map(str::to_owned),
                        load: name.clone(),
                        round: Box::new(round),
                        served: Some(served),
                    }),
                    Err(error) => {
                        stop.check()?;
                        tell(Event::Failed(format!("{error:#}")));
                        stage = None;
                    }
                }
            }
        }
    }
    Ok(())
}

/// Hypervisors whose NICs are there for their addresses, routes and neighbours, and as what leaves by them is captured.
fn new_lab() -> Result<Lab> {
    Lab::new(Plan {
        mtu: WIRE_MTU,
        inner_mtu: WIRE_MTU - OVERHEAD,
        watched: false,
        ..Plan::default()
    })
}

/// Both hypervisors, set up. The workers end before what they work for goes.
struct Stage {
    pair: Pair,
    sealed: bool,
    lab: Lab,
}

impl Stage {
    fn new(cipher: Option<&str>, threads: u32) -> Result<Self> {
        let mut lab = new_lab()?;
        let sealed = cipher.is_some();
        let cipher = cipher.map(Cipher::from_name).transpose()?;
        let pair = Pair::start(&mut lab, cipher, threads)?;
        let server = &lab.sides[1];
        let program = server.namespace.command("iperf3");
        iperf3::serve(&lab.home, program, server.inner)?;
        Ok(Self { pair, sealed, lab })
    }

    /// One load, once.
    fn one(&mut self, load: Load, seconds: u32) -> Result<(Round, Served)> {
        let (before, start) = (Seen::now(self)?, Instant::now());
        let [a, b] = &self.lab.sides;
        let done = a
            .namespace
            .within(|| iperf3::send(&load, b.inner, seconds))?;
        let elapsed = start.elapsed().as_secs_f64();
        let after = Seen::now(self)?;
        let since = |of: fn(&Done) -> u64| of(&after.done) - of(&before.done);
        let wire = OnWire {
            esp: since(|done| done.sealed),
            geneve: since(|done| done.bypassed),
            other: 0,
        };
        ensure!(
            (wire.esp > 0) == self.sealed && (wire.geneve > 0) != self.sealed,
            "{} packets were sealed, {} were not",
            wire.esp,
            wire.geneve
        );
        let mut cores: BTreeMap<String, f64> = BTreeMap::new();
        for (name, seconds) in &after.done.seconds {
            let earlier = before.done.seconds.get(name).copied().unwrap_or_default();
            cores.insert(name.clone(), (seconds - earlier) / elapsed);
        }
        cores.insert("machine".to_owned(), (after.busy - before.busy) / elapsed);
        cores.insert("iperf3 a".to_owned(), done.client);
        cores.insert("iperf3 b".to_owned(), done.server);
        let each = |frames: u64, packets: u64| frames as f64 / packets.max(1) as f64;
        let round = Round {
            gbit_per_s: done.gbit_per_s,
            retransmits: done.retransmits,
            cores,
            wire,
            superpackets: Some(Superpackets {
                cut: each(since(|done| done.from_host), after.read - before.read),
                joined: each(since(|done| done.to_host), after.written - before.written),
            }),
            ..Round::default()
        };
        let served = Served {
            xdp: String::new(),
            af_xdp: String::new(),
            aead: self.pair.backends.clone(),
        };
        Ok((round, served))
    }
}

/// What there is to be seen at one time; differences count.
struct Seen {
    done: Done,
    /// CPU seconds of the machine.
    busy: f64,
    /// Packets that a's worker has read from its TAP.
    read: u64,
    /// Packets that b's worker has written to its TAP.
    written: u64,
}

impl Seen {
    fn now(stage: &Stage) -> Result<Self> {
        let [a, b] = &stage.lab.sides;
        Ok(Self {
            done: stage.pair.done(),
            busy: Usage::of_machine()?.busy,
            read: packets(a, "tx")?,
            written: packets(b, "rx")?,
        })
    }
}

/// Packets, large or small, that the kernel has passed at a side's host port.
fn packets(side: &Side, way: &str) -> Result<u64> {
    let text = side
        .namespace
        .ip(&format!("-j -s link show dev {HOST_PORT}"))?;
    let links: Value = serde_json::from_str(&text)?;
    links[0]["stats64"][way]["packets"]
        .as_u64()
        .with_context(|| format!("{way} packets of {HOST_PORT}"))
}

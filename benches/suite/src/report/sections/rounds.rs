//! The rounds of sides under loads, as tables and as bars.

use culvert_tests::record::{Iperf, Place, Round};

use super::names;
use crate::report::chart::{Chart, Group, Heading, Line, Mark, Row, bars, lines};
use crate::report::document::{Block, Table};
use crate::report::input::Named;
use crate::report::numbers::Spread;

/// What is read of a round, if it is there.
pub(super) type Of = fn(&Round) -> Option<f64>;

/// Every load, in order, with what each side did under it.
#[derive(Debug)]
pub(super) struct Measured {
    pub(super) loads: Vec<Load>,
}

#[derive(Debug)]
pub(super) struct Load {
    pub(super) key: String,
    pub(super) sides: Vec<(String, Spread)>,
}

impl Load {
    pub(super) fn side(&self, side: &str) -> Option<Spread> {
        let found = self.sides.iter().find(|(key, _)| key == side);
        found.map(|(_, spread)| *spread)
    }
}

impl Measured {
    /// Of the sides that have this cipher or none, under loads that `wanted` takes.
    pub(super) fn new(
        iperf: &Iperf,
        cipher: Option<&str>,
        wanted: fn(&str) -> bool,
        of: Of,
    ) -> Self {
        let mut loads: Vec<Load> = Vec::new();
        for series in &iperf.series {
            let fits = series.cipher.is_none() || series.cipher.as_deref() == cipher;
            let Some(spread) = Spread::of(series.rounds.iter().filter_map(of)) else {
                continue;
            };
            if !fits || !wanted(&series.load) {
                continue;
            }
            let side = (series.side.clone(), spread);
            match loads.iter_mut().find(|load| load.key == series.load) {
                Some(load) => load.sides.push(side),
                None => loads.push(Load {
                    key: series.load.clone(),
                    sides: vec![side],
                }),
            }
        }
        loads.sort_by_key(|load| names::load(&load.key));
        for load in &mut loads {
            load.sides.sort_by_key(|(side, _)| names::side(side));
        }
        Self { loads }
    }

    /// Every side, in order.
    pub(super) fn sides(&self) -> Vec<String> {
        let mut sides: Vec<String> = self
            .loads
            .iter()
            .flat_map(|load| &load.sides)
            .map(|(side, _)| side.clone())
            .collect();
        sides.sort_by_key(|side| names::side(side));
        sides.dedup();
        sides
    }

    /// A row for each side, a column for each load.
    pub(super) fn table(&self, unit: &str) -> Table {
        let loads = self.loads.iter().map(|load| names::load(&load.key).1);
        let mut table = Table::of_numbers(std::iter::once(unit.to_owned()).chain(loads));
        for side in self.sides() {
            let cell = |load: &Load| {
                load.side(&side)
                    .map_or_else(String::new, |spread| spread.text())
            };
            let cells = self.loads.iter().map(cell);
            table.row(std::iter::once(names::side(&side).2).chain(cells));
        }
        table
    }

    /// A group for each load, a bar for each side.
    pub(super) fn bars(&self, heading: Heading) -> Option<Chart> {
        let row = |(side, spread): &(String, Spread)| {
            let (_, colour, label) = names::side(side);
            Row {
                label,
                colour,
                mark: Mark::Bar(*spread),
            }
        };
        let group = |load: &Load| Group {
            label: names::load(&load.key).1,
            rows: load.sides.iter().map(row).collect(),
        };
        let groups: Vec<Group> = self.loads.iter().map(group).collect();
        (!groups.is_empty()).then(|| bars(heading, &groups))
    }
}

impl Measured {
    /// UDP: a line for each side, along the bytes of a packet.
    pub(super) fn by_size(&self, heading: Heading) -> Option<Chart> {
        let line = |side: String| {
            let (_, colour, label) = names::side(&side);
            let points = self.loads.iter().filter_map(|load| {
                let bytes = names::bytes(&load.key)?;
                Some((f64::from(bytes), load.side(&side)?))
            });
            Line {
                label,
                colour,
                points: points.collect(),
            }
        };
        let shown: Vec<Line> = self.sides().into_iter().map(line).collect();
        (!shown.is_empty()).then(|| lines(heading, "bytes of payload in a packet", &shown))
    }
}

/// The ciphers of a run, the most telling first; none, if all sides are without.
pub(super) fn ciphers(iperf: &Iperf) -> Vec<Option<&str>> {
    let mut ciphers: Vec<&str> = iperf
        .series
        .iter()
        .filter_map(|series| series.cipher.as_deref())
        .collect();
    ciphers.sort_by_key(|cipher| names::cipher_place(cipher));
    ciphers.dedup();
    match ciphers.is_empty() {
        true => vec![None],
        false => ciphers.into_iter().map(Some).collect(),
    }
}

/// Which load is TCP that takes what it gets.
pub(super) fn is_tcp(load: &str) -> bool {
    is_filling(load) && !is_udp(load)
}

/// Which load is as fast as it can be.
pub(super) fn is_filling(load: &str) -> bool {
    load != names::PACED
}

/// Which load is UDP.
pub(super) fn is_udp(load: &str) -> bool {
    names::bytes(load).is_some()
}

/// A cipher behind a title.
pub(super) fn with_cipher(title: &str, cipher: Option<&str>) -> String {
    cipher.map_or_else(
        || title.to_owned(),
        |cipher| format!("{title}, {}", names::cipher(cipher)),
    )
}

/// File of a chart.
pub(super) fn file(what: &str, named: &Named, cipher: Option<&str>) -> String {
    let cipher = cipher.map_or_else(String::new, |cipher| format!("-{cipher}"));
    let of = match named.record.results.what() {
        "iperf-remote" => "-remote",
        _ => "",
    };
    format!("{what}-{}{of}{cipher}", named.host().class)
}

/// What a run was, above its numbers.
pub(super) fn run(named: &Named, iperf: &Iperf) -> [Block; 2] {
    let host = named.host();
    let place = match iperf.place {
        Place::Namespaces => "two hypervisors as namespaces",
        Place::Guest => "two hypervisors as namespaces of an emulated machine",
        Place::Remote => "two machines",
    };
    let rounds = iperf
        .series
        .iter()
        .map(|series| series.rounds.len())
        .max()
        .unwrap_or_default();
    let wire = &iperf.wire;
    let bridge = if wire.bridge {
        " with a bridge that counts between them"
    } else {
        ""
    };
    let mut text = format!(
        "{}, {place}; {}{bridge}, XDP {}, AF_XDP {}; MTU {}, {} within the tunnel; {rounds} rounds of {} s ([record]({})).",
        host.kernel,
        wire.driver,
        wire.xdp,
        wire.af_xdp,
        wire.mtu,
        wire.inner_mtu,
        iperf.seconds,
        named.file
    );
    if !named.record.complete {
        text += " **The run was interrupted**; this is what was measured until then.";
    }
    [machine(named), Block::Text(text)]
}

/// The machine, as a heading.
pub(super) fn machine(named: &Named) -> Block {
    let host = named.host();
    Block::Heading(format!("{}, {} cores", host.cpu, host.cores))
}

//! The comparison that decides: Culvert beside the kernel's IPsec, under the same load, with the same cipher.

use std::collections::BTreeMap;

use culvert_tests::record::{Iperf, Place, Round};

use super::names;
use super::rounds::{Measured, Of, ciphers, file, is_filling, is_tcp, is_udp, run, with_cipher};
use super::throughput::of_the_machine;
use crate::report::chart::{Chart, Heading};
use crate::report::document::{Block, Table};
use crate::report::input::{Input, Named};
use crate::report::numbers::{Spread, short};

const KERNEL: &str = "kernel-xfrm";
const CULVERT: &str = "culvert";

/// What is compared: its unit, under which loads it says something, and how it is read.
type Measure = (&'static str, fn(&str) -> bool, Of);

pub(super) fn blocks(input: &Input) -> Vec<Block> {
    let with_kernel =
        |(_, iperf): &(&Named, &Iperf)| iperf.series.iter().any(|series| series.side == KERNEL);
    // Rates first, where there are any.
    let (guests, machines): (Vec<_>, Vec<_>) = input
        .iperf()
        .filter(with_kernel)
        .partition(|(_, iperf)| iperf.place == Place::Guest);
    let machines = machines
        .into_iter()
        .flat_map(|(named, iperf)| on_a_machine(named, iperf));
    let guests = guests
        .into_iter()
        .flat_map(|(named, iperf)| in_a_guest(named, iperf));
    let mut blocks: Vec<Block> = machines.chain(guests).collect();
    if !blocks.is_empty() {
        let text = "The same tunnel, load and cipher, protected by Culvert and by the kernel's own ESP. ≈ says that the rounds of the two \
                    overlap, so that which of them is ahead is not sure.";
        blocks.insert(0, Block::Text(text.to_owned()));
    }
    blocks
}

fn on_a_machine(named: &Named, iperf: &Iperf) -> Vec<Block> {
    let rate: Of = |round| Some(round.gbit_per_s);
    let measures: [Measure; 2] = [
        ("Gbit/s", is_filling, rate),
        ("Gbit/s of a core", |_| true, of_the_machine),
    ];
    let mut blocks = Vec::from(run(named, iperf));
    blocks.extend(by_cipher(iperf, |cipher| {
        let heading = Heading {
            file: file("compared", named, cipher),
            title: with_cipher("Culvert and kernel xfrm", cipher),
            unit: "Gbit/s of payload; more is better".to_owned(),
        };
        let tcp = compared(iperf, cipher, is_tcp, rate);
        let chart = tcp.bars(heading).into_iter().collect();
        (chart, table(iperf, cipher, &measures))
    }));
    blocks
}

fn in_a_guest(named: &Named, iperf: &Iperf) -> Vec<Block> {
    let measures: [Measure; 1] = [("instructions of a byte", |_| true, instructions)];
    let shown = by_cipher(iperf, |cipher| {
        let heading = |what: &str, title: &str| Heading {
            file: file(what, named, cipher),
            title: with_cipher(title, cipher),
            unit: "whole guest, for a byte of payload; fewer are better".to_owned(),
        };
        let of = |wanted| Measured::new(iperf, cipher, wanted, instructions);
        let tcp = of(is_tcp).bars(heading("instructions", "Instructions, TCP"));
        let udp = of(is_udp).by_size(heading("instructions-udp", "Instructions, UDP"));
        let charts = tcp.into_iter().chain(udp).collect();
        (charts, table(iperf, cipher, &measures))
    });
    if shown.is_empty() {
        return shown;
    }
    let mut blocks = Vec::from(run(named, iperf));
    blocks.push(Block::Text(
        "Measured in a guest, whose kernel has ESP, which that of the machine around it lacks. The guest's CPU is emulated: its bits a \
         second are worth nothing, and none are shown. What counts is how many instructions the whole guest runs for a byte of payload \
         that arrives (or, in millions, for a megabyte): both hypervisors, their kernels, iperf3 and the wire between them. Fewer are \
         better. An instruction of AES is one like any other here, and waiting for memory costs nothing, so this is no forecast of a \
         rate; it says which of the two does more for the same."
            .to_owned(),
    ));
    blocks.extend(shown);
    blocks
}

fn instructions(round: &Round) -> Option<f64> {
    round.instructions_per_byte
}

/// Charts and table of each cipher; those of all but the first for those who ask.
fn by_cipher(iperf: &Iperf, of: impl Fn(Option<&str>) -> (Vec<Chart>, Table)) -> Vec<Block> {
    let mut shown = Vec::new();
    let mut more = Vec::new();
    for cipher in ciphers(iperf) {
        let (charts, table) = of(cipher);
        if table.rows.is_empty() {
            continue;
        }
        let place = if shown.is_empty() {
            &mut shown
        } else {
            &mut more
        };
        place.extend(charts.into_iter().map(Block::Chart));
        place.push(Block::Table(table));
    }
    if !more.is_empty() {
        shown.push(Block::More("The other ciphers".to_owned(), more));
    }
    shown
}

/// Culvert and the kernel under the loads that both have.
fn compared(iperf: &Iperf, cipher: Option<&str>, wanted: fn(&str) -> bool, of: Of) -> Measured {
    let mut measured = Measured::new(iperf, cipher, wanted, of);
    measured
        .loads
        .retain(|load| load.side(CULVERT).is_some() && load.side(KERNEL).is_some());
    for load in &mut measured.loads {
        load.sides
            .retain(|(side, _)| [CULVERT, KERNEL].contains(&side.as_str()));
    }
    measured
}

/// A row for each load; of each measure both, and what they are to each other.
fn table(iperf: &Iperf, cipher: Option<&str>, measures: &[Measure]) -> Table {
    let mut table = Table::of_numbers([cipher.map_or_else(String::new, names::cipher)]);
    let mut rows: BTreeMap<(u32, String), Vec<String>> = BTreeMap::new();
    for (place, (unit, wanted, of)) in measures.iter().enumerate() {
        table.head.extend([
            format!("Culvert, {unit}"),
            format!("kernel, {unit}"),
            "Culvert to kernel".to_owned(),
        ]);
        for load in compared(iperf, cipher, *wanted, *of).loads {
            let (Some(culvert), Some(kernel)) = (load.side(CULVERT), load.side(KERNEL)) else {
                continue;
            };
            let row = rows.entry(names::load(&load.key)).or_default();
            row.resize(place * 3, String::new());
            row.extend([culvert.text(), kernel.text(), ratio(culvert, kernel)]);
        }
    }
    for ((_, load), mut cells) in rows {
        cells.resize(measures.len() * 3, String::new());
        table.row(std::iter::once(load).chain(cells));
    }
    table
}

/// What one is to the other; only about that, if some rounds say it is the other way round.
fn ratio(culvert: Spread, kernel: Spread) -> String {
    if kernel.median <= 0.0 {
        return String::new();
    }
    let ratio = short(culvert.median / kernel.median);
    match culvert.least <= kernel.most && kernel.least <= culvert.most {
        true => format!("≈ ×{ratio}"),
        false => format!("**×{ratio}**"),
    }
}

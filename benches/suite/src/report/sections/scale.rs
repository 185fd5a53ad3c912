//! What more SAs and more workers change.

use std::collections::BTreeSet;

use culvert_tests::record::{Point, Scale};

use super::names;
use super::rounds::machine;
use crate::report::chart::{Heading, Line, lines};
use crate::report::document::{Block, Table};
use crate::report::input::{Input, Named};
use crate::report::numbers::{Spread, count, short};

pub(super) fn blocks(input: &Input) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (named, scale) in input.scale() {
        blocks.push(machine(named));
        let host = named.host();
        let cipher = names::cipher(&scale.cipher);
        blocks.push(Block::Text(format!(
            "{}; {cipher} ([record]({})).",
            host.kernel, named.file
        )));
        let sas: BTreeSet<u32> = scale.points.iter().map(|point| point.sas).collect();
        let workers: BTreeSet<u32> = scale.points.iter().map(|point| point.workers).collect();
        if sas.len() > 1 {
            blocks.push(Block::Chart(by_sas(named, scale, &workers)));
            blocks.push(Block::Chart(memory(named, scale, &workers)));
        }
        if workers.len() > 1 {
            blocks.push(Block::Chart(by_workers(named, scale, &sas)));
        }
        blocks.push(Block::Table(table(scale)));
    }
    if !blocks.is_empty() {
        let text = "All SAs are in use, one after the other, which is the worst for caches. Where the workers of both sides, the kernel and \
                    the load have more threads than the machine has cores, more workers share what there is, and show no more than \
                    that it works.";
        blocks.insert(0, Block::Text(text.to_owned()));
    }
    blocks
}

fn heading(named: &Named, what: &str, title: &str, unit: &str) -> Heading {
    Heading {
        file: format!("scale-{what}-{}", named.host().class),
        title: title.to_owned(),
        unit: unit.to_owned(),
    }
}

/// One line for each of `of`, along what `x` says.
fn along(
    scale: &Scale,
    of: &BTreeSet<u32>,
    label: fn(u32) -> String,
    [group, x]: [fn(&Point) -> u32; 2],
    y: impl Fn(&Point) -> Option<Spread>,
) -> Vec<Line> {
    let line = |(colour, &key): (usize, &u32)| {
        let points = scale.points.iter().filter(|point| group(point) == key);
        let mut points: Vec<_> = points
            .filter_map(|point| Some((f64::from(x(point)), y(point)?)))
            .collect();
        points.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        Line {
            label: label(key),
            colour,
            points,
        }
    };
    of.iter().enumerate().map(line).collect()
}

fn workers(count: u32) -> String {
    match count {
        1 => "1 worker:".to_owned(),
        count => format!("{count} workers:"),
    }
}

fn packets(point: &Point) -> Option<Spread> {
    Spread::of(point.mpps.iter().copied())
}

fn by_sas(named: &Named, scale: &Scale, of: &BTreeSet<u32>) -> crate::report::chart::Chart {
    let shown = along(
        scale,
        of,
        workers,
        [|point| point.workers, |point| point.sas],
        packets,
    );
    let heading = heading(
        named,
        "sas",
        "Sealed packets by number of SAs",
        "10⁶ packets/s that arrived",
    );
    lines(heading, "outbound SAs of a side", &shown)
}

fn memory(named: &Named, scale: &Scale, of: &BTreeSet<u32>) -> crate::report::chart::Chart {
    let one = |value| Spread::of([value]);
    let keys = [|point: &Point| point.workers, |point: &Point| point.sas];
    let mut shown = along(
        scale,
        of,
        |count| format!("datapath, {}", workers(count)),
        keys,
        |point| one(point.datapath_mib),
    );
    // The key manager does not know of workers.
    let first: BTreeSet<u32> = of.first().into_iter().copied().collect();
    let keymgr = along(
        scale,
        &first,
        |_| "key manager:".to_owned(),
        keys,
        |point| one(point.keymgr_mib),
    );
    shown.extend(keymgr.into_iter().map(|line| Line { colour: 5, ..line }));
    let heading = heading(
        named,
        "memory",
        "Memory by number of SAs",
        "MiB resident, one side",
    );
    lines(heading, "outbound SAs of a side", &shown)
}

fn by_workers(named: &Named, scale: &Scale, of: &BTreeSet<u32>) -> crate::report::chart::Chart {
    let label = |sas: u32| match sas {
        1 => "1 SA:".to_owned(),
        sas => format!("{} SAs:", count(sas.into())),
    };
    let shown = along(
        scale,
        of,
        label,
        [|point| point.sas, |point| point.workers],
        packets,
    );
    let heading = heading(
        named,
        "workers",
        "Sealed packets by number of workers",
        "10⁶ packets/s that arrived",
    );
    lines(heading, "workers of a side", &shown)
}

fn table(scale: &Scale) -> Table {
    let mut table = Table::of_numbers([
        "SAs, workers",
        "10⁶ packets/s",
        "TCP over one, Gbit/s",
        "datapath, MiB",
        "key manager, MiB",
        "all there after, s",
        "idle, % of a core",
    ]);
    let mut points: Vec<&Point> = scale.points.iter().collect();
    points.sort_by_key(|point| (point.workers, point.sas));
    for point in points {
        let rounds = |rounds: &[f64]| {
            Spread::of(rounds.iter().copied()).map_or_else(String::new, |spread| spread.text())
        };
        table.row([
            format!("{}, {}", count(point.sas.into()), point.workers),
            rounds(&point.mpps),
            rounds(&point.gbit_per_s),
            short(point.datapath_mib),
            short(point.keymgr_mib),
            short(point.filled_in_s),
            short(point.idle_percent),
        ]);
    }
    table
}

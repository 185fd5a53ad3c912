//! The host port alone: two workers whose wire is memory.

use culvert_tests::record::{Loop, Round, Series};

use super::names;
use super::rounds::machine;
use crate::report::document::{Block, Table};
use crate::report::input::Input;
use crate::report::numbers::{Spread, short};

pub(super) fn blocks(input: &Input) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (named, looped) in input.loops() {
        blocks.push(machine(named));
        let threads = match looped.threads {
            1 => "one thread takes turns with both workers".to_owned(),
            threads => format!("{threads} threads"),
        };
        blocks.push(Block::Text(format!(
            "{}; {threads}; inner MTU {}; Geneve by the {} ([record]({})).",
            named.host().kernel,
            looped.inner_mtu,
            looped.geneve,
            named.file
        )));
        blocks.push(Block::Table(table(looped)));
    }
    if !blocks.is_empty() {
        let text = "TCP from one hypervisor to the other, by TAPs as host ports, with the workers of both in one process and memory in the \
                    place of the wire: packets are sealed, opened and handed back, but nothing is spent on a wire. Beside it the same with \
                    policies that bypass, so without ESP. What a core of the workers makes depends less on who else is on the machine.";
        blocks.insert(0, Block::Text(text.to_owned()));
    }
    blocks
}

fn table(looped: &Loop) -> Table {
    let mut table = Table::of_numbers([
        "",
        "Gbit/s",
        "of that without ESP",
        "Gbit/s of a worker's core",
        "cores of the workers",
        "of the machine",
        "packets of a superpacket, out",
        "in",
    ]);
    let mut series: Vec<&Series> = looped.series.iter().collect();
    series.sort_by_key(|series| {
        let cipher = series.cipher.as_deref().map(names::cipher_place);
        (
            names::load(&series.load),
            names::side(&series.side).0,
            cipher,
        )
    });
    for one in series {
        let null = looped
            .series
            .iter()
            .find(|null| null.cipher.is_none() && null.load == one.load);
        let of = |series: &Series| spread(series, |round| Some(round.gbit_per_s));
        let part = match (of(one), null.and_then(of)) {
            (Some(rate), Some(null)) if one.cipher.is_some() => short(rate.median / null.median),
            _ => "–".to_owned(),
        };
        let text = |of: fn(&Round) -> Option<f64>| {
            spread(one, of).map_or_else(String::new, |spread| spread.text())
        };
        let cipher = one.cipher.as_deref().map(names::cipher);
        let cipher = cipher.map_or_else(String::new, |cipher| format!(", {cipher}"));
        let (load, side) = (names::load(&one.load).1, names::side(&one.side).2);
        table.row([
            format!("{load}: {side}{cipher}"),
            text(|round| Some(round.gbit_per_s)),
            part,
            text(|round| Some(round.gbit_per_s / workers(round)?)),
            text(workers),
            text(|round| round.cores.get("machine").copied()),
            text(|round| Some(round.superpackets?.cut)),
            text(|round| Some(round.superpackets?.joined)),
        ]);
    }
    table
}

fn spread(series: &Series, of: impl Fn(&Round) -> Option<f64>) -> Option<Spread> {
    Spread::of(series.rounds.iter().filter_map(of))
}

/// Cores that the workers' threads kept busy together, if they were seen to.
fn workers(round: &Round) -> Option<f64> {
    let of = round.cores.iter();
    let of = of.filter(|(name, _)| name.starts_with("worker"));
    let sum: f64 = of.map(|(_, cores)| cores).sum();
    (sum > 0.0).then_some(sum)
}

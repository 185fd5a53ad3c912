//! Pieces of a packet's way in memory: no rings, no kernel, one core.

use std::collections::BTreeMap;

use culvert_tests::record::{Clocks, Micro, Time};

use super::names;
use super::rounds::machine;
use crate::report::chart::{Heading, Line, lines};
use crate::report::document::{Block, Table};
use crate::report::input::{Input, Named};
use crate::report::numbers::{Spread, short};

/// Clocks of a packet in VPP's esp4-encrypt-tun and esp4-decrypt-tun nodes at 64, 512 and 1400 bytes, as they were measured on a
/// Sapphire Rapids of 2.3 GHz.
const VPP: [(&str, [(u32, f64); 3]); 2] = [
    ("pipeline/out", [(64, 171.0), (512, 279.0), (1400, 460.0)]),
    ("pipeline/in", [(64, 174.0), (512, 278.0), (1400, 466.0)]),
];
const VPP_NAME: &str = "VPP, elsewhere";

/// Ways of a packet, as records have them.
const WAYS: [(&str, &str, &str); 4] = [
    ("pipeline/out", "out", "Out: look up, number, seal"),
    ("pipeline/in", "in", "In: open, replay window, policy"),
    ("aead/seal", "seal", "The cipher alone, sealing"),
    ("aead/open", "open", "The cipher alone, opening"),
];

pub(super) fn clocks(input: &Input) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (named, micro) in input.micro().filter(|(_, micro)| !micro.clocks.is_empty()) {
        blocks.extend(head(named));
        for (what, file, title) in WAYS {
            blocks.extend(way(named, micro, what, file, title));
        }
        blocks.push(Block::More(
            "As a table, every cipher".to_owned(),
            vec![Block::Table(all(micro))],
        ));
    }
    if !blocks.is_empty() {
        let text = "Clocks of the time stamp counter, which goes at the CPU's nominal frequency, for one packet in a batch, in memory: \
                    median, with a whisker down to the best. Beside it stand VPP's esp4 nodes, on another machine (Sapphire Rapids, \
                    2.3 GHz): what a good implementation takes elsewhere, not a comparison on the same CPU.";
        blocks.insert(0, Block::Text(text.to_owned()));
    }
    blocks
}

fn head(named: &Named) -> [Block; 2] {
    let host = named.host();
    let frequency = host.tsc_ghz.map_or_else(String::new, |ghz| {
        format!("; time stamp counter at {} GHz", short(ghz))
    });
    let features = match host.features.is_empty() {
        true => String::new(),
        false => format!("; {}", host.features.join(", ")),
    };
    let text = format!(
        "{}{frequency}{features} ([record]({})).",
        host.kernel, named.file
    );
    [machine(named), Block::Text(text)]
}

fn way(named: &Named, micro: &Micro, what: &str, file: &str, title: &str) -> Option<Block> {
    let of_it = || micro.clocks.iter().filter(|clocks| clocks.what == what);
    let cipher = of_it()
        .map(|clocks| clocks.cipher.as_str())
        .min_by_key(|cipher| names::cipher_place(cipher))?;
    // The largest batch is the worker's.
    let batch = of_it().map(|clocks| clocks.batch).max()?;
    let mut backends: BTreeMap<&str, Vec<(f64, Spread)>> = BTreeMap::new();
    for clocks in of_it().filter(|clocks| clocks.cipher == cipher && clocks.batch == batch) {
        backends
            .entry(&clocks.backend)
            .or_default()
            .push((f64::from(clocks.bytes), spread(clocks)));
    }
    let mut shown = Vec::new();
    for ((label, mut points), colour) in backends
        .into_iter()
        .zip([0, 4, 5, 2, 3].into_iter().cycle())
    {
        points.sort_by(|(one, _), (other, _)| one.total_cmp(other));
        shown.push(Line {
            label: label.to_owned(),
            colour,
            points,
        });
    }
    if let Some((_, points)) = VPP.iter().find(|(of, _)| *of == what) {
        let points = points.iter().map(|&(bytes, clocks)| {
            let spread = Spread {
                median: clocks,
                least: clocks,
                most: clocks,
            };
            (f64::from(bytes), spread)
        });
        shown.push(Line {
            label: VPP_NAME.to_owned(),
            colour: 6,
            points: points.collect(),
        });
    }
    let heading = Heading {
        file: format!("clocks-{file}-{}", named.host().class),
        title: format!("{title}, {}", names::cipher(cipher)),
        unit: format!("clocks of a packet, {batch} together; fewer are better"),
    };
    Some(Block::Chart(lines(heading, "bytes of payload", &shown)))
}

fn spread(clocks: &Clocks) -> Spread {
    Spread {
        median: clocks.median,
        least: clocks.best,
        most: clocks.median,
    }
}

fn all(micro: &Micro) -> Table {
    let mut table = Table::of_numbers([
        "",
        "bytes",
        "batch",
        "median",
        "best",
        "bare cipher, best",
        "best to bare",
        "VPP, elsewhere",
    ]);
    let mut clocks: Vec<&Clocks> = micro.clocks.iter().collect();
    let place = |what: &str| WAYS.iter().position(|(known, ..)| *known == what);
    clocks.sort_by(|one, other| {
        let key = |clocks: &Clocks| (place(&clocks.what), clocks.bytes, clocks.batch);
        (names::cipher_place(&one.cipher), &one.backend)
            .cmp(&(names::cipher_place(&other.cipher), &other.backend))
            .then_with(|| key(one).cmp(&key(other)))
    });
    for clocks in clocks {
        let vpp = VPP.iter().find(|(what, _)| *what == clocks.what);
        let vpp =
            vpp.and_then(|(_, points)| points.iter().find(|(bytes, _)| *bytes == clocks.bytes));
        table.row([
            format!(
                "{}, {}, {}",
                clocks.what,
                names::cipher(&clocks.cipher),
                clocks.backend
            ),
            clocks.bytes.to_string(),
            clocks.batch.to_string(),
            short(clocks.median),
            short(clocks.best),
            clocks.bare.map_or_else(String::new, short),
            clocks
                .bare
                .filter(|&bare| bare > 0.0)
                .map_or_else(String::new, |bare| {
                    format!("×{}", short(clocks.best / bare))
                }),
            vpp.map_or_else(String::new, |&(_, clocks)| short(clocks)),
        ]);
    }
    table
}

/// Criterion's: ESP beside the bare cipher, and whatever else was timed.
pub(super) fn times(input: &Input) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (named, micro) in input.micro().filter(|(_, micro)| !micro.times.is_empty()) {
        blocks.extend(head(named));
        blocks.extend(named.record.note.clone().map(Block::Text));
        let mut table =
            Table::of_numbers(["", "bytes", "cipher", "with ESP", "", "Gbit/s with ESP"]);
        let mut others = Table::of_numbers(["", "ns"]);
        for time in &micro.times {
            match (esp(&micro.times, time), Spread::of(time.ns.iter().copied())) {
                (Pair::Esp(name, bytes, bare), Some(esp)) => table.row([
                    name.to_owned(),
                    bytes.to_string(),
                    bare.text(),
                    esp.text(),
                    format!("×{}", short(esp.median / bare.median)),
                    short(f64::from(bytes) * 8.0 / esp.median),
                ]),
                (Pair::Other, Some(spread)) => others.row([time.id.clone(), spread.text()]),
                _ => {}
            }
        }
        for (summary, table) in [
            ("Sealing and opening beside the bare cipher", table),
            ("Everything else", others),
        ] {
            if !table.rows.is_empty() {
                blocks.push(Block::More(summary.to_owned(), vec![Block::Table(table)]));
            }
        }
    }
    if !blocks.is_empty() {
        let text = "By criterion, in memory, on one core: how long the ESP core takes for a packet, beside the bare cipher on a text of \
                    the same length in the same run. Nanoseconds depend on the machine and on who else is on it; the factor between the two \
                    hardly does.";
        blocks.insert(0, Block::Text(text.to_owned()));
    }
    blocks
}

enum Pair<'a> {
    /// Time of ESP: name, bytes, and the bare cipher's time.
    Esp(&'a str, u32, Spread),
    /// The bare cipher's, which is shown beside that.
    Bare,
    Other,
}

/// What a time is, as its name says: `seal/aes256gcm16/aws-lc-rs/esp/1400`.
fn esp<'a>(times: &'a [Time], time: &'a Time) -> Pair<'a> {
    if time.id.contains("/bare/") {
        return Pair::Bare;
    }
    let pair = || {
        let (name, bytes) = time.id.split_once("/esp/")?;
        let bare = times
            .iter()
            .find(|other| other.id == format!("{name}/bare/{bytes}"))?;
        Some(Pair::Esp(
            name,
            bytes.parse().ok()?,
            Spread::of(bare.ns.iter().copied())?,
        ))
    };
    pair().unwrap_or(Pair::Other)
}

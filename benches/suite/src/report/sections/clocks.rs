//! Clocks of pieces of a packet's way in memory: no rings, no kernel, one core.

use std::collections::BTreeMap;

use culvert_tests::record::{Clocks, Micro};

use super::names;
use super::rounds::machine;
use crate::report::chart::{Chart, Heading, Line, lines};
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
    ("seal", "seal", "The cipher alone, sealing"),
    ("open", "open", "The cipher alone, opening"),
];

/// What was measured, in the order in which it is shown: cipher, backend, way, bytes, batch.
type Key<'a> = ((usize, &'a str), &'a str, usize, u32, u32);

/// All passes of it.
struct Piece {
    /// Median of the passes' medians; from the best of all to the worst median.
    clocks: Spread,
    /// Best of the bare cipher.
    bare: Option<f64>,
}

pub(super) fn blocks(input: &Input) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (named, micro) in input.micro().filter(|(_, micro)| !micro.clocks.is_empty()) {
        blocks.extend(head(named));
        let pieces = pieces(micro);
        let charts = (0..WAYS.len()).filter_map(|way| chart(named, &pieces, way));
        blocks.extend(charts.map(Block::Chart));
        blocks.push(Block::More(
            "As a table, every cipher".to_owned(),
            vec![Block::Table(table(&pieces))],
        ));
    }
    if !blocks.is_empty() {
        let mut text = "Clocks of the time stamp counter, which goes at the CPU's nominal frequency, for one packet, in memory: median of \
                        the passes, with a whisker from the best to the worst."
            .to_owned();
        let whole = |(_, micro): (_, &Micro)| {
            micro
                .clocks
                .iter()
                .any(|clocks| clocks.what.starts_with("pipeline/"))
        };
        if input.micro().any(whole) {
            text += " Beside the whole way stand VPP's esp4 nodes, on another machine (Sapphire Rapids, 2.3 GHz): what a good \
                     implementation takes elsewhere, not a comparison on the same CPU.";
        }
        blocks.insert(0, Block::Text(text));
    }
    blocks
}

/// The machine, with what matters to a cipher.
pub(super) fn head(named: &Named) -> [Block; 2] {
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

fn pieces(micro: &Micro) -> BTreeMap<Key<'_>, Piece> {
    let mut passes: BTreeMap<Key, Vec<_>> = BTreeMap::new();
    for clocks in &micro.clocks {
        // The bare ciphers are `aead/seal` or only `seal`.
        let what = clocks.what.trim_start_matches("aead/");
        if let Some(way) = WAYS.iter().position(|(key, ..)| *key == what) {
            let cipher = names::cipher_place(&clocks.cipher);
            let key = (
                cipher,
                clocks.backend.as_str(),
                way,
                clocks.bytes,
                clocks.batch,
            );
            passes.entry(key).or_default().push(clocks);
        }
    }
    let piece = |(key, passes): (_, Vec<&Clocks>)| {
        let medians = Spread::of(passes.iter().map(|clocks| clocks.median))?;
        let best = Spread::of(passes.iter().map(|clocks| clocks.best))?;
        let bare = Spread::of(passes.iter().filter_map(|clocks| clocks.bare));
        let piece = Piece {
            clocks: Spread {
                least: best.least,
                ..medians
            },
            bare: bare.map(|bare| bare.least),
        };
        Some((key, piece))
    };
    passes.into_iter().filter_map(piece).collect()
}

/// One way: all backends of the first cipher.
fn chart(named: &Named, pieces: &BTreeMap<Key, Piece>, way: usize) -> Option<Chart> {
    let (what, file, title) = WAYS.get(way)?;
    let of_it = || pieces.iter().filter(|((_, _, of, ..), _)| *of == way);
    let cipher = of_it().map(|((cipher, ..), _)| *cipher).min()?;
    // The largest batch is the worker's.
    let batch = of_it().map(|((.., batch), _)| *batch).max()?;
    let mut backends: BTreeMap<&str, Vec<(f64, Spread)>> = BTreeMap::new();
    for (&(of, backend, _, bytes, together), piece) in of_it() {
        if of == cipher && together == batch {
            let point = (f64::from(bytes), piece.clocks);
            backends.entry(backend).or_default().push(point);
        }
    }
    let mut shown = Vec::new();
    for ((label, points), colour) in backends
        .into_iter()
        .zip([0, 4, 5, 2, 3].into_iter().cycle())
    {
        let label = label.to_owned();
        shown.push(Line {
            label,
            colour,
            points,
        });
    }
    if let Some((_, points)) = VPP.iter().find(|(of, _)| of == what) {
        let points = points
            .iter()
            .filter_map(|&(bytes, clocks)| Some((f64::from(bytes), Spread::of([clocks])?)));
        shown.push(Line {
            label: VPP_NAME.to_owned(),
            colour: 6,
            points: points.collect(),
        });
    }
    let together = match batch {
        1 => "one by one".to_owned(),
        batch => format!("{batch} together"),
    };
    let heading = Heading {
        file: format!("clocks-{file}-{}", named.host().class),
        title: format!("{title}, {}", names::cipher(cipher.1)),
        unit: format!("clocks of a packet, {together}; fewer are better"),
    };
    Some(lines(heading, "bytes of payload", &shown))
}

fn table(pieces: &BTreeMap<Key, Piece>) -> Table {
    let mut table = Table::of_numbers([
        "",
        "bytes",
        "together",
        "median",
        "best",
        "bare cipher, best",
        "best to bare",
        "VPP, elsewhere",
    ]);
    for (&((_, cipher), backend, way, bytes, batch), Piece { clocks, bare }) in pieces {
        let (what, file, _) = WAYS.get(way).copied().unwrap_or_default();
        let vpp = VPP.iter().find(|(of, _)| *of == what);
        let vpp = vpp.and_then(|(_, points)| points.iter().find(|(of, _)| *of == bytes));
        let ratio = bare
            .filter(|&bare| bare > 0.0)
            .map(|bare| clocks.least / bare);
        table.row([
            format!("{}, {backend}, {file}", names::cipher(cipher)),
            bytes.to_string(),
            batch.to_string(),
            short(clocks.median),
            short(clocks.least),
            bare.map_or_else(String::new, short),
            ratio.map_or_else(String::new, |ratio| format!("×{}", short(ratio))),
            vpp.map_or_else(String::new, |&(_, clocks)| short(clocks)),
        ]);
    }
    table
}

//! Criterion's times: nanoseconds of a packet.

use culvert_tests::record::Time;

use super::clocks::head;
use crate::report::document::{Block, Table};
use crate::report::input::Input;
use crate::report::numbers::{Spread, short};

/// ESP beside the bare cipher, and whatever else was timed.
pub(super) fn blocks(input: &Input) -> Vec<Block> {
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

//! Instructions of a packet, as the guard in the tests counts them.

use super::names;
use crate::report::chart::{Group, Heading, Mark, Row, bars};
use crate::report::document::{Block, Table};
use crate::report::input::{INSTRUCTIONS, Input, Packet};
use crate::report::numbers::{Spread, short};

pub(super) fn blocks(input: &Input) -> Vec<Block> {
    let Some(counted) = &input.instructions else {
        return Vec::new();
    };
    let text = format!(
        "Counted by callgrind ({}, {}), and guarded: a test fails when a packet takes more than this. The count is the same on a busy \
         machine as on an idle one. Callgrind's CPU has nothing newer than AVX2, so that the cipher's share is not what an AVX-512 \
         machine runs; what is outside the cipher is ([record]({INSTRUCTIONS}); `{}`).",
        counted.valgrind, counted.rustc, counted.command
    );
    let mut table = Table::of_numbers(["", "bytes", "instructions", "outside the cipher"]);
    let mut groups: Vec<Group> = Vec::new();
    for packet in &counted.packets {
        table.row([
            name(packet).to_owned(),
            packet.payload.to_string(),
            short(packet.instructions),
            short(packet.outside_the_cipher),
        ]);
        let row = Row {
            label: format!("{} bytes", packet.payload),
            colour: 0,
            mark: Mark::Bar(one(packet.outside_the_cipher)),
        };
        match groups
            .last_mut()
            .filter(|group| group.label == name(packet))
        {
            Some(group) => group.rows.push(row),
            None => groups.push(Group {
                label: name(packet).to_owned(),
                rows: vec![row],
            }),
        }
    }
    let heading = Heading {
        file: "instructions-of-a-packet".to_owned(),
        title: format!(
            "Instructions outside the cipher, {}",
            names::cipher(&counted.cipher)
        ),
        unit: format!("{}; fewer are better", counted.backend),
    };
    vec![
        Block::Text(text),
        Block::Chart(bars(heading, &groups)),
        Block::Table(table),
    ]
}

fn name(packet: &Packet) -> &str {
    match packet.what.as_str() {
        "seal" => "ESP core: seal",
        "open" => "ESP core: open",
        "pipeline out" | "pipeline/out" => "The whole way out",
        "pipeline in" | "pipeline/in" => "The whole way in",
        other => other,
    }
}

fn one(value: f64) -> Spread {
    Spread {
        median: value,
        least: value,
        most: value,
    }
}

//! The fault campaign: how long nothing came, by what was done.

use culvert_tests::campaign::events::Kind;
use culvert_tests::record::{Fault, Faults};

use crate::report::document::{Block, Table};
use crate::report::input::{Input, Named};
use crate::report::numbers::{Spread, count, short};

pub(super) fn blocks(input: &Input) -> Vec<Block> {
    let campaigns: Vec<(&Named, &Faults)> = input.faults().collect();
    if campaigns.is_empty() {
        return Vec::new();
    }
    let text = "The daemons, the NIC and the disk are hurt at random moments, under UDP and TCP both ways, while every packet of the wire is \
                looked at. A campaign ends with an error if one of them is in clear, if a sequence number or an IV comes twice, or if \
                traffic does not flow again. How long no numbered UDP packet came, in ms, median (worst), and in how many events:";
    let mut blocks = vec![Block::Text(text.to_owned())];
    let head = campaigns
        .iter()
        .map(|(named, _)| named.host().class.clone());
    let mut table = Table::of_numbers(std::iter::once(String::new()).chain(head));
    for kind in Kind::ALL.map(Kind::name) {
        let cells: Vec<String> = campaigns
            .iter()
            .map(|(_, faults)| cell(&faults.events, kind))
            .collect();
        if cells.iter().any(|cell| !cell.is_empty()) {
            table.row(std::iter::once(kind.to_owned()).chain(cells));
        }
    }
    blocks.push(Block::Table(table));
    blocks.push(Block::List(campaigns.into_iter().map(campaign).collect()));
    blocks
}

fn cell(events: &[Fault], kind: &str) -> String {
    let gaps: Vec<f64> = events
        .iter()
        .filter(|event| event.kind == kind)
        .map(|event| event.gap_ms)
        .collect();
    let count = gaps.len();
    Spread::of(gaps).map_or_else(String::new, |gap| {
        format!("{} ({}), {count}", short(gap.median), short(gap.most))
    })
}

/// What a campaign was.
fn campaign((named, faults): (&Named, &Faults)) -> String {
    let mut text = format!(
        "{} ([record]({})): {}, {}; {} events, {} packets of ESP",
        named.host().class,
        named.file,
        named.host().cpu,
        named.host().kernel,
        faults.events.len(),
        count(faults.esp_packets)
    );
    if let Some(traffic) = faults.traffic {
        text += &format!(
            " under {} SAs; {} of {} UDP packets came",
            traffic.sas,
            count(traffic.udp_received),
            count(traffic.udp_sent)
        );
    }
    if !faults.peer.is_empty() {
        let counts: Vec<String> = faults
            .peer
            .iter()
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        text += &format!("; the peer counted {}", counts.join(", "));
    }
    text += ".";
    if let Some(note) = &named.record.note {
        text += " ";
        text += note;
    }
    text
}

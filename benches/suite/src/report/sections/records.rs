//! What each record is: where the numbers come from, how they come about again, and what is missing.

use culvert_tests::record::{Iperf, Results};

use crate::report::document::{Block, Table};
use crate::report::input::{Input, Named};

pub(super) fn blocks(input: &Input) -> Vec<Block> {
    if input.newest.is_empty() {
        return Vec::new();
    }
    let text = "Every round is in the records, whose shape is [schema.json](schema.json).";
    let mut blocks = vec![
        Block::Text(text.to_owned()),
        Block::Table(table(&input.newest)),
        Block::Text("The commands, and what must be known beside that:".to_owned()),
        Block::List(input.newest.iter().map(about).collect()),
    ];
    if !input.older.is_empty() {
        let older = vec![
            Block::Table(table(&input.older)),
            Block::List(input.older.iter().map(about).collect()),
        ];
        blocks.push(Block::More(
            "Older records, which newer ones stand for".to_owned(),
            older,
        ));
    }
    blocks
}

fn table(records: &[Named]) -> Table {
    let mut table = Table {
        head: [
            "Record",
            "Commit",
            "CPU",
            "Kernel, compiler",
            "Wire",
            "Complete",
        ]
        .map(str::to_owned)
        .into(),
        ..Table::default()
    };
    for named in records {
        let (record, host) = (&named.record, named.host());
        let mut cpu = format!("{}, {} cores", host.cpu, host.cores);
        if !host.features.is_empty() {
            cpu += &format!("; {}", host.features.join(" "));
        }
        let wire = match &record.results {
            Results::Iperf(iperf) => wire(iperf),
            _ => "–".to_owned(),
        };
        let date_and_what = format!(
            "[{}, {}, {}]({})",
            record.date,
            host.class,
            record.results.what(),
            named.file
        );
        table.row([
            date_and_what,
            format!("`{}`", record.commit),
            cpu,
            format!("{}; {}", host.kernel, compiler(&host.rustc)),
            wire,
            if record.complete {
                "yes"
            } else {
                "**no, interrupted**"
            }
            .to_owned(),
        ]);
    }
    table
}

/// Without the commit and the day that `rustc --version` has in brackets.
fn compiler(rustc: &str) -> &str {
    rustc.split(" (").next().unwrap_or(rustc)
}

fn wire(iperf: &Iperf) -> String {
    let wire = &iperf.wire;
    let speed = wire
        .speed
        .map_or_else(String::new, |speed| format!(", {speed} Mbit/s"));
    let peer = iperf.peer.as_ref();
    let peer = peer.map_or_else(String::new, |peer| {
        format!(
            "; the other machine: {}, {} cores, {}",
            peer.cpu, peer.cores, peer.kernel
        )
    });
    let bridge = if wire.bridge { " and a bridge" } else { "" };
    format!(
        "{}{bridge}{speed}; XDP {}, AF_XDP {}; MTU {}; Geneve by the {}{peer}",
        wire.driver, wire.xdp, wire.af_xdp, wire.mtu, wire.geneve
    )
}

fn about(named: &Named) -> String {
    let commands: Vec<String> = named
        .record
        .commands
        .iter()
        .map(|command| format!("`{command}`"))
        .collect();
    let mut text = format!("[{0}]({0}): {1}.", named.file, commands.join(", "));
    if let Some(note) = &named.record.note {
        text += " ";
        text += note;
    }
    if let Results::Iperf(iperf) = &named.record.results {
        if !iperf.aead.is_empty() {
            let by = |(cipher, backend): (&String, &String)| format!("{cipher} by {backend}");
            let ciphers: Vec<String> = iperf.aead.iter().map(by).collect();
            text += &format!(" Culvert's ciphers: {}.", ciphers.join(", "));
        }
        if !iperf.left_out.is_empty() {
            text += &format!(" Left out: {}.", iperf.left_out.join("; "));
        }
    }
    text
}

//! Round trips under load.

use super::names;
use super::rounds::{Measured, ciphers, file, run, with_cipher};
use super::throughput::real;
use crate::report::chart::{Group, Heading, Mark, Row, bars};
use crate::report::document::{Block, Table};
use crate::report::input::Input;

pub(super) fn blocks(input: &Input) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (named, iperf) in real(input) {
        let mut charts = Vec::new();
        let mut tables = Vec::new();
        for cipher in ciphers(iperf) {
            let [half, most, all] = [
                Measured::new(
                    iperf,
                    cipher,
                    |_| true,
                    |round| round.latency.map(|latency| latency.p50 / 1000.0),
                ),
                Measured::new(
                    iperf,
                    cipher,
                    |_| true,
                    |round| round.latency.map(|latency| latency.p99 / 1000.0),
                ),
                Measured::new(
                    iperf,
                    cipher,
                    |_| true,
                    |round| round.latency.map(|latency| latency.p999 / 1000.0),
                ),
            ];
            let mut table = Table::of_numbers([&with_cipher("ms", cipher), "p50", "p99", "p99.9"]);
            let mut groups = Vec::new();
            for ((half, most), all) in half.loads.iter().zip(&most.loads).zip(&all.loads) {
                let (_, load) = names::load(&half.key);
                let mut rows = Vec::new();
                for (side, p50) in &half.sides {
                    let (Some(p99), Some(p999)) = (most.side(side), all.side(side)) else {
                        continue;
                    };
                    let (_, colour, label) = names::side(side);
                    table.row([
                        format!("{load}: {label}"),
                        p50.text(),
                        p99.text(),
                        p999.text(),
                    ]);
                    let mark = Mark::Points([p50.median, p99.median, p999.median]);
                    rows.push(Row {
                        label,
                        colour,
                        mark,
                    });
                }
                groups.push(Group { label: load, rows });
            }
            if groups.is_empty() {
                continue;
            }
            let heading = Heading {
                file: file("latency", named, cipher),
                title: with_cipher("Round trips", cipher),
                unit: "ms; ● p50, ◆ p99, ▮ p99.9; less is better; logarithmic".to_owned(),
            };
            // One cipher stands for all, the tables have the others.
            if charts.is_empty() {
                charts.push(Block::Chart(bars(heading, &groups)));
            }
            tables.push(Block::Table(table));
        }
        if charts.is_empty() {
            continue;
        }
        blocks.extend(run(named, iperf));
        blocks.extend(charts);
        blocks.push(Block::More("As tables, every cipher".to_owned(), tables));
    }
    if !blocks.is_empty() {
        let text = "Round trips of probes through the tunnel while the load fills it. Queues are most of them: a side that moves more \
                    has other queues. Where cores are shared, so is the wait for one.";
        blocks.insert(0, Block::Text(text.to_owned()));
    }
    blocks
}

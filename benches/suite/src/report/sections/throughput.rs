//! Throughput: as it is, of a core, and by the size of packets.

use culvert_tests::record::{Iperf, Place, Round};

use super::rounds::{Measured, ciphers, file, is_tcp, is_udp, run, with_cipher};
use crate::report::chart::Heading;
use crate::report::document::Block;
use crate::report::input::{Input, Named};

/// Runs whose rates are worth something.
pub(super) fn real(input: &Input) -> impl Iterator<Item = (&Named, &Iperf)> {
    input
        .iperf()
        .filter(|(_, iperf)| iperf.place != Place::Guest)
}

/// TCP under every load: a chart for each cipher, and all of it as tables.
pub(super) fn rates(input: &Input) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (named, iperf) in real(input) {
        let mut charts = Vec::new();
        let mut tables = Vec::new();
        for cipher in ciphers(iperf) {
            let measured = Measured::new(iperf, cipher, is_tcp, |round| Some(round.gbit_per_s));
            let heading = Heading {
                file: file("throughput", named, cipher),
                title: with_cipher("TCP", cipher),
                unit: "Gbit/s of payload; more is better".to_owned(),
            };
            if let Some(chart) = measured.bars(heading) {
                charts.push(Block::Chart(chart));
                tables.push(Block::Table(measured.table(&with_cipher("Gbit/s", cipher))));
            }
        }
        if charts.is_empty() {
            continue;
        }
        blocks.extend(run(named, iperf));
        blocks.extend(charts);
        blocks.push(Block::More("As tables".to_owned(), tables));
    }
    if !blocks.is_empty() {
        let text = "Payload of TCP that iperf3 says has arrived. In namespaces both hypervisors, iperf3 and the wire between them share the \
                    cores of one machine, so that a rate is that of everything together. Plain Geneve is protected by nobody: the \
                    kernel moves superpackets of 60 KB from end to end there. Culvert without ESP steers and forwards as Culvert does, \
                    and seals nothing: what is between it and Culvert is the price of ESP.";
        blocks.insert(0, Block::Text(text.to_owned()));
    }
    blocks
}

/// Throughput for a core that is kept busy.
pub(super) fn of_a_core(input: &Input) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (named, iperf) in real(input) {
        let mut inner = Vec::new();
        let mut tables = Vec::new();
        for cipher in ciphers(iperf) {
            let machine = Measured::new(iperf, cipher, |_| true, of_the_machine);
            let workers = Measured::new(iperf, cipher, |_| true, of_the_workers);
            // One chart of each says enough, the tables have the other ciphers, and UDP.
            if inner.is_empty() {
                let heading = |what: &str, title: &str, unit: &str| Heading {
                    file: file(what, named, cipher),
                    title: with_cipher(title, cipher),
                    unit: unit.to_owned(),
                };
                let tcp = |of| Measured::new(iperf, cipher, is_tcp, of);
                let charts = [
                    tcp(of_the_machine).bars(heading(
                        "per-core",
                        "Gbit/s of a core, all counted",
                        "payload, by cores that were busy at all; more is better",
                    )),
                    tcp(of_the_workers).bars(heading(
                        "per-worker-core",
                        "Gbit/s of a core, workers alone",
                        "payload, by cores that workers kept busy; more is better",
                    )),
                ];
                inner.extend(charts.into_iter().flatten().map(Block::Chart));
            }
            for (measured, unit) in [
                (machine, "Gbit/s of a core"),
                (workers, "Gbit/s of a worker's core"),
            ] {
                if !measured.loads.is_empty() {
                    tables.push(Block::Table(measured.table(&with_cipher(unit, cipher))));
                }
            }
        }
        if tables.is_empty() {
            continue;
        }
        blocks.extend(run(named, iperf));
        blocks.extend(inner);
        blocks.push(Block::More(
            "As tables, every cipher and load".to_owned(),
            tables,
        ));
    }
    if !blocks.is_empty() {
        let text = "The same rates, divided by the cores that were busy meanwhile. What a core of the machine moves counts everything: \
                    both ends, kernel, interrupts, iperf3. What a worker's core moves counts only the threads of Culvert (or of \
                    another daemon) that protect; work that they leave to the kernel is not in it.";
        blocks.insert(0, Block::Text(text.to_owned()));
    }
    blocks
}

pub(super) fn of_the_machine(round: &Round) -> Option<f64> {
    per(round.gbit_per_s, *round.cores.get("machine")?)
}

fn of_the_workers(round: &Round) -> Option<f64> {
    let workers = round
        .cores
        .iter()
        .filter(|(party, _)| party.starts_with("worker "));
    per(round.gbit_per_s, workers.map(|(_, cores)| cores).sum())
}

/// What was not busy at all was not counted.
fn per(rate: f64, cores: f64) -> Option<f64> {
    (cores > 0.0).then(|| rate / cores)
}

/// UDP.
pub(super) fn by_size(input: &Input) -> Vec<Block> {
    let mut blocks = Vec::new();
    for (named, iperf) in real(input) {
        let mut charts = Vec::new();
        let mut tables = Vec::new();
        for cipher in ciphers(iperf) {
            let rates = Measured::new(iperf, cipher, is_udp, |round| Some(round.gbit_per_s));
            let heading = Heading {
                file: file("udp", named, cipher),
                title: with_cipher("UDP by size", cipher),
                unit: "Gbit/s of payload; more is better".to_owned(),
            };
            if let Some(chart) = rates.by_size(heading) {
                charts.push(Block::Chart(chart));
                tables.push(Block::Table(rates.table(&with_cipher("Gbit/s", cipher))));
                let packets = Measured::new(iperf, cipher, is_udp, |round| round.mpps);
                tables.push(Block::Table(
                    packets.table(&with_cipher("10⁶ packets/s", cipher)),
                ));
            }
        }
        if charts.is_empty() {
            continue;
        }
        let others = charts.split_off(1);
        blocks.extend(run(named, iperf));
        blocks.extend(charts);
        blocks.push(Block::More(
            "The other ciphers, and all as tables, also in packets".to_owned(),
            others.into_iter().chain(tables).collect(),
        ));
    }
    if !blocks.is_empty() {
        let text = "UDP at the highest rate at which no more than 0.1 % is lost. With small packets the sender may be what ends it: look \
                    at plain Geneve, which is the same sender without anything else.";
        blocks.insert(0, Block::Text(text.to_owned()));
    }
    blocks
}

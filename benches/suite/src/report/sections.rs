//! What is shown of the records, and in which order: first what decides, the comparison with the kernel's IPsec.

mod clocks;
mod compared;
mod faults;
mod instructions;
mod latency;
mod looped;
mod names;
mod records;
mod rounds;
mod scale;
mod throughput;
mod times;

use super::COMMAND;
use super::document::{Block, Document, Section};
use super::input::Input;

/// The report.
pub(super) fn document(input: &Input) -> Document {
    let sections = [
        ("Beside the kernel's IPsec", compared::blocks(input)),
        ("Throughput", throughput::rates(input)),
        ("Throughput of a core", throughput::of_a_core(input)),
        ("UDP by size of packets", throughput::by_size(input)),
        ("Round trips under load", latency::blocks(input)),
        ("The host port alone", looped::blocks(input)),
        ("Clocks of a packet", clocks::blocks(input)),
        ("Nanoseconds of a packet", times::blocks(input)),
        ("Instructions of a packet", instructions::blocks(input)),
        ("More SAs, more workers", scale::blocks(input)),
        ("When it breaks", faults::blocks(input)),
        ("The records", records::blocks(input)),
    ];
    let sections = sections
        .into_iter()
        .filter_map(|(title, blocks)| Section::new(title, blocks))
        .collect();
    Document {
        title: "How fast Culvert is",
        intro: vec![Block::Text(intro(input))],
        sections,
    }
}

fn intro(input: &Input) -> String {
    if input.newest.is_empty() && input.instructions.is_none() {
        return "There are no records yet.".to_owned();
    }
    format!(
        "Made from the records in this folder by `{COMMAND}`; whoever changes it by hand loses that. A number is the median of all rounds; \
         beside it in brackets, and in charts as whiskers, stand the least and the most. Of each kind of machine the newest record is \
         shown. [The records](#the-records) say which machines these were, and by which commands the numbers come about again."
    )
}

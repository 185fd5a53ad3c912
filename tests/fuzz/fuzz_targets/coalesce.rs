//! Batches of packets of a few flows, in any order, left out, doubled and changed: no frame is lost, none is in two groups,
//! and each group, cut again, is what it was.
#![no_main]

use culvert_gso::coalesce::Settings;
use culvert_gso::{Coalescer, Superpacket};
use libfuzzer_sys::fuzz_target;

/// Packets from nothing, and the check of a batch, as the crate's own tests have them.
#[path = "../../../datapath/gso/tests/common/mod.rs"]
mod common;

use common::batch::{EVERYTHING, VERIFIED, check};
use common::{Dice, Shape, written};

/// Most packets of a batch.
const FRAMES: usize = 64;

// The input is what may be joined, what two flows are like, and for each packet its flow, what is done to it, and where.
fuzz_target!(|input: &[u8]| {
    let [kinds, one, two, sizes, input @ ..] = input else {
        return;
    };
    let mut flows = [*one, *two].map(|seed| {
        let mut shape = Shape::random(&mut Dice(u64::from(seed)), true);
        shape.size = usize::from(*sizes) + 1;
        shape.payload.resize(shape.size * 20 + 3, seed);
        std::collections::VecDeque::from(shape.segments())
    });
    let mut frames: Vec<Vec<u8>> = Vec::new();
    for [what, at, value] in input.as_chunks().0.iter().take(FRAMES) {
        let flow = &mut flows[usize::from(what & 1)];
        let Some(mut frame) = flow.pop_front() else {
            break;
        };
        let end = frame.len();
        match what >> 1 & 7 {
            // As it was; most are.
            0..=2 => {}
            3 => frame[usize::from(*at) % end] = *value,
            4 => frame.truncate(end - usize::from(*at) % end),
            5 => frame.extend([*value; 3]),
            6 => continue,
            _ => flow.push_front(frame.clone()),
        }
        frames.push(frame);
    }
    let [tcp, udp, tunnel_checksum] = [1, 2, 4].map(|kind| kinds & kind != 0);
    let settings = |of: Settings| Settings {
        tcp,
        udp,
        tunnel_checksum,
        ..of
    };
    check(settings(VERIFIED), &frames);
    // What has a wrong checksum does not become again what it was, if it is trusted.
    let mut coalescer = Coalescer::new(settings(EVERYTHING), FRAMES);
    coalescer.coalesce(&frames);
    for group in coalescer.groups() {
        let (header, bytes) = written(&coalescer, group, &frames);
        let packet = Superpacket::new(&header, &bytes).unwrap();
        assert_eq!(packet.segments(65535).count(), group.count());
    }
});

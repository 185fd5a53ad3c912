//! Sequences of arbitrary fragments into a small reassembly table: no panic, no more frames kept than it has
//! places, every frame back in the end, every packet either in a datagram or counted. What is finished is then
//! cut again and answered with an ICMP error, which must not panic either.
#![no_main]

use culvert_esp::buffer::{Frame, HeapFrame};
use culvert_packet::headers::{Fragment, walk};
use libfuzzer_sys::fuzz_target;
use sizes::Supply;
use sizes::fragment::Fragmenter;
use sizes::reassembly::Reassembly;
use sizes::too_big::too_big;

/// The code under test as it stands in the datapath, without the datapath: that would want eBPF and libxdp
/// built with sanitizers.
#[path = "../../../datapath/src/sizes/mod.rs"]
#[allow(dead_code, reason = "the target does not use all of it")]
mod sizes;

/// What the code takes from the datapath's `frame` module.
mod frame {
    pub const HEADROOM: usize = 288;
}

const CHUNK: usize = 4096;
const PLACES: usize = 4;

/// Makes a frame of a few bytes of the input: the headers of a fragment whose fields are near those of others,
/// so that the input finds fragments of one datagram, or, if the first byte says so, the bytes as they are.
fn packet(input: &[u8]) -> Vec<u8> {
    let [kind, class, id, offset, rest @ ..] = input else {
        return input.to_vec();
    };
    let (more, tag) = (kind & 4 != 0, kind & 8 != 0);
    let data = rest.repeat(usize::from(kind >> 4) + 1);
    let word = u16::from(*offset);
    let mut frame = vec![2; 12];
    if tag {
        frame.extend([0x81, 0, 0, 5]);
    }
    match kind & 3 {
        0 => return input[1..].to_vec(),
        1 => {
            let word = word | if more { 0x2000 } else { 0 };
            let mut ip = vec![0x45, *class];
            ip.extend(u16::try_from(20 + data.len()).unwrap_or(0).to_be_bytes());
            ip.extend([0, id & 3]);
            ip.extend(word.to_be_bytes());
            ip.extend([64, 50, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
            let words = ip
                .chunks(2)
                .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
            let sum: u32 = words.sum();
            let sum = !((sum & 0xffff) + (sum >> 16)) as u16;
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(ip);
        }
        _ => {
            let word = word << 3 | u16::from(more);
            frame.extend([0x86, 0xdd, 0x60, class << 4, 0, 0]);
            frame.extend(u16::try_from(8 + data.len()).unwrap_or(0).to_be_bytes());
            frame.extend([44, 64]);
            frame.extend([1; 32]);
            frame.extend([50, 0]);
            frame.extend(word.to_be_bytes());
            frame.extend([0, 0, 0, id & 3]);
        }
    }
    frame.extend(data);
    frame
}

/// Frames without end, which are counted.
#[derive(Default)]
struct Stock {
    taken: usize,
}

impl Supply<HeapFrame> for Stock {
    fn take(&mut self, _length: usize) -> Option<HeapFrame> {
        self.taken += 1;
        Some(HeapFrame::new(CHUNK, &[], 0))
    }

    fn give(&mut self, _: HeapFrame) {
        self.taken -= 1;
    }
}

/// Cuts a whole packet, and answers it.
fn the_way_out(whole: &HeapFrame) {
    let Ok(headers) = walk(whole.bytes()) else {
        return;
    };
    let mut stock = Stock::default();
    let mut fragmenter = Fragmenter::default();
    let mut first = whole.clone();
    match fragmenter.fragment(&mut first, &headers, 100, &mut stock) {
        Ok(later) => assert_eq!(later.count(), stock.taken),
        Err(_) => assert_eq!((stock.taken, &first), (0, whole)),
    }
    let mut answer = whole.clone();
    if too_big(&mut answer, &headers, 1400).is_ok() {
        let length = walk(answer.bytes()).map(|headers| headers.end - headers.ip);
        assert!(length.is_ok_and(|length| length <= 1280));
    }
}

// The input is packets, each with a byte for the time before it and a byte for its length in front.
fuzz_target!(|input: &[u8]| {
    let mut input = input;
    let mut table = Reassembly::new(PLACES, CHUNK);
    let (mut now, mut came, mut went) = (0, 0, 0);
    let (mut kept, mut lost) = (0, 0);
    while let [pause, length, rest @ ..] = input {
        let (one, rest) = rest.split_at(rest.len().min(usize::from(*length)));
        input = rest;
        now += u64::from(*pause) * 16;
        let bytes = packet(one);
        let Some(tail) = (CHUNK - frame::HEADROOM).checked_sub(bytes.len()) else {
            continue;
        };
        let Ok(headers) = walk(&bytes[..]) else {
            continue;
        };
        came += 1;
        let outcome = table.insert(HeapFrame::new(frame::HEADROOM, &bytes, tail), &headers, now);
        went += outcome.free.iter().flatten().count() + outcome.finished.iter().count();
        lost += outcome
            .losses
            .iter()
            .flatten()
            .map(|loss| loss.packets)
            .sum::<u64>();
        if let Some(mut whole) = outcome.finished {
            let bounds = whole.bounds();
            assert!(bounds.start < bounds.end && bounds.end <= whole.chunk().len());
            // How many packets are in it is not known here.
            kept += if headers.fragment == Fragment::Whole {
                1
            } else {
                0
            };
            the_way_out(&whole);
        }
        assert!(table.frames() <= PLACES);
        assert_eq!(came, went + table.frames());
        assert!(kept + lost <= came as u64);
    }
    while table.expire(u64::MAX).is_some() {
        went += 1;
    }
    assert_eq!((came, table.frames()), (went, 0));
});

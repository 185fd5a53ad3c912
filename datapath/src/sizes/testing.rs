//! Packets and frames for the tests of this folder, made without its code.

use culvert_esp::buffer::HeapFrame;
use culvert_packet::headers::{ESP, Headers, walk};

use super::Supply;
use crate::frame::{CHUNK, HEADROOM};

/// Length of the chunks that tests use.
pub(super) const CHUNK_LENGTH: usize = CHUNK as usize;

/// The checksum of `bytes`, added up byte by byte with the carry going round at once.
pub(super) fn naive_checksum(bytes: &[u8]) -> u16 {
    let mut sum = 0_u16;
    for (index, byte) in bytes.iter().enumerate() {
        let word = u16::from(*byte) << if index % 2 == 0 { 8 } else { 0 };
        let (added, carry) = sum.overflowing_add(word);
        sum = added + u16::from(carry);
    }
    !sum
}

/// An IP packet in an Ethernet frame, whole or a fragment.
#[derive(Clone, Debug)]
pub(super) struct Packet {
    pub(super) v6: bool,
    /// How many VLAN tags.
    pub(super) tags: usize,
    /// Last byte of the source address.
    pub(super) source: u8,
    pub(super) id: u16,
    pub(super) protocol: u8,
    /// TOS or traffic class.
    pub(super) class: u8,
    /// IPv4: options, a multiple of four bytes. IPv6: whether and how long a header of destination options is, a
    /// multiple of eight bytes.
    pub(super) options: Vec<u8>,
    /// IPv4: the word of flags and offset; IPv6: what is in a fragment header, if it is not zero.
    pub(super) fragment: u16,
    pub(super) data: Vec<u8>,
}

impl Packet {
    pub(super) fn v4(data: Vec<u8>) -> Self {
        Self {
            v6: false,
            tags: 0,
            source: 1,
            id: 0x1234,
            protocol: ESP,
            class: 0,
            options: Vec::new(),
            fragment: 0,
            data,
        }
    }

    pub(super) fn v6(data: Vec<u8>) -> Self {
        Self {
            v6: true,
            ..Self::v4(data)
        }
    }

    /// The fragment with these bytes of the data.
    pub(super) fn piece(&self, offset: usize, length: usize, more: bool) -> Self {
        let offset_word = u16::try_from(offset).unwrap();
        let fragment = match self.v6 {
            false => (offset_word / 8) | if more { 0x2000 } else { 0 },
            true => offset_word | u16::from(more),
        };
        let data = self.data[offset..offset + length].to_vec();
        Self {
            fragment,
            data,
            ..self.clone()
        }
    }

    /// Fragments that end at `cuts` and at the end.
    pub(super) fn pieces(&self, cuts: &[usize]) -> Vec<Self> {
        let mut from = 0;
        let mut pieces = Vec::new();
        for cut in cuts.iter().chain([&self.data.len()]) {
            pieces.push(self.piece(from, cut - from, *cut < self.data.len()));
            from = *cut;
        }
        pieces
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 0xd, 2, 0, 0, 0, 0, 0xc];
        for _ in 0..self.tags {
            frame.extend([0x81, 0, 0, 5]);
        }
        frame.extend(if self.v6 { [0x86, 0xdd] } else { [8, 0] });
        frame.extend(if self.v6 { self.ip6() } else { self.ip4() });
        frame
    }

    fn ip4(&self) -> Vec<u8> {
        let header = 20 + self.options.len();
        let total = u16::try_from(header + self.data.len()).unwrap();
        let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), self.class];
        for word in [total, self.id, self.fragment] {
            packet.extend(word.to_be_bytes());
        }
        packet.extend([
            64,
            self.protocol,
            0,
            0,
            192,
            0,
            2,
            self.source,
            192,
            0,
            2,
            99,
        ]);
        packet.extend(&self.options);
        let sum = naive_checksum(&packet);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
        packet.extend(&self.data);
        packet
    }

    fn ip6(&self) -> Vec<u8> {
        let mut behind = self.options.clone();
        let mut first = if self.fragment == 0 {
            self.protocol
        } else {
            44
        };
        if let [next, words, ..] = &mut behind[..] {
            (*next, first) = (first, 60);
            *words = u8::try_from(self.options.len() / 8 - 1).unwrap();
        }
        if self.fragment != 0 {
            behind.extend([self.protocol, 0]);
            behind.extend(self.fragment.to_be_bytes());
            behind.extend([0, 0]);
            behind.extend(self.id.to_be_bytes());
        }
        behind.extend(&self.data);
        let mut packet = vec![0x60 | self.class >> 4, self.class << 4, 0, 0];
        packet.extend(u16::try_from(behind.len()).unwrap().to_be_bytes());
        packet.extend([first, 64]);
        for last in [self.source, 99] {
            packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        packet.extend(behind);
        packet
    }
}

/// `bytes` in a frame with chunk and headroom of the kernel's.
pub(super) fn frame(bytes: &[u8]) -> HeapFrame {
    frame_in(CHUNK_LENGTH, bytes)
}

/// `bytes` in a frame with this chunk.
pub(super) fn frame_in(chunk: usize, bytes: &[u8]) -> HeapFrame {
    HeapFrame::new(HEADROOM, bytes, chunk - HEADROOM - bytes.len())
}

/// The headers of a packet that has some.
pub(super) fn headers(bytes: &[u8]) -> Headers {
    walk(bytes).unwrap()
}

/// Bytes that differ from their neighbours and repeat late.
pub(super) fn pattern(length: usize) -> Vec<u8> {
    (0..length)
        .map(|at| (at * 7 + at / 251).to_le_bytes()[0])
        .collect()
}

/// A supply of so many frames.
#[derive(Debug)]
pub(super) struct Stock {
    pub(super) free: Vec<HeapFrame>,
}

impl Stock {
    pub(super) fn new(frames: usize) -> Self {
        // A used frame comes with the bounds that it last had.
        let used = frame(&[0xee; 77]);
        Self {
            free: vec![used; frames],
        }
    }
}

impl Supply<HeapFrame> for Stock {
    fn take(&mut self, _length: usize) -> Option<HeapFrame> {
        self.free.pop()
    }

    fn give(&mut self, frame: HeapFrame) {
        self.free.push(frame);
    }
}

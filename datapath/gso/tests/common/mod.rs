//! Generated packets: what a superpacket is made of, and the packets that it stands for, each built from nothing. So this
//! is the naive reference of segmenting, too: it knows no superpacket.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    clippy::allow_attributes,
    clippy::unwrap_used,
    reason = "each test uses its part, and what cannot be built has failed"
)]

pub mod batch;

use std::ops::Range;

use culvert_gso::vnet::{Checksum, Gso, Header, Kind, Tunnel};

/// Numbers that are the same for the same seed (splitmix64).
pub struct Dice(pub u64);

impl Dice {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, end: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(end).unwrap()).unwrap()
    }

    pub fn within(&mut self, range: std::ops::RangeInclusive<usize>) -> usize {
        range.start() + self.below(range.end() - range.start() + 1)
    }

    pub fn one_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    pub fn byte(&mut self) -> u8 {
        self.next().to_le_bytes()[0]
    }

    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    pub fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&self.next().to_le_bytes());
        }
        bytes.truncate(length);
        bytes
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ip {
    pub v6: bool,
    pub tos: u8,
    pub id: u16,
    pub df: bool,
    pub ttl: u8,
    pub flow_label: u32,
    pub addresses: Vec<u8>,
    /// IPv4 options, or IPv6 extension headers (destination options).
    pub options: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outer {
    pub ip: Ip,
    pub port: u16,
    pub checksum: bool,
    /// Geneve header after the first byte (flags, type, VNI), and its options.
    pub geneve: Vec<u8>,
    pub options: Vec<u8>,
    pub ethernet: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tcp {
    pub sequence: u32,
    pub acknowledgement: u32,
    pub flags: u8,
    pub window: u16,
    pub urgent: u16,
    pub options: Vec<u8>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shape {
    pub ethernet: Vec<u8>,
    pub outer: Option<Outer>,
    pub ip: Ip,
    pub ports: [u16; 2],
    /// UDP, if it is none.
    pub tcp: Option<Tcp>,
    pub payload: Vec<u8>,
    pub size: usize,
}

fn ethernet(dice: &mut Dice, tags: usize) -> Vec<u8> {
    let mut bytes = dice.bytes(12);
    // Not to a group: a bridge would have thoughts about it.
    bytes[0] &= 0xfc;
    bytes[6] &= 0xfc;
    for tag in 0..tags {
        bytes.extend([0x81, 0x00]);
        bytes.extend((dice.word() & 0xefff | 1).to_be_bytes());
        if tags == 2 && tag == 0 {
            bytes[12] = 0x88;
            bytes[13] = 0xa8;
        }
    }
    bytes
}

fn ip(dice: &mut Dice, options: bool) -> Ip {
    let v6 = dice.one_in(2);
    let mut addresses = dice.bytes(if v6 { 32 } else { 8 });
    for first in [0, addresses.len() / 2] {
        addresses[first] = if v6 { 0xfd } else { 10 };
    }
    let options = if !options {
        Vec::new()
    } else if v6 {
        // PadN only, so that nobody has thoughts about it. The first byte is set when it is written.
        [vec![0, 0, 1, 4], vec![0; 4]].concat()
    } else {
        vec![1; 4 * dice.within(1..=10)]
    };
    Ip {
        v6,
        tos: dice.byte(),
        id: if dice.one_in(8) { 0xfff0 } else { dice.word() },
        df: dice.one_in(2),
        ttl: dice.byte() | 2,
        flow_label: u32::try_from(dice.below(1 << 20)).unwrap(),
        addresses,
        options,
    }
}

fn tcp(dice: &mut Dice) -> Tcp {
    let timestamps = [vec![1, 1, 8, 10], dice.bytes(8)].concat();
    let options = match dice.below(4) {
        0 => Vec::new(),
        1 => vec![1; 4 * dice.within(1..=10)],
        _ => timestamps,
    };
    let mut flags = 0x10;
    for flag in [0x01, 0x08, 0x40, 0x80] {
        if dice.one_in(3) {
            flags |= flag;
        }
    }
    Tcp {
        sequence: if dice.one_in(8) {
            0xffff_f000
        } else {
            u32::from(dice.word()) << 16 | u32::from(dice.word())
        },
        acknowledgement: u32::from(dice.word()) << 16 | u32::from(dice.word()),
        flags,
        window: dice.word(),
        urgent: if dice.one_in(8) { dice.word() } else { 0 },
        options,
    }
}

impl Shape {
    /// A superpacket of at least two segments.
    pub fn random(dice: &mut Dice, tunnel: bool) -> Self {
        let with_options = dice.one_in(6);
        let outer = tunnel.then(|| {
            let options = 4 * if dice.one_in(2) {
                0
            } else {
                dice.within(1..=63)
            };
            let mut geneve = vec![0, 0x65, 0x58];
            geneve.extend(dice.bytes(3));
            geneve.push(0);
            let tags = usize::from(dice.one_in(5));
            let outer_options = dice.one_in(6);
            let mut outer = Outer {
                ip: ip(dice, outer_options),
                port: dice.word() | 0xc000,
                checksum: dice.one_in(2),
                geneve,
                options: dice.bytes(options),
                ethernet: ethernet(dice, tags),
            };
            // Fewer than the longest option headers at once: the kernel wants all headers within its own limit.
            if outer.ip.v6 {
                outer.ip.options.clear();
            }
            outer
        });
        let tags = [0, 0, 0, 1, 2][dice.below(5)];
        let mut shape = Self {
            ethernet: ethernet(dice, tags),
            outer,
            ip: ip(dice, with_options),
            ports: [dice.word() | 1, dice.word() | 0x4000],
            tcp: (!dice.one_in(4)).then(|| tcp(dice)),
            payload: Vec::new(),
            size: 0,
        };
        // The kernel's segments of UDP with IPv6 extension headers are its own affair.
        let most = 65535 - shape.headers() - shape.ethernet.len();
        shape.size = match dice.below(4) {
            0 => dice.within(8..=100),
            1 => dice.within(500..=4000),
            _ => dice.within(1200..=1460),
        };
        let longest = most.min(shape.size * if shape.tcp.is_some() { 50 } else { 60 });
        let total = match dice.below(4) {
            0 => shape.size + 1,
            1 => (longest / shape.size) * shape.size,
            _ => dice.within(shape.size + 1..=longest),
        };
        shape.payload = dice.bytes(total.max(shape.size + 1));
        shape
    }

    /// Length of all headers.
    pub fn headers(&self) -> usize {
        self.packet(0..0, 0, true, true, Sums::Right).len()
    }

    /// How many segments it stands for.
    pub fn count(&self) -> usize {
        self.payload.len().div_ceil(self.size)
    }

    /// The superpacket.
    pub fn superpacket(&self) -> (Header, Vec<u8>) {
        let bytes = self.packet(0..self.payload.len(), 0, true, true, Sums::Partial);
        let transport = bytes.len() - self.payload.len() - self.transport_length();
        let at = |v6: bool, options: &[u8]| if v6 { 40 } else { 20 } + options.len();
        let network = transport - at(self.ip.v6, &self.ip.options);
        let tunnel = self.outer.as_ref().map(|outer| Tunnel {
            v6: outer.ip.v6,
            checksum: outer.checksum,
            outer_transport: low(self.ethernet.len() + 2 + at(outer.ip.v6, &outer.ip.options)),
            inner_network: low(network),
        });
        let header = Header {
            checksum: Some(Checksum {
                start: low(transport),
                offset: if self.tcp.is_some() { 16 } else { 6 },
            }),
            valid: false,
            headers: low(bytes.len() - self.payload.len()),
            gso: Some(Gso {
                kind: match (&self.tcp, self.ip.v6) {
                    (None, _) => Kind::Udp,
                    (_, false) => Kind::TcpV4,
                    (_, true) => Kind::TcpV6,
                },
                size: low(self.size),
                ecn: self.tcp.as_ref().is_some_and(|tcp| tcp.flags & 0x80 != 0),
                tunnel,
            }),
        };
        (header, bytes)
    }

    /// The packets that it stands for, in segments of `size` bytes.
    pub fn segments_of(&self, size: usize) -> Vec<Vec<u8>> {
        let count = self.payload.len().div_ceil(size);
        (0..count)
            .map(|index| {
                let range = index * size..self.payload.len().min((index + 1) * size);
                self.packet(range, index, index == 0, index + 1 == count, Sums::Right)
            })
            .collect()
    }

    pub fn segments(&self) -> Vec<Vec<u8>> {
        self.segments_of(self.size)
    }

    /// One packet with all of the payload.
    pub fn whole(&self) -> Vec<u8> {
        self.packet(0..self.payload.len(), 0, true, true, Sums::Right)
    }

    fn transport_length(&self) -> usize {
        self.tcp.as_ref().map_or(8, |tcp| 20 + tcp.options.len())
    }

    /// A packet with a part of the payload, the `index`th of its kind.
    fn packet(
        &self,
        range: Range<usize>,
        index: usize,
        first: bool,
        last: bool,
        sums: Sums,
    ) -> Vec<u8> {
        let mut transport = Vec::new();
        for port in self.ports {
            transport.extend(port.to_be_bytes());
        }
        let payload = &self.payload[range.clone()];
        let (protocol, field) = match &self.tcp {
            Some(tcp) => {
                let sequence = tcp
                    .sequence
                    .wrapping_add(u32::try_from(range.start).unwrap());
                transport.extend(sequence.to_be_bytes());
                transport.extend(tcp.acknowledgement.to_be_bytes());
                transport.push(u8::try_from((20 + tcp.options.len()) / 4 * 16).unwrap());
                let mut flags = tcp.flags;
                flags &= if first { 0xff } else { 0x7f };
                flags &= if last { 0xff } else { 0xf6 };
                transport.push(flags);
                transport.extend(tcp.window.to_be_bytes());
                transport.extend([0, 0]);
                transport.extend(tcp.urgent.to_be_bytes());
                transport.extend(&tcp.options);
                (6, 16)
            }
            None => {
                transport.extend(low(8 + payload.len()).to_be_bytes());
                transport.extend([0, 0]);
                (17, 6)
            }
        };
        transport.extend(payload);
        let zero = if protocol == 17 { 0xffff } else { 0 };
        checksum(&mut transport, field, &self.ip, protocol, sums, zero);
        let inner = network(&self.ip, index, protocol, &transport);
        let ethertype = if self.ip.v6 {
            [0x86, 0xdd]
        } else {
            [0x08, 0x00]
        };
        let Some(outer) = &self.outer else {
            return [&self.ethernet[..], &ethertype, &inner].concat();
        };
        let mut udp = Vec::new();
        for word in [outer.port, 6081] {
            udp.extend(word.to_be_bytes());
        }
        let geneve = [
            &[u8::try_from(outer.options.len() / 4).unwrap()][..],
            &outer.geneve,
            &outer.options,
            &outer.ethernet,
            &ethertype,
            &inner,
        ]
        .concat();
        udp.extend(low(8 + geneve.len()).to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(geneve);
        if outer.checksum {
            checksum(&mut udp, 6, &outer.ip, 17, sums, 0xffff);
        }
        let whole = network(&outer.ip, index, 17, &udp);
        let ethertype: [u8; 2] = if outer.ip.v6 {
            [0x86, 0xdd]
        } else {
            [0x08, 0x00]
        };
        [&self.ethernet[..], &ethertype, &whole].concat()
    }
}

/// Whether checksums are complete, or the sum of the pseudo header, to be completed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Sums {
    Right,
    Partial,
}

pub fn low(value: usize) -> u16 {
    u16::try_from(value).unwrap()
}

fn sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0_u64;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    u16::try_from(sum).unwrap()
}

fn checksum(datagram: &mut [u8], at: usize, ip: &Ip, protocol: u8, sums: Sums, zero: u16) {
    let length = u32::try_from(datagram.len()).unwrap().to_be_bytes();
    let pseudo: &[&[u8]] = &[&ip.addresses, &length, &[0, protocol]];
    let value = match sums {
        Sums::Partial => sum(pseudo),
        Sums::Right => match !sum(&[pseudo, &[datagram]].concat()) {
            0 => zero,
            value => value,
        },
    };
    datagram[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

fn network(ip: &Ip, index: usize, protocol: u8, transport: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    if ip.v6 {
        bytes.extend((0x6000_0000 | u32::from(ip.tos) << 20 | ip.flow_label).to_be_bytes());
        bytes.extend(low(ip.options.len() + transport.len()).to_be_bytes());
        bytes.push(if ip.options.is_empty() { protocol } else { 60 });
        bytes.push(ip.ttl);
        bytes.extend(&ip.addresses);
        let mut options = ip.options.clone();
        if let Some(next) = options.first_mut() {
            *next = protocol;
        }
        bytes.extend(options);
    } else {
        let length = 20 + ip.options.len();
        bytes.extend([0x40 | u8::try_from(length / 4).unwrap(), ip.tos]);
        bytes.extend(low(length + transport.len()).to_be_bytes());
        let id = ip.id.wrapping_add(u16::try_from(index).unwrap());
        bytes.extend(id.to_be_bytes());
        bytes.extend([if ip.df { 0x40 } else { 0 }, 0, ip.ttl, protocol, 0, 0]);
        bytes.extend(&ip.addresses);
        bytes.extend(&ip.options);
        let sum = !sum(&[&bytes]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    bytes.extend(transport);
    bytes
}

/// What goes to the TAP for a group of frames, and its vnet header.
pub fn written(
    coalescer: &culvert_gso::Coalescer,
    group: &culvert_gso::coalesce::Group,
    frames: &[Vec<u8>],
) -> (Header, Vec<u8>) {
    let mut bytes = frames[group.first()].clone();
    let header = coalescer.prepare(group, &mut bytes);
    for (index, payload) in coalescer.rest(group) {
        bytes.extend(&frames[index][payload]);
    }
    (header, bytes)
}

/// The segments of a superpacket, by the crate.
pub fn cut(header: &Header, bytes: &[u8], longest: usize) -> Vec<Vec<u8>> {
    let packet = culvert_gso::Superpacket::new(header, bytes).unwrap();
    let write = |segment: culvert_gso::segment::Segment<'_>| {
        let mut to = vec![0; segment.len()];
        assert_eq!(segment.write_into(&mut to), Ok(to.len()));
        to
    };
    packet.segments(longest).iter().map(write).collect()
}

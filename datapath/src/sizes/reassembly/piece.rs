//! What the headers of one fragment say.

use std::ops::Range;

use culvert_esp::checksum;
use culvert_packet::headers::{Address, Headers, Packet, Version};

use crate::sizes::{MORE_FRAGMENTS, OFFSET, word};

/// Longest datagram: what its length field can say.
const LONGEST: usize = 0xffff;

/// What fragments of one datagram have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// IP version: an IPv4 address may be written as IPv6, too.
    pub(super) version: Version,
    /// RFC 791 §3.2: the protocol is part of it. RFC 8200 §4.5: over IPv6 it is not, and is zero here.
    protocol: u8,
    identification: u32,
    source: Address,
    destination: Address,
}

/// One fragment. Offsets in the frame count from its start.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) key: Key,
    /// Offset of the IP header in the frame.
    pub(super) ip: usize,
    /// Length of the headers that the datagram keeps: Ethernet, and IP up to the data or fragment header.
    pub(super) head: usize,
    /// Where the data is in the frame.
    pub(super) data: Range<usize>,
    /// Where the data is in the datagram, in bytes; a multiple of eight.
    pub(super) offset: usize,
    /// Not the datagram's last.
    pub(super) more: bool,
    /// ECN field of the IP header.
    pub(super) ecn: u8,
    /// IPv6: the offset in the frame of the byte that says "fragment header", and what it must say instead.
    pub(super) next: Option<(usize, u8)>,
}

impl Piece {
    /// Reads the fragment in `packet`. `None` if it is malformed, or no fragment.
    pub(super) fn read(packet: &[u8], headers: &Headers) -> Option<Self> {
        let packet = packet.get(..headers.end)?;
        if headers.transport > headers.end {
            return None;
        }
        let piece = match headers.version {
            Version::V4 => read_v4(packet, headers)?,
            Version::V6 => read_v6(packet, headers)?,
        };
        let whole = piece.offset == 0 && !piece.more;
        // RFC 791 §3.2, RFC 8200 §4.5: all but the last carry a multiple of eight bytes; the end must be within
        // what a length field can say. A fragment without data says nothing.
        let ragged = piece.more && !piece.data.len().is_multiple_of(8);
        let malformed = whole || ragged || piece.data.is_empty() || piece.end() > LONGEST;
        (!malformed).then_some(piece)
    }

    /// Where the data ends in the datagram.
    pub(super) fn end(&self) -> usize {
        self.offset + self.data.len()
    }

    /// Which eight-byte blocks of the datagram it has; of the last one maybe only a part.
    pub(super) fn blocks(&self) -> Range<usize> {
        self.offset / 8..self.end().div_ceil(8)
    }
}

fn read_v4(packet: &[u8], headers: &Headers) -> Option<Piece> {
    let header = packet
        .get(headers.ip..headers.transport)
        .filter(|header| header.len() >= 20)?;
    // RFC 1122 §3.2.1.2. For whole datagrams the stack does so; here a damaged offset would spoil others.
    if checksum::finish(checksum::sum(header)) != 0 {
        return None;
    }
    let fragment = word(header, 6);
    Some(Piece {
        key: Key {
            version: Version::V4,
            protocol: headers.protocol,
            identification: u32::from(word(header, 4)),
            source: headers.source,
            destination: headers.destination,
        },
        ip: headers.ip,
        head: headers.transport,
        data: headers.transport..packet.len(),
        offset: usize::from(fragment & OFFSET) * 8,
        more: fragment & MORE_FRAGMENTS != 0,
        ecn: header[1] & 3,
        next: None,
    })
}

fn read_v6(packet: &[u8], headers: &Headers) -> Option<Piece> {
    let (next_at, at) = fragment_header(packet, headers.ip)?;
    let [next, _, high, low, identification @ ..] = packet.read::<8>(at)?;
    let fragment = u16::from_be_bytes([high, low]);
    Some(Piece {
        key: Key {
            version: Version::V6,
            protocol: 0,
            identification: u32::from_be_bytes(identification),
            source: headers.source,
            destination: headers.destination,
        },
        ip: headers.ip,
        head: at,
        data: at + 8..packet.len(),
        // RFC 8200 §4.5: 13 bits of offset in blocks, two reserved ones, and "more fragments".
        offset: usize::from(fragment & !7),
        more: fragment & 1 != 0,
        ecn: packet.get(headers.ip + 1)? >> 4 & 3,
        next: Some((next_at, next)),
    })
}

/// Offsets of the byte that names the first fragment header, and of that header.
fn fragment_header(packet: &[u8], ip: usize) -> Option<(usize, usize)> {
    let (mut next_at, mut at) = (ip + 6, ip + 40);
    loop {
        match packet.get(next_at)? {
            44 => return Some((next_at, at)),
            // Hop-by-hop options, routing, destination options: what may stand before it (RFC 8200 §4.1).
            0 | 43 | 60 => {
                let length = usize::from(*packet.get(at + 1)?);
                next_at = at;
                at += (length + 1) * 8;
            }
            _ => return None,
        }
    }
}

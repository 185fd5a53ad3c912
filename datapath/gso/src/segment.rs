//! Out: a superpacket to the frames that go on the wire, byte for byte as the kernel's software GSO makes them
//! (`skb_segment`, `inet_gso_segment`, `ipv6_gso_segment`, `tcp_gso_segment`, `__udp_gso_segment`,
//! `__skb_udp_tunnel_segment` of Linux 6.18).
//!
//! [`Superpacket::new`] holds the header against the frame. [`Superpacket::segments`] says how it is cut, and each
//! [`Segment`] writes its headers, with all lengths, numbers and checksums, and says where in the superpacket its payload
//! is. So the payload can be sealed out of place, without being copied first.
//!
//! Where Culvert does as it likes: a frame whose header and fields contradict each other is refused, where the kernel
//! believes one of them; and TCP segments of less than [`LEAST`] bytes, of which a superpacket has thousands, are not made.

mod shape;

use std::ops::Range;

use culvert_packet::headers::Version;

use self::shape::{Body, Cut, plain};
use crate::checksum;
use crate::fields::{
    TCP_CHECKSUM, TCP_FLAGS, UDP_CHECKSUM, double_word, flag, low, set_word, word,
};
use crate::vnet::{Checksum, Header};

/// Least payload of a TCP segment, in bytes: the kernel's own TCP has no smaller segment size (`TCP_MIN_GSO_SIZE`).
pub const LEAST: usize = 8;

/// Why a frame is refused: it and its header cannot both be true.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Longer than 65535 bytes, which no superpacket is (`gso_max_size` of a TAP).
    TooLong,
    /// The IP headers, outer or inner, cannot be walked, or are of a fragment.
    Malformed,
    /// IP version or protocol is another than the header says.
    Kind,
    /// Headers are not where the header says.
    Offset,
    /// Lengths of IP or UDP are not that of the frame.
    Length,
    /// The transport header is cut off, or too short for itself, or nothing is behind it.
    Transport,
    /// Segments of less than [`LEAST`] bytes, or more datagrams than a UDP superpacket has.
    Segments,
    /// UDP superpackets come with a checksum to complete (`__virtio_net_hdr_to_skb`).
    Checksum,
}

/// Whether segments are as long as the superpacket's header wants them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fit {
    /// They are.
    Whole,
    /// They would not have fitted. The segment size is another, in bytes of TCP payload; where the sender wants no
    /// fragments, it should hear of it.
    Shrunk {
        /// What the header says.
        from: usize,
        /// What it is now.
        to: usize,
    },
    /// They do not fit, and are as long as they are: a datagram cannot be made two, and a single packet cannot be cut here.
    TooLong,
}

/// A frame from a TAP that agrees with its header. Perhaps it is a superpacket; a single packet, whose checksum may be
/// to be completed, is one of one segment.
#[derive(Clone, Copy, Debug)]
pub struct Superpacket<'a> {
    bytes: &'a [u8],
    body: Body,
}

impl<'a> Superpacket<'a> {
    /// Holds `header` against the frame `bytes` that came behind it.
    ///
    /// # Errors
    /// See [`Refused`].
    pub fn new(header: &Header, bytes: &'a [u8]) -> Result<Self, Refused> {
        if bytes.len() > usize::from(u16::MAX) {
            return Err(Refused::TooLong);
        }
        let body = match header.gso {
            Some(gso) => Body::Cut(Cut::new(header, gso, bytes)?),
            None => plain(header.checksum, bytes)?,
        };
        let body = match body {
            // "Too small packets are not really GSO ones" (`__virtio_net_hdr_to_skb`): headers stay as they are. Only a
            // tunnel's checksum would not be completed so.
            Body::Cut(cut)
                if bytes.len() - cut.payload <= cut.size
                    && cut.outer.is_none_or(|outer| outer.pseudo.is_none()) =>
            {
                Body::Plain {
                    split: cut.payload,
                    checksum: header.checksum,
                }
            }
            body => body,
        };
        Ok(Self { bytes, body })
    }

    /// How long the headers are that each segment has, in bytes.
    #[must_use]
    pub fn headers(&self) -> usize {
        match self.body {
            Body::Plain { split, .. } => split,
            Body::Cut(cut) => cut.payload,
        }
    }

    /// The segments, none of which is longer than `longest` bytes from the start of its Ethernet header, if that can be:
    /// [`Segments::fit`] says whether it can.
    #[must_use]
    pub fn segments(&self, longest: usize) -> Segments<'a> {
        let mut packet = *self;
        let (count, fit) = match &mut packet.body {
            Body::Plain { .. } if self.bytes.len() > longest => (1, Fit::TooLong),
            Body::Plain { .. } => (1, Fit::Whole),
            Body::Cut(cut) => {
                let total = self.bytes.len() - cut.payload;
                let room = longest.saturating_sub(cut.payload);
                let fit = if cut.size.min(total) <= room {
                    Fit::Whole
                } else if cut.tcp && room >= LEAST {
                    let from = std::mem::replace(&mut cut.size, room);
                    Fit::Shrunk { from, to: room }
                } else {
                    Fit::TooLong
                };
                (total.div_ceil(cut.size), fit)
            }
        };
        Segments { packet, count, fit }
    }
}

/// The segments of a superpacket.
#[derive(Clone, Copy, Debug)]
pub struct Segments<'a> {
    packet: Superpacket<'a>,
    count: usize,
    fit: Fit,
}

impl<'a> Segments<'a> {
    /// How many there are: at least one.
    #[must_use]
    pub fn count(&self) -> usize {
        self.count
    }

    /// Whether they are as the header wants them.
    #[must_use]
    pub fn fit(&self) -> Fit {
        self.fit
    }

    /// The segment `index`, counted from zero.
    #[must_use]
    pub fn get(&self, index: usize) -> Option<Segment<'a>> {
        (index < self.count).then(|| {
            let end = self.packet.bytes.len();
            let payload = match self.packet.body {
                Body::Plain { split, .. } => split..end,
                Body::Cut(cut) => {
                    let start = cut.payload + index * cut.size;
                    start..end.min(start + cut.size)
                }
            };
            Segment {
                packet: self.packet,
                index,
                last: index + 1 == self.count,
                payload,
            }
        })
    }

    /// All of them, in their order.
    pub fn iter(&self) -> impl Iterator<Item = Segment<'a>> + use<'a> {
        let segments = *self;
        (0..self.count).filter_map(move |index| segments.get(index))
    }
}

/// One segment: headers that are still to be written, and payload that is where it was.
#[derive(Clone, Debug)]
pub struct Segment<'a> {
    packet: Superpacket<'a>,
    index: usize,
    last: bool,
    payload: Range<usize>,
}

/// The destination is too short for the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom;

impl<'a> Segment<'a> {
    /// Where its payload is in the superpacket.
    #[must_use]
    pub fn payload_range(&self) -> Range<usize> {
        self.payload.clone()
    }

    /// Its payload, which goes behind the headers as it is.
    #[must_use]
    pub fn payload(&self) -> &'a [u8] {
        &self.packet.bytes[self.payload.clone()]
    }

    /// Length of the segment in bytes, headers and payload.
    #[expect(clippy::len_without_is_empty, reason = "no segment is empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.packet.headers() + self.payload.len()
    }

    /// Writes the headers, complete, to the start of `to`, and returns their length. Reads the payload for its checksum.
    ///
    /// # Errors
    /// [`NoRoom`], and `to` is as it was.
    #[inline]
    pub fn headers_into(&self, to: &mut [u8]) -> Result<usize, NoRoom> {
        let headers = to.get_mut(..self.packet.headers()).ok_or(NoRoom)?;
        let sum = match self.packet.body {
            Body::Plain { checksum: None, .. } => 0,
            _ => checksum::sum(self.payload()),
        };
        self.write(headers, sum);
        Ok(headers.len())
    }

    /// Writes the whole segment to the start of `to`, and returns its length. Reads the payload once.
    ///
    /// # Errors
    /// [`NoRoom`], and `to` is as it was.
    #[inline]
    pub fn write_into(&self, to: &mut [u8]) -> Result<usize, NoRoom> {
        let to = to.get_mut(..self.len()).ok_or(NoRoom)?;
        let (headers, rest) = to
            .split_at_mut_checked(self.packet.headers())
            .ok_or(NoRoom)?;
        let sum = checksum::copy_and_sum(rest, self.payload()).ok_or(NoRoom)?;
        self.write(headers, sum);
        Ok(to.len())
    }

    /// Writes the headers, which `to` is as long as. `sum` is that of the payload.
    #[inline(always)]
    fn write(&self, to: &mut [u8], sum: u64) {
        to.copy_from_slice(&self.packet.bytes[..to.len()]);
        match self.packet.body {
            Body::Plain { checksum: None, .. } => {}
            Body::Plain {
                checksum: Some(checksum),
                ..
            } => complete(to, checksum, sum),
            Body::Cut(cut) => self.number(&cut, to, sum),
        }
    }

    /// Makes the superpacket's headers those of the segment.
    #[inline(always)]
    fn number(&self, cut: &Cut, to: &mut [u8], sum: u64) {
        let end = to.len() + self.payload.len();
        let outer = cut.outer.map(|outer| outer.ip);
        for ip in [Some(cut.inner), outer].into_iter().flatten() {
            if ip.version == Version::V4 {
                // `inet_gso_segment`: the outer ones as well, whatever DF says.
                let id = word(to, ip.at() + 4).wrapping_add(low(self.index));
                set_word(to, ip.at() + 4, id);
            }
            ip.set_end(to, end);
        }
        let transport = cut.inner.transport();
        let length = end - transport;
        let header = &mut to[transport..];
        let pseudo = cut.pseudo + length as u64;
        if cut.tcp {
            // RFC 9293 §3.4: sequence numbers come round.
            let offset = u32::from(low(self.index * cut.size));
            let sequence = double_word(header, 4).wrapping_add(offset);
            header[4..8].copy_from_slice(&sequence.to_be_bytes());
            if !self.last {
                header[TCP_FLAGS] &= !(flag::FIN | flag::PSH);
            }
            if self.index > 0 {
                header[TCP_FLAGS] &= !flag::CWR;
            }
            set_word(header, TCP_CHECKSUM, 0);
            let sum = checksum::finish(checksum::sum(header) + pseudo + sum);
            set_word(header, TCP_CHECKSUM, sum);
        } else {
            set_word(header, 4, low(length));
            set_word(header, UDP_CHECKSUM, 0);
            let sum = checksum::finish_udp(checksum::sum(header) + pseudo + sum);
            set_word(header, UDP_CHECKSUM, sum);
        }
        let Some(outer) = cut.outer else { return };
        let at = outer.ip.transport();
        let length = end - at;
        set_word(to, at + 4, low(length));
        if let Some(outer) = outer.pseudo {
            set_word(to, at + UDP_CHECKSUM, 0);
            // What the inner checksum covers sums up to nothing but its pseudo header taken away (`lco_csum`).
            let inner = checksum::without(pseudo);
            let sum = checksum::sum(&to[at..transport]) + inner + outer + length as u64;
            set_word(to, at + UDP_CHECKSUM, checksum::finish_udp(sum));
        }
    }
}

/// Completes a checksum whose field holds the sum of the pseudo header (`skb_checksum_help`). `sum` is that of what
/// comes behind `headers`.
fn complete(headers: &mut [u8], checksum: Checksum, sum: u64) {
    let (start, offset) = (usize::from(checksum.start), usize::from(checksum.offset));
    let covered = &mut headers[start..];
    let sum = if covered.len().is_multiple_of(2) {
        sum
    } else {
        // RFC 1071 §2 (B): at an odd offset, bytes are swapped.
        u64::from(checksum::fold(sum).swap_bytes())
    };
    // Zero for UDP would be "no checksum"; the kernel makes no difference between protocols here.
    let sum = checksum::finish_udp(checksum::sum(covered) + sum);
    set_word(covered, offset, sum);
}

//! Header fields by their offsets, and the headers that cutting and joining change.

use culvert_packet::headers::{Headers, Version};

use crate::checksum;

/// Length of the Ethernet header without tags.
pub(crate) const ETHERNET: usize = 14;
/// Length of a UDP header.
pub(crate) const UDP_HEADER: usize = 8;
/// Length of a TCP header without options.
pub(crate) const TCP_HEADER: usize = 20;
/// Length of an IPv6 header without extension headers.
pub(crate) const IPV6_HEADER: usize = 40;

/// Offset of the checksum in a TCP header.
pub(crate) const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP header.
pub(crate) const UDP_CHECKSUM: usize = 6;
/// Offset of the flags in a TCP header.
pub(crate) const TCP_FLAGS: usize = 13;

/// TCP's flags (RFC 9293 §3.1, RFC 3168 §6.1).
pub(crate) mod flag {
    pub(crate) const FIN: u8 = 0x01;
    pub(crate) const SYN: u8 = 0x02;
    pub(crate) const RST: u8 = 0x04;
    pub(crate) const PSH: u8 = 0x08;
    pub(crate) const URG: u8 = 0x20;
    pub(crate) const CWR: u8 = 0x80;
}

/// The 16-bit word at `at`, which must be within `bytes`.
#[inline(always)]
pub(crate) fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes the 16-bit word at `at`, which must be within `bytes`.
#[inline(always)]
pub(crate) fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// The 32-bit word at `at`, which must be within `bytes`.
#[inline(always)]
pub(crate) fn double_word(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

/// The low 16 bits of a length or a count.
#[inline(always)]
#[expect(
    clippy::cast_possible_truncation,
    reason = "lengths are checked before, and identifications come round"
)]
pub(crate) fn low(value: usize) -> u16 {
    (value & 0xffff) as u16
}

/// Where an IP header is in a frame, and what goes behind it. Small, as there is one for each frame of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ip {
    pub(crate) version: Version,
    /// Offset of the IP header.
    pub(crate) at: u16,
    /// Offset of the transport header.
    pub(crate) transport: u16,
}

impl Ip {
    pub(crate) fn new(headers: &Headers) -> Self {
        Self {
            version: headers.version,
            at: low(headers.ip),
            transport: low(headers.transport),
        }
    }

    pub(crate) fn at(self) -> usize {
        usize::from(self.at)
    }

    pub(crate) fn transport(self) -> usize {
        usize::from(self.transport)
    }

    /// Makes the header say that the frame is `end` bytes long, and its checksum right (`inet_gso_segment`,
    /// `ipv6_gso_segment`).
    #[inline(always)]
    pub(crate) fn set_end(self, frame: &mut [u8], end: usize) {
        match self.version {
            Version::V4 => {
                let header = &mut frame[self.at()..self.transport()];
                set_word(header, 2, low(end - self.at()));
                set_word(header, 10, 0);
                let sum = checksum::finish(checksum::sum(header));
                set_word(header, 10, sum);
            }
            Version::V6 => set_word(frame, self.at() + 4, low(end - self.at() - IPV6_HEADER)),
        }
    }

    /// Sum of the pseudo header for `length` bytes of `protocol` (RFC 9293 §3.1, RFC 8200 §8.1).
    #[inline(always)]
    pub(crate) fn pseudo(self, frame: &[u8], protocol: u8, length: usize) -> u64 {
        let at = self.at();
        let addresses = match self.version {
            Version::V4 => &frame[at + 12..at + 20],
            Version::V6 => &frame[at + 8..at + 40],
        };
        checksum::sum(addresses) + u64::from(protocol) + length as u64
    }
}

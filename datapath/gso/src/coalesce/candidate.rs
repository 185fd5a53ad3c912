//! What a frame is to coalescing, and when two of them are alike.

use culvert_packet::headers::{Fragment, GENEVE_PORT, Headers, Packet, TCP, UDP, Version, walk};

use super::Settings;
use crate::checksum;
use crate::fields::{
    IPV6_HEADER, Ip, TCP_CHECKSUM, TCP_FLAGS, TCP_HEADER, UDP_CHECKSUM, UDP_HEADER, double_word,
    flag, low, word,
};

/// Geneve's fixed header (RFC 8926 §3.4).
const GENEVE: usize = 8;
/// Geneve's protocol type for Ethernet.
const TRANSPARENT_ETHERNET: u16 = 0x6558;
/// Length of the IPv4 header without options.
const IPV4_HEADER: usize = 20;
/// The packet is not to be cut: a flag in the IPv4 word of flags and offset (RFC 791 §3.1).
const DONT_FRAGMENT: u16 = 0x4000;

/// What a frame is.
pub(super) enum Class {
    /// Nobody knows what it belongs to.
    NoFlow,
    /// TCP or UDP in Geneve.
    Flow(Candidate),
}

/// TCP or UDP in Geneve.
#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) outer: Ip,
    pub(super) inner: Ip,
    pub(super) tcp: bool,
    /// It may be joined to others.
    pub(super) joins: bool,
    /// Its checksum, which covers what is between the transport header and the frame's end, need not be looked at by anyone:
    /// it can be left to be completed.
    pub(super) partial: bool,
    /// TCP's flags; none for UDP.
    pub(super) flags: u8,
    /// Where the payload starts.
    pub(super) payload: u16,
    /// The frame's length.
    pub(super) end: u16,
    /// Of addresses, VNI and ports, to tell most flows apart at once.
    hash: u64,
}

impl Candidate {
    /// What the frame is.
    #[inline]
    pub(super) fn of(bytes: &[u8], settings: &Settings, trusted: bool) -> Class {
        Self::in_flow(bytes, settings, trusted).map_or(Class::NoFlow, Class::Flow)
    }

    fn in_flow(bytes: &[u8], settings: &Settings, trusted: bool) -> Option<Self> {
        let end = u16::try_from(bytes.len()).ok()?;
        let outer = walk(bytes).ok().filter(whole)?;
        let udp: [u8; UDP_HEADER] = bytes.read(outer.transport)?;
        if outer.protocol != UDP || word(&udp, 2) != GENEVE_PORT {
            return None;
        }
        let geneve_at = outer.transport + UDP_HEADER;
        let geneve: [u8; GENEVE] = bytes.read(geneve_at)?;
        // Version 0, no control message (RFC 8926 §3.4).
        if geneve[0] >> 6 != 0 || geneve[1] & 0x80 != 0 || word(&geneve, 2) != TRANSPARENT_ETHERNET
        {
            return None;
        }
        let ethernet = geneve_at + GENEVE + usize::from(geneve[0] & 0x3f) * 4;
        let inner = walk(bytes.get(ethernet..)?).ok().filter(whole)?;
        let inner = Headers {
            ip: inner.ip + ethernet,
            transport: inner.transport + ethernet,
            end: inner.end + ethernet,
            ..inner
        };
        let (tcp, header, flags) = match inner.protocol {
            TCP => {
                let header: [u8; TCP_HEADER] = bytes.read(inner.transport)?;
                (true, usize::from(header[12] >> 4) * 4, header[TCP_FLAGS])
            }
            UDP => {
                bytes.read::<UDP_HEADER>(inner.transport)?;
                (false, UDP_HEADER, 0)
            }
            _ => return None,
        };
        let payload = inner.transport + header;
        let mut candidate = Self {
            outer: Ip::new(&outer),
            inner: Ip::new(&inner),
            tcp,
            joins: false,
            partial: false,
            flags,
            payload: low(payload),
            end,
            hash: 0,
        };
        candidate.hash = candidate.hash(bytes);
        // From here on, it has its place in its flow, whatever else is wrong.
        let exact = outer.end == bytes.len()
            && inner.end == bytes.len()
            && usize::from(word(&udp, 4)) == bytes.len() - outer.transport
            && payload <= bytes.len();
        let transport = &bytes[inner.transport..];
        let (complete, checksum) = if tcp {
            let checksum = word(transport, TCP_CHECKSUM);
            (exact && header >= TCP_HEADER, checksum)
        } else {
            let fits = usize::from(word(transport, 4)) == transport.len();
            (exact && fits, word(transport, UDP_CHECKSUM))
        };
        // Zero is no checksum of UDP's; and who completes one writes 0xffff for it, as the same value of TCP's.
        candidate.partial = trusted && complete && checksum != 0;
        // Segmenting writes zero for it.
        let unlike = if tcp { 0xffff } else { 0 };
        candidate.joins =
            complete && checksum != unlike && candidate.may_join(bytes, settings, trusted);
        Some(candidate)
    }

    /// Bytes of payload.
    pub(super) fn size(&self) -> u16 {
        self.end.saturating_sub(self.payload)
    }

    /// Whether it is a segment that can have others before or behind it.
    fn may_join(&self, bytes: &[u8], settings: &Settings, trusted: bool) -> bool {
        let allowed = settings.tcp && (self.tcp || settings.udp);
        // `tcp_gro_receive`: CWR is for one segment only.
        let alone = flag::SYN | flag::RST | flag::URG | flag::CWR;
        let tunnel_checksum = word(bytes, self.outer.transport() + UDP_CHECKSUM) != 0;
        allowed
            && self.size() > 0
            && self.flags & alone == 0
            && (settings.tunnel_checksum || !tunnel_checksum)
            && plain_header(bytes, self.outer)
            && plain_header(bytes, self.inner)
            && (trusted
                || self.right(bytes, self.inner, if self.tcp { TCP } else { UDP })
                    && (!tunnel_checksum || self.right(bytes, self.outer, UDP)))
    }

    /// Whether the checksum of a transport header is right.
    fn right(&self, bytes: &[u8], ip: Ip, protocol: u8) -> bool {
        let datagram = &bytes[ip.transport()..];
        checksum::finish(ip.pseudo(bytes, protocol, datagram.len()) + checksum::sum(datagram)) == 0
    }

    fn addresses(ip: Ip, bytes: &[u8]) -> &[u8] {
        match ip.version {
            Version::V4 => &bytes[ip.at() + 12..ip.at() + 20],
            Version::V6 => &bytes[ip.at() + 8..ip.at() + 40],
        }
    }

    /// Parts of the frame that make its flow: addresses, VNI, ports.
    fn flow<'a>(&self, bytes: &'a [u8]) -> [&'a [u8]; 4] {
        let geneve = self.outer.transport() + UDP_HEADER;
        let ports = self.inner.transport();
        [
            Self::addresses(self.inner, bytes),
            &bytes[ports..ports + 4],
            &bytes[geneve + 4..geneve + 8],
            Self::addresses(self.outer, bytes),
        ]
    }

    fn hash(&self, bytes: &[u8]) -> u64 {
        let mut hash = u64::from(self.tcp);
        for part in self.flow(bytes) {
            let (words, _) = part.as_chunks();
            for word in words {
                let word = u64::from(u32::from_ne_bytes(*word));
                hash = (hash.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            }
        }
        hash
    }

    /// Whether `other`, of the frame `theirs`, is of the flow of this, of `ours`.
    #[inline]
    pub(super) fn same_flow(&self, ours: &[u8], other: &Self, theirs: &[u8]) -> bool {
        self.hash == other.hash && self.tcp == other.tcp && self.flow(ours) == other.flow(theirs)
    }

    /// Whether `other` is what segmenting gives after `count` segments with `joined` bytes of payload, of which this is the
    /// first: all headers are the same but for what counts up.
    pub(super) fn alike(
        &self,
        ours: &[u8],
        other: &Self,
        theirs: &[u8],
        count: u16,
        joined: usize,
    ) -> bool {
        let (outer, inner) = (self.outer, self.inner);
        let same = |range: std::ops::Range<usize>| ours[range.clone()] == theirs[range];
        let udp = outer.transport();
        let transport = inner.transport();
        let has_checksum = |bytes: &[u8]| word(bytes, udp + UDP_CHECKSUM) != 0;
        outer == other.outer
            && inner == other.inner
            && self.payload == other.payload
            && same(0..outer.at())
            && alike(ours, theirs, outer, count, true)
            && same(udp..udp + 4)
            && has_checksum(ours) == has_checksum(theirs)
            // Geneve with its options, and the inner Ethernet header.
            && same(udp + UDP_HEADER..inner.at())
            && alike(ours, theirs, inner, count, false)
            && same(transport..transport + 4)
            && (!self.tcp || self.continues(&ours[transport..], &theirs[transport..], joined))
    }

    /// `tcp_gro_receive`: the next bytes, and all the same but for FIN and PSH.
    fn continues(&self, ours: &[u8], theirs: &[u8], joined: usize) -> bool {
        let sequence = double_word(ours, 4).wrapping_add(u32::from(low(joined)));
        let options = TCP_HEADER..usize::from(self.payload) - self.inner.transport();
        sequence == double_word(theirs, 4)
            // Acknowledgement, data offset.
            && ours[8..13] == theirs[8..13]
            && (ours[TCP_FLAGS] ^ theirs[TCP_FLAGS]) & !(flag::FIN | flag::PSH) == 0
            // Window; urgent pointer.
            && ours[14..16] == theirs[14..16]
            && ours[18..20] == theirs[18..20]
            && ours[options.clone()] == theirs[options]
    }
}

fn whole(headers: &Headers) -> bool {
    headers.fragment == Fragment::Whole
}

/// No options or extension headers, and a header checksum that is right.
fn plain_header(bytes: &[u8], ip: Ip) -> bool {
    match ip.version {
        Version::V4 => {
            let header = &bytes[ip.at()..ip.transport()];
            header.len() == IPV4_HEADER
                && word(header, 6) & !DONT_FRAGMENT == 0
                && checksum::finish(checksum::sum(header)) == 0
        }
        Version::V6 => ip.transport() - ip.at() == IPV6_HEADER,
    }
}

/// Whether two IP headers are the same but for the length, and an identification that counts up
/// (`inet_gro_flush`, `ipv6_gro_flush`).
fn alike(ours: &[u8], theirs: &[u8], ip: Ip, count: u16, outer: bool) -> bool {
    let (ours, theirs) = (&ours[ip.at()..], &theirs[ip.at()..]);
    let same = |range: std::ops::Range<usize>| ours[range.clone()] == theirs[range];
    match ip.version {
        Version::V4 => {
            let counts = word(theirs, 4) == word(ours, 4).wrapping_add(count);
            let atomic = outer && word(ours, 6) & DONT_FRAGMENT != 0;
            same(0..2) && same(6..10) && same(12..20) && (counts || atomic)
        }
        Version::V6 => same(0..4) && same(6..IPV6_HEADER),
    }
}

//! What a frame is cut into, by its header and its own headers, which must agree.

use culvert_packet::headers::{Fragment, Headers, TCP, UDP, Version, walk, walk_ip};

use super::{LEAST, Refused};
use crate::checksum;
use crate::fields::{ETHERNET, Ip, TCP_CHECKSUM, TCP_HEADER, UDP_CHECKSUM, UDP_HEADER, word};
use crate::vnet::{Checksum, Gso, Header, Kind, Tunnel};

/// Most datagrams of a UDP superpacket (`UDP_MAX_SEGMENTS`).
const MOST_DATAGRAMS: usize = 128;

/// Length of a VLAN tag.
const VLAN: usize = 4;

#[derive(Clone, Copy, Debug)]
pub(super) enum Body {
    /// A single packet. Its headers end at `split` or before, and so does the checksum.
    Plain {
        split: usize,
        checksum: Option<Checksum>,
    },
    Cut(Cut),
}

/// What all segments of a superpacket have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    pub(super) outer: Option<Outer>,
    pub(super) inner: Ip,
    pub(super) tcp: bool,
    /// Where the payload starts.
    pub(super) payload: usize,
    /// Bytes of payload in each segment but the last.
    pub(super) size: usize,
    /// Sum of the inner pseudo header without the length.
    pub(super) pseudo: u64,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Outer {
    pub(super) ip: Ip,
    /// Sum of the pseudo header without the length, if there is to be a checksum.
    pub(super) pseudo: Option<u64>,
}

/// Whole, of `protocol`, and ending where the frame does.
fn check(ip: &Headers, protocol: u8, end: usize) -> Result<(), Refused> {
    if ip.fragment != Fragment::Whole {
        return Err(Refused::Malformed);
    }
    if ip.protocol != protocol {
        return Err(Refused::Kind);
    }
    if ip.end != end {
        return Err(Refused::Length);
    }
    Ok(())
}

/// Whether the UDP header at `at`, which is cut off by nothing, says that its datagram ends where the frame does.
fn udp_fits(bytes: &[u8], at: usize) -> Result<(), Refused> {
    let header = bytes.get(at..at + UDP_HEADER).ok_or(Refused::Transport)?;
    (usize::from(word(header, 4)) == bytes.len() - at)
        .then_some(())
        .ok_or(Refused::Length)
}

impl Outer {
    /// The outer headers, and the offset of the inner IP header.
    fn new(bytes: &[u8], tunnel: Tunnel) -> Result<(Self, usize), Refused> {
        let headers = walk(bytes).map_err(|_| Refused::Malformed)?;
        // Of a packet with a tag that is not kept beside it, `virtio_net_hdr_tnl_from_skb` asks whether the tag is IPv6.
        let tagged = headers.ip >= ETHERNET + VLAN;
        match (headers.version, tunnel.v6) {
            (Version::V4, false) | (Version::V6, true) => {}
            (Version::V6, false) if tagged => {}
            _ => return Err(Refused::Kind),
        }
        check(&headers, UDP, bytes.len())?;
        udp_fits(bytes, headers.transport)?;
        let (transport, inner) = (
            usize::from(tunnel.outer_transport),
            usize::from(tunnel.inner_network),
        );
        // `virtio_net_hdr_tnl_from_skb` counts a VLAN tag that the kernel keeps beside the packet for the checksum's
        // offset, and forgets it for these two.
        let forgotten = headers
            .transport
            .checked_sub(transport)
            .filter(|forgotten| *forgotten == 0 || *forgotten == VLAN && tagged)
            .ok_or(Refused::Offset)?;
        let inner = inner + forgotten;
        // Sums of parts are added, so parts start at even offsets.
        if inner < headers.transport + UDP_HEADER || !(inner - headers.transport).is_multiple_of(2)
        {
            return Err(Refused::Offset);
        }
        let field = word(bytes, headers.transport + UDP_CHECKSUM);
        let length = bytes.len() - headers.transport;
        let outer = Self {
            ip: Ip::new(&headers),
            pseudo: tunnel
                .checksum
                .then(|| u64::from(field) + checksum::without(length as u64)),
        };
        Ok((outer, inner))
    }
}

impl Cut {
    /// Holds the header against the frame.
    pub(super) fn new(header: &Header, gso: Gso, bytes: &[u8]) -> Result<Self, Refused> {
        let (outer, headers) = match gso.tunnel {
            Some(tunnel) => {
                let (outer, inner) = Outer::new(bytes, tunnel)?;
                (Some(outer), walk_ip(bytes, inner))
            }
            None => (None, walk(bytes)),
        };
        let headers = headers.map_err(|_| Refused::Malformed)?;
        let tcp = gso.kind != Kind::Udp;
        check(&headers, if tcp { TCP } else { UDP }, bytes.len())?;
        let version = match gso.kind {
            Kind::TcpV4 => Version::V4,
            Kind::TcpV6 => Version::V6,
            Kind::Udp => headers.version,
        };
        if headers.version != version {
            return Err(Refused::Kind);
        }
        let transport = headers.transport;
        let field_at = if tcp { TCP_CHECKSUM } else { UDP_CHECKSUM };
        if let Some(checksum) = header.checksum
            && (usize::from(checksum.start), usize::from(checksum.offset)) != (transport, field_at)
        {
            return Err(Refused::Offset);
        }
        let payload = if tcp {
            let fixed = bytes
                .get(transport..transport + TCP_HEADER)
                .ok_or(Refused::Transport)?;
            let length = usize::from(fixed[12] >> 4) * 4;
            if length < TCP_HEADER {
                return Err(Refused::Transport);
            }
            transport + length
        } else {
            udp_fits(bytes, transport)?;
            transport + UDP_HEADER
        };
        let size = usize::from(gso.size);
        let total = bytes.len().saturating_sub(payload);
        if total == 0 {
            return Err(Refused::Transport);
        }
        if if tcp {
            size < LEAST
        } else {
            total > size * MOST_DATAGRAMS
        } {
            return Err(Refused::Segments);
        }
        let inner = Ip::new(&headers);
        let pseudo = match header.checksum {
            Some(_) => {
                let field = word(bytes, transport + field_at);
                u64::from(field) + checksum::without((bytes.len() - transport) as u64)
            }
            // `tcp4_gso_segment`: the sum of the pseudo header is not there yet.
            None if tcp => inner.pseudo(bytes, TCP, 0),
            None => return Err(Refused::Checksum),
        };
        Ok(Self {
            outer,
            inner,
            tcp,
            payload,
            size,
            pseudo,
        })
    }
}

/// A single packet, with the checksum that is to be completed.
pub(super) fn plain(checksum: Option<Checksum>, bytes: &[u8]) -> Result<Body, Refused> {
    let mut split = match walk(bytes) {
        Ok(headers) => bytes.len().min(headers.transport + UDP_HEADER),
        Err(_) => bytes.len().min(ETHERNET),
    };
    if let Some(checksum) = checksum {
        let field = usize::from(checksum.start) + usize::from(checksum.offset);
        if field + 2 > bytes.len() || usize::from(checksum.start) < ETHERNET {
            return Err(Refused::Offset);
        }
        split = split.max(field + 2);
    }
    Ok(Body::Plain { split, checksum })
}

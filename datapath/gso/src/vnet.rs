//! The header that TUN puts before each frame with `IFF_VNET_HDR`, and takes before each frame that is written:
//! `virtio_net_hdr` and what it has grown into (virtio 1.3 §5.1.6, Linux `include/uapi/linux/virtio_net.h`,
//! `drivers/net/tun_vnet.h`).
//!
//! [`Header::parse`] takes what the bytes alone can say; whether it is true of the frame behind it is for
//! [`Superpacket`](crate::Superpacket). All fields are little endian: the host's order where Culvert runs, and
//! everywhere with `TUNSETVNETLE`.

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`: a checksum is to be completed.
const NEEDS_CHECKSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`: checksums were found right.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_F_UDP_TUNNEL_CSUM`: the tunnel's UDP header has a checksum.
const TUNNEL_CHECKSUM: u8 = 8;

/// `VIRTIO_NET_HDR_GSO_TCPV4`
const TCP_V4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`
const TCP_V6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`
const UDP: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV4`
const TUNNEL_V4: u8 = 0x20;
/// `VIRTIO_NET_HDR_GSO_UDP_TUNNEL_IPV6`
const TUNNEL_V6: u8 = 0x40;
/// `VIRTIO_NET_HDR_GSO_ECN`
const ECN: u8 = 0x80;

/// Length of the longest header.
pub const LONGEST: usize = 24;

/// Which of the headers is in use, by `TUNSETVNETHDRSZ`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// `virtio_net_hdr`, 10 bytes.
    Basic,
    /// `virtio_net_hdr_v1` or `virtio_net_hdr_mrg_rxbuf`, 12 bytes.
    V1,
    /// `virtio_net_hdr_v1_hash_tunnel`, 24 bytes: Linux 6.17 and later, with `TUN_F_UDP_TUNNEL_GSO`.
    Tunnel,
}

impl Layout {
    /// Its length in bytes, which is what `TUNSETVNETHDRSZ` takes.
    #[must_use]
    pub const fn size(self) -> usize {
        match self {
            Self::Basic => 10,
            Self::V1 => 12,
            Self::Tunnel => LONGEST,
        }
    }
}

/// The checksum that is to be completed: the field holds the sum of the pseudo header. Offsets in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Checksum {
    /// Where what it covers starts, from the frame's start; it goes on to the frame's end.
    pub start: u16,
    /// Where it stands, from `start`.
    pub offset: u16,
}

/// What a superpacket is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// TCP in IPv4.
    TcpV4,
    /// TCP in IPv6.
    TcpV6,
    /// UDP datagrams of one length but for the last, in IPv4 or IPv6.
    Udp,
}

/// How a superpacket is to be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gso {
    /// Of what.
    pub kind: Kind,
    /// Bytes of payload in each segment but the last; not zero.
    pub size: u16,
    /// `VIRTIO_NET_HDR_GSO_ECN`: the first segment has TCP's CWR flag.
    pub ecn: bool,
    /// The tunnel that it is in, if it is.
    pub tunnel: Option<Tunnel>,
}

/// The UDP tunnel around a superpacket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The outer header is IPv6, else IPv4.
    pub v6: bool,
    /// The outer UDP header is to have a checksum; its field holds the sum of the pseudo header.
    pub checksum: bool,
    /// Offset of the outer UDP header from the frame's start, in bytes.
    pub outer_transport: u16,
    /// Offset of the inner IP header from the frame's start, in bytes.
    pub inner_network: u16,
}

/// A header, understood.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// The checksum to be completed; the inner one, of a tunnel.
    pub checksum: Option<Checksum>,
    /// All checksums are right. The kernel says so of what it has checked, and takes no notice of it in what is written.
    pub valid: bool,
    /// How long the headers are, in bytes: a hint, which is not believed.
    pub headers: u16,
    /// How to cut the frame, if it is a superpacket.
    pub gso: Option<Gso>,
}

/// Why a header is refused. The frame behind it is to be dropped: nobody knows what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Fewer bytes than the layout has.
    Short,
    /// A kind of superpacket that was not offered to the kernel (such as UFO), or no kind that there is.
    Kind,
    /// A segment size of zero, or of 0xffff (`GSO_BY_FRAGS`, which is the kernel's own).
    Size,
    /// A tunnel of both IP versions, without a superpacket, without a checksum to complete, or in a layout without tunnels.
    Tunnel,
}

/// The 16-bit field at `at`, which must be within `bytes`.
fn field(bytes: &[u8; LONGEST], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn set_field(bytes: &mut [u8; LONGEST], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

impl Header {
    /// Reads the header at the start of `bytes`. The rules are those of the kernel's `virtio_net_hdr_tnl_to_skb`.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn parse(bytes: &[u8], layout: Layout) -> Result<Self, Error> {
        let given = bytes.get(..layout.size()).ok_or(Error::Short)?;
        let mut bytes = [0; LONGEST];
        bytes[..given.len()].copy_from_slice(given);
        let [flags, kind, ..] = bytes;
        Ok(Self {
            checksum: (flags & NEEDS_CHECKSUM != 0).then(|| Checksum {
                start: field(&bytes, 6),
                offset: field(&bytes, 8),
            }),
            valid: flags & DATA_VALID != 0,
            headers: field(&bytes, 2),
            gso: gso(&bytes, flags, kind, layout)?,
        })
    }

    /// Writes the header to the start of `to`, and returns its length.
    ///
    /// # Errors
    /// [`Error::Short`] if `to` is too short, [`Error::Tunnel`] and [`Error::Size`] if [`Header::parse`] would refuse it.
    pub fn write(&self, to: &mut [u8], layout: Layout) -> Result<usize, Error> {
        let mut bytes = [0; LONGEST];
        if self.valid {
            bytes[0] |= DATA_VALID;
        }
        set_field(&mut bytes, 2, self.headers);
        if let Some(checksum) = self.checksum {
            bytes[0] |= NEEDS_CHECKSUM;
            set_field(&mut bytes, 6, checksum.start);
            set_field(&mut bytes, 8, checksum.offset);
        }
        if let Some(gso) = self.gso {
            bytes[1] = match gso.kind {
                Kind::TcpV4 => TCP_V4,
                Kind::TcpV6 => TCP_V6,
                Kind::Udp => UDP,
            };
            if gso.ecn {
                bytes[1] |= ECN;
            }
            set_field(&mut bytes, 4, gso.size);
            if let Some(tunnel) = gso.tunnel {
                bytes[1] |= if tunnel.v6 { TUNNEL_V6 } else { TUNNEL_V4 };
                if tunnel.checksum {
                    bytes[0] |= TUNNEL_CHECKSUM;
                }
                set_field(&mut bytes, 20, tunnel.outer_transport);
                set_field(&mut bytes, 22, tunnel.inner_network);
            }
        }
        if layout != Layout::Basic {
            // Buffers that the frame is in; the driver's business, and one.
            set_field(&mut bytes, 10, 1);
        }
        gso(&bytes, bytes[0], bytes[1], layout)?;
        let size = layout.size();
        to.get_mut(..size)
            .ok_or(Error::Short)?
            .copy_from_slice(&bytes[..size]);
        Ok(size)
    }
}

/// How the frame is to be cut, if it is to be.
fn gso(bytes: &[u8; LONGEST], flags: u8, kind: u8, layout: Layout) -> Result<Option<Gso>, Error> {
    let tunnel = match kind & (TUNNEL_V4 | TUNNEL_V6) {
        0 => None,
        version @ (TUNNEL_V4 | TUNNEL_V6) if layout == Layout::Tunnel => Some(Tunnel {
            v6: version == TUNNEL_V6,
            checksum: flags & TUNNEL_CHECKSUM != 0,
            outer_transport: field(bytes, 20),
            inner_network: field(bytes, 22),
        }),
        _ => return Err(Error::Tunnel),
    };
    let ecn = kind & ECN != 0;
    let kind = match kind & !(TUNNEL_V4 | TUNNEL_V6 | ECN) {
        0 if ecn => return Err(Error::Kind),
        0 if tunnel.is_some() => return Err(Error::Tunnel),
        0 => return Ok(None),
        TCP_V4 => Kind::TcpV4,
        TCP_V6 => Kind::TcpV6,
        UDP if !ecn => Kind::Udp,
        _ => return Err(Error::Kind),
    };
    if tunnel.is_some() && flags & NEEDS_CHECKSUM == 0 {
        return Err(Error::Tunnel);
    }
    let size = field(bytes, 4);
    if size == 0 || size == u16::MAX {
        return Err(Error::Size);
    }
    Ok(Some(Gso {
        kind,
        size,
        ecn,
        tunnel,
    }))
}

#[cfg(test)]
mod tests;

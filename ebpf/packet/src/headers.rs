//! The header walk: Ethernet, up to two VLAN tags, IPv4 or IPv6 with its extension headers, to the
//! transport header. It reads only, and every read is bounds-checked by the [`Packet`] it is given.

/// EtherType of IPv4.
pub const ETH_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETH_IPV6: u16 = 0x86dd;
/// EtherTypes of a VLAN tag: 802.1Q and 802.1ad.
pub const ETH_VLAN: [u16; 2] = [0x8100, 0x88a8];
/// IP protocol TCP.
pub const TCP: u8 = 6;
/// IP protocol UDP.
pub const UDP: u8 = 17;
/// IP protocol ESP (RFC 4303).
pub const ESP: u8 = 50;
/// IPv6 destination options (RFC 8200 §4.6), as a protocol number.
pub const DESTINATION_OPTIONS: u8 = 60;
/// UDP port of Geneve (RFC 8926).
pub const GENEVE_PORT: u16 = 6081;
/// UDP port of ESP in UDP, shared with IKE (RFC 3948).
pub const NAT_T_PORT: u16 = 4500;

/// Most IPv6 extension headers that are walked: more have no honest use, and the verifier wants an end.
const EXTENSION_HEADERS: usize = 6;
/// Headers must end before this offset, which bounds every offset for the verifier.
const HEADERS_END: usize = 1024;

/// Bytes that can be read at an offset: a slice in userspace, a packet in an eBPF program.
pub trait Packet {
    /// `N` bytes at `offset`, or `None` past the packet's end.
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]>;
}

impl Packet for [u8] {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.get(offset..)?.first_chunk().copied()
    }
}

/// IP version of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// IPv4, RFC 791.
    V4,
    /// IPv6, RFC 8200.
    V6,
}

/// What the fragment fields of the IP header say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// A whole datagram.
    Whole,
    /// Offset zero, more to come: has the transport header. Carries the datagram's identification.
    First(u32),
    /// Offset above zero: has no transport header. Carries the datagram's identification.
    Later(u32),
}

/// An IP address of either version, IPv4 as IPv4-mapped IPv6 (`::ffff:a.b.c.d`), network order.
pub type Address = [u8; 16];

/// Where the headers of a packet are, and the fields that steering and ESP need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Headers {
    /// IP version.
    pub version: Version,
    /// Offset of the IP header from the frame's start.
    pub ip: usize,
    /// Offset of the byte that names [`Headers::protocol`]: in the IP header, or in the last IPv6
    /// extension header.
    pub protocol_at: usize,
    /// Offset of the transport header (or of the fragment's data).
    pub transport: usize,
    /// IP protocol number of what stands at [`Headers::transport`].
    pub protocol: u8,
    /// Offset at which an ESP header goes in (RFC 4303 §3.1.1): behind what is read on the way, before
    /// destination options that concern the receiver alone. [`Headers::transport`], but for such options.
    pub inner: usize,
    /// Offset of the byte that names [`Headers::inner_protocol`].
    pub inner_protocol_at: usize,
    /// IP protocol number of what stands at [`Headers::inner`].
    pub inner_protocol: u8,
    /// Where the datagram ends by its IP header, from the frame's start; Ethernet padding comes after.
    pub end: usize,
    /// Fragmentation.
    pub fragment: Fragment,
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
}

/// Why a walk ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// Neither IPv4 nor IPv6: not ours to judge.
    NotIp,
    /// IP, but its headers contradict themselves or the frame's length, or go on beyond what is walked.
    Malformed,
}

/// Maps an IPv4 address into an [`Address`].
#[inline(always)]
#[must_use]
pub fn mapped(v4: [u8; 4]) -> Address {
    // As two words, and not byte by byte: so it is copied then.
    let mut address = [0; 16];
    let low = 0xffff << 32 | u32::from_be_bytes(v4) as u64;
    address[8..].copy_from_slice(&low.to_be_bytes());
    address
}

/// Whether an address is an IPv4 address, mapped.
#[inline(always)]
#[must_use]
pub fn is_mapped(address: &Address) -> bool {
    let [zeros @ .., _, _, _, _] = mapped([0; 4]);
    let [start @ .., _, _, _, _] = *address;
    start == zeros
}

/// Walks the headers of an Ethernet frame up to the transport header.
///
/// # Errors
/// [`Stop::NotIp`] for anything but IPv4 and IPv6; [`Stop::Malformed`] where IP headers are cut off
/// or inconsistent. The datagram's claimed end is not compared with the frame's length, which an
/// eBPF program on a superpacket does not see: callers in userspace check [`Headers::end`].
#[inline(always)]
pub fn walk<P: Packet + ?Sized>(packet: &P) -> Result<Headers, Stop> {
    match find_ip(packet) {
        Some((Version::V4, at)) => walk_v4(packet, at),
        Some((Version::V6, at)) => walk_v6(packet, at),
        None => Err(Stop::NotIp),
    }
}

/// Walks the headers of a packet from the IP header at `ip` on, of the version that its first byte says: for what is
/// in a tunnel, where other headers stand before it. [`Headers`] counts from the start of `packet`.
///
/// # Errors
/// As [`walk`].
#[inline(always)]
pub fn walk_ip<P: Packet + ?Sized>(packet: &P, ip: usize) -> Result<Headers, Stop> {
    let [first] = packet.read(ip).ok_or(Stop::Malformed)?;
    match first >> 4 {
        4 => walk_v4(packet, ip),
        6 => walk_v6(packet, ip),
        _ => Err(Stop::NotIp),
    }
}

/// Source and destination of a packet that [`walk`] found malformed, if they can be read: who is to answer
/// for it.
#[inline(always)]
pub fn addresses<P: Packet + ?Sized>(packet: &P) -> Option<(Address, Address)> {
    match find_ip(packet)? {
        (Version::V4, at) => Some((mapped(packet.read(at + 12)?), mapped(packet.read(at + 16)?))),
        (Version::V6, at) => Some((packet.read(at + 8)?, packet.read(at + 24)?)),
    }
}

/// IP version, and offset of the IP header, behind Ethernet and VLAN tags.
#[inline(always)]
pub fn find_ip<P: Packet + ?Sized>(packet: &P) -> Option<(Version, usize)> {
    let mut at = 12;
    let mut ethertype = u16::from_be_bytes(packet.read(at)?);
    at += 2;
    // IEEE 802.1Q: a tag is four bytes, of which the last two are the next EtherType.
    for _ in 0..2 {
        if ethertype != ETH_VLAN[0] && ethertype != ETH_VLAN[1] {
            break;
        }
        ethertype = u16::from_be_bytes(packet.read(at + 2)?);
        at += 4;
    }
    match ethertype {
        ETH_IPV4 => Some((Version::V4, at)),
        ETH_IPV6 => Some((Version::V6, at)),
        _ => None,
    }
}

/// As [`walk`], from the IPv4 header at `ip` on.
///
/// # Errors
/// As [`walk`].
#[inline(always)]
pub fn walk_v4<P: Packet + ?Sized>(packet: &P, ip: usize) -> Result<Headers, Stop> {
    let header: [u8; 20] = packet.read(ip).ok_or(Stop::Malformed)?;
    let header_length = usize::from(header[0] & 0x0f) * 4;
    let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
    if header[0] >> 4 != 4 || header_length < 20 || total < header_length {
        return Err(Stop::Malformed);
    }
    let identification = u32::from(u16::from_be_bytes([header[4], header[5]]));
    let fragment = match u16::from_be_bytes([header[6], header[7]]) & 0x3fff {
        0 => Fragment::Whole,
        0x2000 => Fragment::First(identification),
        _ => Fragment::Later(identification),
    };
    Ok(Headers {
        version: Version::V4,
        ip,
        protocol_at: ip + 9,
        transport: ip + header_length,
        protocol: header[9],
        // RFC 4303 §3.1.1 [3.1.1-after-ip-header]
        inner: ip + header_length,
        inner_protocol_at: ip + 9,
        inner_protocol: header[9],
        end: ip + total,
        fragment,
        source: mapped([header[12], header[13], header[14], header[15]]),
        destination: mapped([header[16], header[17], header[18], header[19]]),
    })
}

/// As [`walk`], from the IPv6 header at `ip` on.
///
/// # Errors
/// As [`walk`].
#[inline(always)]
pub fn walk_v6<P: Packet + ?Sized>(packet: &P, ip: usize) -> Result<Headers, Stop> {
    let start: [u8; 8] = packet.read(ip).ok_or(Stop::Malformed)?;
    let source: [u8; 16] = packet.read(ip + 8).ok_or(Stop::Malformed)?;
    let destination: [u8; 16] = packet.read(ip + 24).ok_or(Stop::Malformed)?;
    // RFC 4291 §2.5.5.2: IPv4-mapped addresses are no node's on a wire; here they stand for IPv4.
    if start[0] >> 4 != 6 || is_mapped(&source) || is_mapped(&destination) {
        return Err(Stop::Malformed);
    }
    let mut headers = Headers {
        version: Version::V6,
        ip,
        protocol_at: ip + 6,
        transport: ip + 40,
        protocol: start[6],
        inner: ip + 40,
        inner_protocol_at: ip + 6,
        inner_protocol: start[6],
        end: ip + 40 + usize::from(u16::from_be_bytes([start[4], start[5]])),
        fragment: Fragment::Whole,
        source,
        destination,
    };
    for _ in 0..EXTENSION_HEADERS {
        let options_for_the_receiver = headers.protocol == DESTINATION_OPTIONS;
        let length = match headers.protocol {
            // Hop-by-hop options, routing, destination options: RFC 8200 §4.
            0 | 43 | DESTINATION_OPTIONS => {
                let header: [u8; 2] = packet.read(headers.transport).ok_or(Stop::Malformed)?;
                headers.protocol = header[0];
                (usize::from(header[1]) + 1) * 8
            }
            // RFC 4303 §3.3.4 [3.3.4-ipv6-fragment-header]
            // Fragment header: RFC 8200 §4.5.
            44 => {
                let header: [u8; 8] = packet.read(headers.transport).ok_or(Stop::Malformed)?;
                let identification =
                    u32::from_be_bytes([header[4], header[5], header[6], header[7]]);
                headers.protocol = header[0];
                headers.fragment = match u16::from_be_bytes([header[2], header[3]]) & 0xfff9 {
                    0 => headers.fragment,
                    1 => Fragment::First(identification),
                    _ => Fragment::Later(identification),
                };
                8
            }
            _ => return Ok(headers),
        };
        headers.protocol_at = headers.transport;
        headers.transport += length;
        if headers.transport > HEADERS_END {
            return Err(Stop::Malformed);
        }
        // RFC 4303 §3.1.1 [3.1.1-after-extensions, 3.1.1-destination-options]
        // Destination options before a routing header are read on the way: it moves the place behind both.
        if !options_for_the_receiver {
            headers.inner = headers.transport;
            headers.inner_protocol_at = headers.protocol_at;
            headers.inner_protocol = headers.protocol;
        }
        if matches!(headers.fragment, Fragment::Later(_)) {
            return Ok(headers);
        }
    }
    match headers.protocol {
        0 | 43 | 44 | 60 => Err(Stop::Malformed),
        _ => Ok(headers),
    }
}

/// The first SPI that an SA may have; those before it are reserved (RFC 4303 §2.1).
pub const FIRST_SPI: u32 = 256;

/// What a packet is to Culvert.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// ESP directly over IP; the SPI.
    Esp(u32),
    /// ESP in UDP port 4500 (RFC 3948); the SPI.
    EspInUdp(u32),
    /// UDP with 6081 as source or destination port.
    Geneve,
    /// A keepalive of ESP in UDP (RFC 3948 §2.3).
    NatKeepalive,
    /// UDP of another port, whole or a first fragment.
    OtherUdp,
    /// A fragment after the first: its ports are unknown.
    LaterFragment,
    /// The transport header is cut off.
    Truncated,
    /// Anything else.
    Other,
}

/// Says what the packet at `headers` is. ESP fragments come out as [`Kind::Esp`]: callers that need
/// whole datagrams look at [`Headers::fragment`].
#[inline(always)]
pub fn classify<P: Packet + ?Sized>(packet: &P, headers: &Headers) -> Kind {
    if let Fragment::Later(_) = headers.fragment {
        return Kind::LaterFragment;
    }
    match headers.protocol {
        ESP => match packet.read(headers.transport) {
            Some(spi) => Kind::Esp(u32::from_be_bytes(spi)),
            None => Kind::Truncated,
        },
        UDP => {
            let Some(udp) = packet.read::<8>(headers.transport) else {
                return Kind::Truncated;
            };
            let source = u16::from_be_bytes([udp[0], udp[1]]);
            let destination = u16::from_be_bytes([udp[2], udp[3]]);
            let length = u16::from_be_bytes([udp[4], udp[5]]);
            if source == GENEVE_PORT || destination == GENEVE_PORT {
                return Kind::Geneve;
            }
            // RFC 3948 §2.2, §2.3: four zero bytes mark IKE, a single 0xff is a keepalive. Either
            // port, as a NAT may have moved the other one.
            if destination == NAT_T_PORT || source == NAT_T_PORT {
                if length <= 8 + 4 {
                    // With its UDP header: alone, the byte is something that the verifier cannot follow.
                    return match packet.read::<9>(headers.transport) {
                        Some([.., 0xff]) if length == 8 + 1 => Kind::NatKeepalive,
                        _ => Kind::OtherUdp,
                    };
                }
                if let Some(marker) = packet.read(headers.transport + 8) {
                    let spi = u32::from_be_bytes(marker);
                    if spi != 0 {
                        return Kind::EspInUdp(spi);
                    }
                }
            }
            Kind::OtherUdp
        }
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests;

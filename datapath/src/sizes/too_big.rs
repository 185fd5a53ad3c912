//! The ICMP error that tells the host's stack that its packet is too large: "fragmentation needed and DF
//! set" (RFC 792, RFC 1191 §4), "packet too big" (RFC 4443 §3.2, RFC 8201).
//!
//! It is built in the frame of the packet that was too large, around the part of it that is quoted, and
//! looks as if the peer had sent it: that is who the host's stack expects ICMP errors from, and whose path
//! MTU it notes.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::ops::Range;

use culvert_esp::buffer::Frame;
use culvert_esp::checksum;
use culvert_packet::headers::{Address, Fragment, Headers, Version};

use super::{bytes, set_word};

/// Longest ICMP error over IPv4, from the IP header on (RFC 1812 §4.3.2.3).
const LONGEST_V4: usize = 576;
/// Longest ICMPv6 error, from the IP header on: the smallest MTU of IPv6 (RFC 4443 §2.4 (c)).
const LONGEST_V6: usize = 1280;
/// Smallest MTU of IPv4 (RFC 791 §3.2); below it the stack would not believe the message.
const SMALLEST_V4: u32 = 68;
/// Smallest MTU of IPv6 (RFC 8200 §5).
const SMALLEST_V6: u32 = 1280;

/// IP protocol ICMP, and ICMPv6.
const ICMP: u8 = 1;
const ICMP_V6: u8 = 58;
/// Length of the ICMP header with the MTU.
const ICMP_HEADER: usize = 8;
/// TTL and hop limit of what is built.
const HOPS: u8 = 64;

/// Why there is no answer. The frame is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// The packet's headers are not those that were given.
    Malformed,
    /// RFC 1122 §3.2.2, RFC 4443 §2.4 (e): ICMP errors, later fragments, and packets from or to an address
    /// that is not one host's are never answered.
    Unanswerable,
    /// The chunk does not take the answer.
    NoRoom,
}

// RFC 4303 §3.3.4 [3.3.4-pmtu]
/// Makes of the packet in `frame`, whose `headers` are relative to the frame's start, the error that says
/// that packets to its destination must not be longer than `mtu` bytes from the IP header on. Whether DF is
/// set in an IPv4 packet is not looked at.
///
/// # Errors
/// See [`Error`].
pub fn too_big<F: Frame>(frame: &mut F, headers: &Headers, mtu: u32) -> Result<(), Error> {
    let packet = bytes(frame)
        .get(..headers.end)
        .filter(|_| headers.ip < headers.transport && headers.transport <= headers.end)
        .ok_or(Error::Malformed)?;
    if !answerable(packet, headers) {
        return Err(Error::Unanswerable);
    }
    let (ip_header, longest) = match headers.version {
        Version::V4 => (20, LONGEST_V4),
        Version::V6 => (40, LONGEST_V6),
    };
    let front = ip_header + ICMP_HEADER;
    let quoted = (headers.end - headers.ip).min(longest - front);
    let bounds = make_room(frame, headers.ip, front, quoted).ok_or(Error::NoRoom)?;

    let packet = &mut frame.chunk()[bounds.clone()];
    let (ethernet, message) = packet.split_at_mut(headers.ip);
    // The two Ethernet addresses change places; VLAN tags and EtherType stay.
    let (destination, rest) = ethernet.split_at_mut(6);
    destination.swap_with_slice(&mut rest[..6]);
    match headers.version {
        Version::V4 => write_v4(message, headers, mtu),
        Version::V6 => write_v6(message, headers, mtu),
    }
    frame.set_bounds(bounds);
    Ok(())
}

/// Opens a gap of `front` bytes between the Ethernet header, of `ethernet` bytes, and the IP packet behind it,
/// of which `quoted` bytes are kept. Where the packet now is in the chunk; `None` if there is no room.
fn make_room<F: Frame>(
    frame: &mut F,
    ethernet: usize,
    front: usize,
    quoted: usize,
) -> Option<Range<usize>> {
    let old = frame.bounds().start;
    let chunk = frame.chunk();
    if let Some(start) = old.checked_sub(front) {
        chunk.copy_within(old..old + ethernet, start);
        return Some(start..old + ethernet + quoted);
    }
    // Too little headroom: what is quoted moves back instead.
    let end = old + ethernet + front + quoted;
    if end > chunk.len() {
        return None;
    }
    let quote = old + ethernet;
    chunk.copy_within(quote..quote + quoted, quote + front);
    Some(old..end)
}

fn write_v4(message: &mut [u8], headers: &Headers, mtu: u32) {
    let length = u16::try_from(message.len()).unwrap_or(u16::MAX);
    let (ip, icmp) = message.split_at_mut(20);
    ip.fill(0);
    // RFC 1812 §4.3.2.5: ICMP errors go with the precedence of internetwork control.
    ip[..2].copy_from_slice(&[0x45, 0xc0]);
    set_word(ip, 2, length);
    ip[8..10].copy_from_slice(&[HOPS, ICMP]);
    ip[12..16].copy_from_slice(&v4(&headers.destination));
    ip[16..20].copy_from_slice(&v4(&headers.source));
    let sum = checksum::finish(checksum::sum(ip));
    set_word(ip, 10, sum);

    // Destination unreachable, fragmentation needed; the MTU is in the low half of the unused word.
    let mtu = u16::try_from(mtu.max(SMALLEST_V4)).unwrap_or(u16::MAX);
    icmp[..ICMP_HEADER].copy_from_slice(&[3, 4, 0, 0, 0, 0, 0, 0]);
    set_word(icmp, 6, mtu);
    let sum = checksum::finish(checksum::sum(icmp));
    set_word(icmp, 2, sum);
}

fn write_v6(message: &mut [u8], headers: &Headers, mtu: u32) {
    let (ip, icmp) = message.split_at_mut(40);
    let length = u16::try_from(icmp.len()).unwrap_or(u16::MAX);
    ip.fill(0);
    ip[0] = 0x60;
    set_word(ip, 4, length);
    ip[6..8].copy_from_slice(&[ICMP_V6, HOPS]);
    ip[8..24].copy_from_slice(&headers.destination);
    ip[24..40].copy_from_slice(&headers.source);

    icmp[..4].copy_from_slice(&[2, 0, 0, 0]);
    icmp[4..8].copy_from_slice(&mtu.max(SMALLEST_V6).to_be_bytes());
    // RFC 8200 §8.1: the pseudo header is the addresses, the length and the protocol.
    let pseudo = checksum::sum(&ip[8..40]) + u64::from(length) + u64::from(ICMP_V6);
    let sum = checksum::finish(pseudo + checksum::sum(icmp));
    set_word(icmp, 2, sum);
}

/// Whether RFC 1122 §3.2.2 and RFC 4443 §2.4 (e) let a packet be answered.
fn answerable(packet: &[u8], headers: &Headers) -> bool {
    // The group bit of an Ethernet address: sent to many, or from nobody.
    let group = packet[0] & 1 != 0 || packet[6] & 1 != 0;
    let hosts = [&headers.source, &headers.destination]
        .into_iter()
        .all(|address| one_host(headers.version, address));
    let error = match headers.protocol {
        ICMP => is_error_v4(packet.get(headers.transport)),
        ICMP_V6 => is_error_v6(packet.get(headers.transport)),
        _ => false,
    };
    let later = matches!(headers.fragment, Fragment::Later(_));
    !group && hosts && !error && !later
}

/// Whether an address stands for one host that others can reach.
fn one_host(version: Version, address: &Address) -> bool {
    match version {
        Version::V4 => {
            let address = Ipv4Addr::from(v4(address));
            let class = address.octets()[0];
            // RFC 1122 §3.2.1.3: 0/8 is "this network", 240/4 is class E and has the broadcast address.
            class != 0 && class < 240 && !address.is_loopback() && !address.is_multicast()
        }
        Version::V6 => {
            let address = Ipv6Addr::from(*address);
            !address.is_unspecified() && !address.is_loopback() && !address.is_multicast()
        }
    }
}

/// RFC 1122 §3.2.2: unreachable, source quench, redirect, time exceeded, parameter problem. A type that is cut
/// off may be any of them.
fn is_error_v4(kind: Option<&u8>) -> bool {
    matches!(kind, None | Some(3 | 4 | 5 | 11 | 12))
}

/// RFC 4443 §2.1: types below 128 are errors; §2.4 (e.2): redirects are not answered either.
fn is_error_v6(kind: Option<&u8>) -> bool {
    matches!(kind, None | Some(0..128 | 137))
}

/// The IPv4 address in a mapped one.
fn v4(address: &Address) -> [u8; 4] {
    let [.., a, b, c, d] = *address;
    [a, b, c, d]
}

#[cfg(test)]
mod tests;

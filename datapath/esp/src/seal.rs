//! Sealing: the way out (RFC 4303 §3.3), transport mode.
//!
//! ```text
//!   before              Ethernet [VLAN] IP │ UDP Geneve …
//!   after   Ethernet [VLAN] IP [UDP] ESP IV │ UDP Geneve … pad length next ICV
//! ```
//! The headers left of the bar move into the headroom; the payload stays where it is.

use culvert_packet::headers::{self, Headers, UDP, Version};
use culvert_packet::reason::DropReason;
use culvert_proto::sa::UdpEncapsulation;

use crate::buffer::Frame;
use crate::checksum;
use crate::sa::OutboundSa;
use crate::sequence::Sequence;
use crate::{ESP_HEADER, ICV, IV, TRAILER, UDP_HEADER};

/// How long a packet becomes: from its IP header to the end of the ICV, in bytes.
#[must_use]
#[inline]
pub fn sealed_length(sa: &OutboundSa, headers: &Headers) -> usize {
    let payload = headers.end - headers.transport;
    headers.end - headers.ip + sa.front() + padding(payload) + TRAILER + ICV
}

/// RFC 4303 §2.4: payload, padding and trailer fill 4-byte words.
#[inline]
fn padding(payload: usize) -> usize {
    (payload + TRAILER).wrapping_neg() % 4
}

/// Seals the datagram of `frame`, whose `headers` are relative to the frame's start, under `sequence`.
/// What stood behind the datagram (Ethernet padding) is cut off. Returns the clear payload's length.
///
/// # Errors
/// [`DropReason::TooLarge`] if the room before or behind the frame, or the IP length field, does not take
/// it; [`DropReason::Malformed`] if `headers` are not this frame's; [`DropReason::SealFailed`] if the
/// AEAD refuses. The frame is not to be sent then.
#[inline]
#[expect(
    clippy::needless_pass_by_value,
    reason = "a sequence number is used up"
)]
pub fn seal<F: Frame>(
    sa: &OutboundSa,
    sequence: Sequence,
    headers: &Headers,
    frame: &mut F,
) -> Result<usize, DropReason> {
    let bounds = frame.bounds();
    let front = sa.front();
    let payload = headers
        .end
        .checked_sub(headers.transport)
        .ok_or(DropReason::Malformed)?;
    let pad = padding(payload);

    let chunk = frame.chunk();
    let start = bounds
        .start
        .checked_sub(front)
        .ok_or(DropReason::TooLarge)?;
    if bounds.start + headers.end > bounds.end {
        return Err(DropReason::Malformed);
    }
    let text = bounds.start + headers.transport;
    let trailer = text + payload;
    let icv = trailer + pad + TRAILER;
    let end = icv + ICV;
    let packet = chunk.get_mut(start..end).ok_or(DropReason::TooLarge)?;

    // From here on, offsets count from the sealed frame's start.
    packet.copy_within(front..front + headers.transport, 0);
    grow_ip(packet, headers, end - start, sa.encapsulation)?;

    let number = sequence.get();
    // The IV is the extended sequence number: unique for the key, as RFC 4106 §3.1 asks.
    let iv = number.to_be_bytes();
    let mut esp = headers.transport;
    if sa.encapsulation.is_some() {
        esp += UDP_HEADER;
    }
    let low = &iv[4..];
    packet[esp..esp + 4].copy_from_slice(&sa.common.spi.to_be_bytes());
    packet[esp + 4..esp + ESP_HEADER].copy_from_slice(low);
    packet[esp + ESP_HEADER..esp + ESP_HEADER + IV].copy_from_slice(&iv);

    // RFC 4303 §2.4: padding bytes are 1, 2, 3, …; §2.6: then their number and the next header.
    let [text, trailer, icv] = [text, trailer, icv].map(|at| at - start);
    let tail = &mut packet[trailer..icv];
    tail[..pad].copy_from_slice(&[1, 2, 3][..pad]);
    tail[pad] = pad.to_le_bytes()[0];
    tail[pad + 1] = headers.protocol;

    let tag = sa
        .common
        .aead
        .seal(
            sa.common.nonce(iv),
            sa.common.aad(number).bytes(),
            &mut packet[text..icv],
        )
        .map_err(|_| DropReason::SealFailed)?;
    packet[icv..].copy_from_slice(&tag);

    if let Some(ports) = sa.encapsulation {
        encapsulate(&mut packet[headers.transport..], headers, ports);
    }
    frame.set_bounds(start..end);
    Ok(payload)
}

/// Length and protocol of the IP header after sealing, and its checksum.
#[inline]
fn grow_ip(
    packet: &mut [u8],
    headers: &Headers,
    length: usize,
    encapsulation: Option<UdpEncapsulation>,
) -> Result<(), DropReason> {
    let protocol = match encapsulation {
        Some(_) => UDP,
        None => headers::ESP,
    };
    set_ip(packet, headers, length - headers.ip, protocol)
}

/// Writes the datagram's new `length` (from the IP header to its end) and `protocol`; all else that the IP
/// header says stays: DSCP, ECN, TTL, identification, flow label.
#[inline]
pub(crate) fn set_ip(
    packet: &mut [u8],
    headers: &Headers,
    length: usize,
    protocol: u8,
) -> Result<(), DropReason> {
    let ip = headers.ip;
    match headers.version {
        Version::V4 => {
            let length = u16::try_from(length).map_err(|_| DropReason::TooLarge)?;
            let header: &mut [u8; 20] = packet
                .get_mut(ip..)
                .and_then(<[u8]>::first_chunk_mut)
                .ok_or(DropReason::Malformed)?;
            let word =
                |header: &[u8; 20], at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
            let mut sum = word(header, 10);
            sum = checksum::update(sum, word(header, 2), length);
            let before = word(header, 8);
            header[9] = protocol;
            sum = checksum::update(sum, before, word(header, 8));
            header[2..4].copy_from_slice(&length.to_be_bytes());
            header[10..12].copy_from_slice(&sum.to_be_bytes());
        }
        Version::V6 => {
            let length = u16::try_from(length - 40).map_err(|_| DropReason::TooLarge)?;
            packet[ip + 4..ip + 6].copy_from_slice(&length.to_be_bytes());
            packet[headers.protocol_at] = protocol;
        }
    }
    Ok(())
}

/// RFC 3948 §2.1: the UDP header in front of ESP. Its checksum is zero over IPv4, and computed over IPv6.
fn encapsulate(datagram: &mut [u8], headers: &Headers, ports: UdpEncapsulation) {
    let length = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
    datagram[0..2].copy_from_slice(&ports.source_port.to_be_bytes());
    datagram[2..4].copy_from_slice(&ports.destination_port.to_be_bytes());
    datagram[4..6].copy_from_slice(&length.to_be_bytes());
    datagram[6..8].fill(0);
    if headers.version == Version::V6 {
        let sum = checksum::udp_v6(&headers.source, &headers.destination, datagram);
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    }
}

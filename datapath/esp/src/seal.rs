//! Sealing: the way out (RFC 4303 §3.3), transport mode.
//!
//! ```text
//!   before              Ethernet [VLAN] IP │ UDP Geneve …
//!   after   Ethernet [VLAN] IP [UDP] ESP IV │ UDP Geneve … [TFC] pad length next ICV
//! ```
//! The headers left of the bar move into the headroom; the payload stays where it is.

use culvert_packet::headers::{ESP, Headers, UDP, Version};
use culvert_packet::reason::DropReason;

use crate::buffer::Frame;
use crate::checksum;
use crate::sa::OutboundSa;
use crate::sequence::Sequence;
use crate::{ESP_HEADER, MAX_IV, TRAILER};

/// How a packet is to be sealed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Plan {
    payload: usize,
    /// TFC padding, padding and trailer.
    behind: usize,
    /// Padding.
    pad: usize,
    /// How long the packet becomes: from its IP header to the end of the ICV, in bytes.
    pub length: usize,
}

// RFC 4303 §2.4 [2.4-icv-aligned]
/// RFC 4303 §2.4: what is encrypted fills 4-byte words.
const ALIGNMENT: usize = 4;
/// Padding that this takes at most.
pub(crate) const MOST_PADDING: usize = ALIGNMENT - 1;

/// Plans to seal a packet on a wire that takes IP packets of `mtu` bytes. It may become longer than that all the
/// same; only TFC padding minds.
#[must_use]
#[inline]
pub fn plan(sa: &OutboundSa, headers: &Headers, mtu: usize) -> Plan {
    let payload = headers.end.saturating_sub(headers.inner);
    // RFC 4303 §2.7 [2.7-tfc]
    // RFC 4303 §2.7: TFC padding comes behind the payload, whose length the receiver reads in its UDP header.
    let tfc = if sa.tfc > payload {
        let most = most_payload(sa, headers.inner - headers.ip, mtu);
        sa.tfc.min(most).saturating_sub(payload)
    } else {
        0
    };
    // RFC 4303 [2.4-icv-aligned, 2.4-not-for-tfc]: as much as that takes, and no more.
    let pad = (payload + tfc + TRAILER).wrapping_neg() % ALIGNMENT;
    let behind = tfc + pad + TRAILER;
    Plan {
        payload,
        behind,
        pad,
        length: headers.end - headers.ip + sa.front() + behind + sa.common.icv_length,
    }
}

/// The longest payload that fits IP packets of `mtu` bytes, behind `headers` bytes of IP header.
fn most_payload(sa: &OutboundSa, headers: usize, mtu: usize) -> usize {
    let around = headers + sa.front() + sa.common.icv_length;
    (mtu.saturating_sub(around) / ALIGNMENT * ALIGNMENT).saturating_sub(TRAILER)
}

/// The longest IP packet with headers like these that fits IP packets of `mtu` bytes once it is sealed: the MTU
/// that the host's stack has to keep to.
#[must_use]
pub fn clear_mtu(sa: &OutboundSa, headers: &Headers, mtu: usize) -> usize {
    let before = headers.inner - headers.ip;
    before + most_payload(sa, before, mtu)
}

/// Seals the datagram of `frame`, whose `headers` are relative to the frame's start, as `plan` says, under
/// `sequence`. What stood behind the datagram (Ethernet padding) is cut off. Returns the clear payload's length.
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
    plan: &Plan,
    headers: &Headers,
    frame: &mut F,
) -> Result<usize, DropReason> {
    let bounds = frame.bounds();
    let front = sa.front();
    if bounds.start + headers.end > bounds.end || headers.inner + plan.payload != headers.end {
        return Err(DropReason::Malformed);
    }
    let chunk = frame.chunk();
    let start = bounds
        .start
        .checked_sub(front)
        .ok_or(DropReason::TooLarge)?;
    let end = start + headers.ip + plan.length;
    let packet = chunk.get_mut(start..end).ok_or(DropReason::TooLarge)?;

    // From here on, offsets count from the sealed frame's start.
    // RFC 4303 §3.1.1 [3.1.1-after-ip-header, 3.1.1-after-extensions, 3.1.1-destination-options]
    move_headers(packet, front, 0, headers.inner);
    // RFC 4303 §2 [2-protocol-50]: ESP is 50, but for RFC 3948's encapsulation.
    let protocol = match sa.encapsulation {
        Some(_) => UDP,
        None => ESP,
    };
    set_ip(
        packet,
        headers,
        headers.inner_protocol_at,
        plan.length,
        protocol,
    )?;

    // RFC 4303 [2.2-always-present, 3.3.3-esn-halves]: the low half is in the header, always.
    let number = sequence.get();
    // RFC 4303 §3.2.1 [3.2.1-synchronization]: each packet brings its IV, or its IV is its number.
    // The IV is the extended sequence number: unique for the key, as RFC 4106 §3.1 asks, and what RFC 8750
    // §4 says of an implicit one.
    let iv = number.to_be_bytes();
    let text = headers.inner + front;
    let esp = text - ESP_HEADER - sa.common.iv_length;
    let mut header = [0; ESP_HEADER + MAX_IV];
    header[..4].copy_from_slice(&sa.common.spi.to_be_bytes());
    header[4..ESP_HEADER].copy_from_slice(&iv[4..]);
    header[ESP_HEADER..].copy_from_slice(&iv);
    put(&mut packet[esp..text], &header);

    // RFC 4303 [2.4-padding, 2.4-pad-bytes, 2.7-tfc-length]: what the datagram says of its length stays.
    // RFC 4303 §2.4: padding bytes are 1, 2, 3, …; §2.6: then their number and the next header. TFC padding
    // comes before.
    let icv = text + plan.payload + plan.behind;
    let tail = &mut packet[text + plan.payload..icv];
    let (tfc, tail) = tail.split_at_mut(plan.behind - plan.pad - TRAILER);
    let [padding @ .., length, next] = tail else {
        return Err(DropReason::Malformed);
    };
    if !tfc.is_empty() {
        tfc.fill(0);
    }
    for (byte, value) in padding.iter_mut().zip(1..) {
        *byte = value;
    }
    *length = plan.pad.to_le_bytes()[0];
    *next = headers.inner_protocol;

    let nonce = sa.common.nonce(iv);
    // RFC 4303 §1 [1-integrity-only]
    let tag = if sa.common.encrypts {
        let aad = sa.common.aad(number);
        sa.common
            .aead
            .seal(nonce, aad.bytes(), &mut packet[text..icv])
    } else {
        sa.common
            .authenticated(packet, esp, icv, number, |aead, clear, _| {
                aead.seal(nonce, clear, &mut [])
            })
    };
    let Ok(tag) = &tag else {
        return Err(DropReason::SealFailed);
    };
    put(&mut packet[icv..], tag);

    if let Some(ports) = sa.encapsulation {
        let ports = [ports.source_port, sa.destination_port(ports)];
        encapsulate(&mut packet[headers.inner..], headers, ports);
    }
    frame.set_bounds(start..end);
    Ok(plan.payload)
}

/// Puts the start of `bytes` to `place`, as much as that takes: all of it nearly always, and then without a call.
#[inline(always)]
fn put<const N: usize>(place: &mut [u8], bytes: &[u8; N]) {
    match <&mut [u8; N]>::try_from(&mut *place) {
        Ok(place) => *place = *bytes,
        Err(_) => put_start(place, bytes),
    }
}

/// Apart, or the compiler makes one call of both.
#[cold]
#[inline(never)]
fn put_start(place: &mut [u8], bytes: &[u8]) {
    place.copy_from_slice(&bytes[..place.len()]);
}

/// Moves the `length` bytes at `from` to `to`. Headers are nearly always so long that two halves of fixed length, which
/// overlap, do it without a call.
#[inline]
pub(crate) fn move_headers(packet: &mut [u8], from: usize, to: usize, length: usize) {
    const HALF: usize = 32;
    if (HALF..=2 * HALF).contains(&length)
        && let Some(headers) = packet.get(from..from + length)
        && let Some(&first) = headers.first_chunk::<HALF>()
        && let Some(&last) = headers.last_chunk::<HALF>()
        && let Some(place) = packet.get_mut(to..to + length)
    {
        place[..HALF].copy_from_slice(&first);
        place[length - HALF..].copy_from_slice(&last);
    } else {
        packet.copy_within(from..from + length, to);
    }
}

// RFC 4303 §3.3 [3.3-header-retained]
/// Writes the datagram's new `length` (from the IP header to its end) and `protocol` (at `protocol_at`); all else that the IP
/// header says stays: DSCP, ECN, TTL, identification, flow label.
#[inline(always)]
pub(crate) fn set_ip(
    packet: &mut [u8],
    headers: &Headers,
    protocol_at: usize,
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
            // RFC 1071 §2: in whatever byte order the sum is made, it comes out in that.
            let word = |at: usize| u16::from_ne_bytes([header[at], header[at + 1]]);
            let changes = [
                (word(2), length.to_be()),
                (word(8), u16::from_ne_bytes([header[8], protocol])),
            ];
            let sum = checksum::update(word(10), changes);
            header[9] = protocol;
            header[2..4].copy_from_slice(&length.to_be_bytes());
            header[10..12].copy_from_slice(&sum.to_ne_bytes());
        }
        Version::V6 => {
            let length = u16::try_from(length - 40).map_err(|_| DropReason::TooLarge)?;
            packet[ip + 4..ip + 6].copy_from_slice(&length.to_be_bytes());
            packet[protocol_at] = protocol;
        }
    }
    Ok(())
}

/// RFC 3948 §2.1: the UDP header in front of ESP. Its checksum is zero over IPv4, and computed over IPv6.
fn encapsulate(datagram: &mut [u8], headers: &Headers, ports: [u16; 2]) {
    let length = u16::try_from(datagram.len()).unwrap_or(u16::MAX);
    datagram[0..2].copy_from_slice(&ports[0].to_be_bytes());
    datagram[2..4].copy_from_slice(&ports[1].to_be_bytes());
    datagram[4..6].copy_from_slice(&length.to_be_bytes());
    datagram[6..8].fill(0);
    if headers.version == Version::V6 {
        let sum = checksum::udp_v6(&headers.source, &headers.destination, datagram);
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    }
}

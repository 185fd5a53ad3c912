//! Opening: the way in (RFC 4303 §3.4), transport mode; [`crate::seal`] backwards, plus every check.

use culvert_packet::headers::{DESTINATION_OPTIONS, Headers, Packet, UDP, Version};
use culvert_packet::reason::DropReason;

use crate::buffer::Frame;
use crate::sa::InboundSa;
use crate::seal::{move_headers, set_ip};
use crate::{ESP_HEADER, MAX_ICV, TRAILER, UDP_HEADER};

/// Next header of a dummy packet (RFC 4303 §2.6).
const NO_NEXT_HEADER: u8 = 59;

/// Most headers of destination options in front of UDP: more have no honest use.
const MOST_OPTIONS: usize = 4;

/// What came out of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opened {
    /// Length of the clear payload in bytes.
    pub length: usize,
    /// Where its UDP header is, from the start of the clear frame; `None` if it is no UDP.
    pub udp: Option<usize>,
    /// Its extended sequence number.
    pub sequence: u64,
}

/// Opens the ESP packet in `frame`, whose `headers` are relative to the frame's start; `encapsulated` says
/// that it came in UDP. Afterwards the frame is the clear datagram, the headers moved back over where
/// the ESP header was.
///
/// The order is that of RFC 4303 §3.4: lengths, replay check, authentication, replay commit, padding,
/// next header. Whether the policy lets in what came out (RFC 4301 §5.2) is the caller's to ask.
///
/// # Errors
/// The reason for which the packet is to be dropped. The window moves only for what authenticates.
#[inline]
pub fn open<F: Frame>(
    sa: &InboundSa,
    encapsulated: bool,
    headers: &Headers,
    frame: &mut F,
) -> Result<Opened, DropReason> {
    if encapsulated != sa.encapsulation.is_some() {
        return Err(DropReason::WrongEncapsulation);
    }
    let bounds = frame.bounds();
    let chunk = frame.chunk();
    let packet = chunk
        .get_mut(bounds.clone())
        .and_then(|packet| packet.get_mut(..headers.end))
        .ok_or(DropReason::Malformed)?;

    let esp = headers.transport + if encapsulated { UDP_HEADER } else { 0 };
    let text = esp + ESP_HEADER + sa.common.iv_length;
    let icv = packet.len().saturating_sub(sa.common.icv_length);
    if text + TRAILER > icv {
        return Err(DropReason::Truncated);
    }
    let Some(low) = packet[..].read(esp + 4) else {
        return Err(DropReason::Truncated);
    };

    // RFC 4303 §3.4.3 [3.4.3-first-check, 3.4.3-anti-replay]: nothing is deciphered that has been there before.
    let token = sa.window.check(u32::from_be_bytes(low))?;
    let sequence = token.sequence();
    // RFC 4303 §3.2.1 [3.2.1-synchronization]: by the packet's own number, or by the IV that it brings.
    let mut iv = sequence.to_be_bytes();
    if let Some(explicit) = packet[esp + ESP_HEADER..text].first_chunk() {
        iv = *explicit;
    }
    // RFC 4303 [3.4.3-integrity-discarded, 3.4.4.2-discarded]: a wrong ICV is the end.
    // RFC 4303 §3.4.3 [3.4.3-same-number]: under the number that was checked, or the ICV is wrong.
    authenticate(sa, packet, esp, text, icv, sequence, iv).map_err(|_| {
        sa.window.mend();
        token.refusal()
    })?;
    // RFC 4303 §3.4.3 [3.4.3-moves-after]
    sa.window.commit(token)?;

    // The clear text, the padding, its length and the next header.
    let clear = &packet[text..icv];
    let Some((clear, &[pad, next])) = clear.split_last_chunk::<TRAILER>() else {
        return Err(DropReason::Truncated);
    };
    let mut payload = clear
        .len()
        .checked_sub(usize::from(pad))
        .ok_or(DropReason::BadPad)?;
    // RFC 4303 [2.4-padding, 2.4-pad-inspected, 3.4.4.1-pad-inspected]
    // RFC 4303 §2.4: the receiver should inspect the padding.
    if !clear[payload..]
        .iter()
        .zip(1_u16..)
        .all(|(byte, expected)| u16::from(*byte) == expected)
    {
        return Err(DropReason::BadPad);
    }
    // RFC 4303 [2.6-dummy-59, 2.6-dummy-discard, 3.4.4.2-dummy]: whatever else is in it.
    if next == NO_NEXT_HEADER {
        return Err(DropReason::Dummy);
    }
    let udp = find_udp(next, &clear[..payload]);
    if let Some(udp) = udp {
        payload = without_tfc(&clear[..payload], udp);
    }

    let front = text - headers.transport;
    move_headers(packet, 0, front, headers.transport);
    set_ip(
        &mut packet[front..],
        headers,
        headers.protocol_at,
        headers.transport - headers.ip + payload,
        next,
    )?;
    if let Some(udp) = udp
        && encapsulated
        && headers.version == Version::V4
    {
        // RFC 3948 §3.1.2: behind NAT the sum was made over other addresses. What authenticated needs none.
        packet[text + udp + 6..text + udp + 8].fill(0);
    }
    let start = bounds.start + front;
    frame.set_bounds(start..bounds.start + text + payload);
    Ok(Opened {
        length: payload,
        udp: udp.map(|udp| headers.transport + udp),
        sequence,
    })
}

/// Verifies the packet, and decrypts it in place if the cipher encrypts.
#[inline]
fn authenticate(
    sa: &InboundSa,
    packet: &mut [u8],
    esp: usize,
    text: usize,
    icv: usize,
    sequence: u64,
    iv: [u8; 8],
) -> Result<(), crate::aead::Refused> {
    let nonce = sa.common.nonce(iv);
    // RFC 4303 §1 [1-integrity-only]
    if !sa.common.encrypts {
        return sa
            .common
            .authenticated(packet, esp, icv, sequence, |aead, clear, icv| {
                aead.open(nonce, clear, icv)
            });
    }
    let aad = sa.common.aad(sequence);
    if sa.common.icv_length == MAX_ICV {
        sa.common.aead.open(nonce, aad.bytes(), &mut packet[text..])
    } else {
        let (text, icv) = packet[text..].split_at_mut(icv - text);
        sa.common.aead.open_shortened(nonce, aad.bytes(), text, icv)
    }
}

// RFC 4303 §3.1.1 [3.1.1-destination-options]
/// Where the UDP header stands in a payload that begins with `next`: at its start, or behind destination options
/// (RFC 8200 §4.6), which ESP covers (RFC 4303 §3.1.1).
#[inline]
fn find_udp(mut next: u8, payload: &[u8]) -> Option<usize> {
    let mut at = 0;
    for _ in 0..=MOST_OPTIONS {
        match next {
            UDP => return (at + UDP_HEADER <= payload.len()).then_some(at),
            DESTINATION_OPTIONS => {
                let [following, length] = payload.read(at)?;
                next = following;
                at += (usize::from(length) + 1) * 8;
            }
            _ => return None,
        }
    }
    None
}

// RFC 4303 §3.4.4.2 [3.4.4.2-tfc]
/// Length of a payload without TFC padding, by its UDP header (RFC 4303 §2.7). A length that cannot be is left to
/// the stack.
#[inline]
fn without_tfc(payload: &[u8], udp: usize) -> usize {
    let length = payload.read(udp + 4).map_or(0, u16::from_be_bytes);
    let end = udp + usize::from(length);
    if usize::from(length) >= UDP_HEADER && end < payload.len() {
        end
    } else {
        payload.len()
    }
}

//! Opening: the way in (RFC 4303 §3.4), transport mode; [`crate::seal`] backwards, plus every check.

use culvert_packet::headers::{GENEVE_PORT, Headers, Packet, UDP};
use culvert_packet::reason::DropReason;

use crate::buffer::Frame;
use crate::sa::InboundSa;
use crate::seal::set_ip;
use crate::{ESP_HEADER, ICV, IV, TRAILER, UDP_HEADER};

/// Next header of a dummy packet (RFC 4303 §2.6).
const NO_NEXT_HEADER: u8 = 59;

/// Opens the ESP packet in `frame`, whose `headers` are relative to the frame's start; `encapsulated` says
/// that it came in UDP. Afterwards the frame is the clear datagram, the headers moved back over where
/// the ESP header was. Returns the clear payload's length.
///
/// The order is that of RFC 4303 §3.4: lengths, replay check, authentication, replay commit, padding,
/// next header, and the policy last (RFC 4301 §5.2).
///
/// # Errors
/// The reason for which the packet is to be dropped. The window moves only for what authenticates.
#[inline]
pub fn open<F: Frame>(
    sa: &InboundSa,
    encapsulated: bool,
    headers: &Headers,
    frame: &mut F,
) -> Result<usize, DropReason> {
    if encapsulated != sa.encapsulated {
        return Err(DropReason::WrongEncapsulation);
    }
    let bounds = frame.bounds();
    let length = bounds.len();
    let chunk = frame.chunk();
    let packet = chunk
        .get_mut(bounds.clone())
        .and_then(|packet| packet.get_mut(..headers.end))
        .ok_or(DropReason::Malformed)?;
    debug_assert!(headers.end <= length);

    let esp = headers.transport + if encapsulated { UDP_HEADER } else { 0 };
    let text = esp + ESP_HEADER + IV;
    if text + TRAILER + ICV > packet.len() {
        return Err(DropReason::Truncated);
    }
    let (Some(low), Some(iv)) = (packet[..].read(esp + 4), packet[..].read(esp + ESP_HEADER))
    else {
        return Err(DropReason::Truncated);
    };

    let token = sa.window.check(u32::from_be_bytes(low))?;
    sa.common
        .aead
        .open(
            sa.common.nonce(iv),
            sa.common.aad(token.sequence()).bytes(),
            &mut packet[text..],
        )
        .map_err(|_| token.refusal())?;
    sa.window.commit(token)?;

    // The clear text, the padding, its length and the next header.
    let clear = &packet[text..packet.len() - ICV];
    let Some((clear, &[pad, next])) = clear.split_last_chunk::<TRAILER>() else {
        return Err(DropReason::Truncated);
    };
    let payload = clear
        .len()
        .checked_sub(usize::from(pad))
        .ok_or(DropReason::BadPad)?;
    // RFC 4303 §2.4: the receiver should inspect the padding.
    let mut expected = 1..=pad;
    if !clear[payload..]
        .iter()
        .all(|byte| expected.next() == Some(*byte))
    {
        return Err(DropReason::BadPad);
    }
    if next == NO_NEXT_HEADER {
        return Err(DropReason::Dummy);
    }
    if !admits(sa, headers, next, &clear[..payload]) {
        return Err(DropReason::PolicyMismatch);
    }

    let front = text - headers.transport;
    packet.copy_within(..headers.transport, front);
    set_ip(
        &mut packet[front..],
        headers,
        headers.transport - headers.ip + payload,
        next,
    )?;
    let start = bounds.start + front;
    frame.set_bounds(start..bounds.start + text + payload);
    Ok(payload)
}

/// RFC 4301 §5.2 step 4: what came out must match the selectors of the SA that it came under.
#[inline]
fn admits(sa: &InboundSa, headers: &Headers, next: u8, datagram: &[u8]) -> bool {
    let Some(&[s0, s1, d0, d1, ..]) = datagram.first_chunk::<8>() else {
        return false;
    };
    let ports = [u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])];
    next == UDP
        && ports.contains(&GENEVE_PORT)
        && headers.source == sa.selector.remote
        && headers.destination == sa.selector.local
}

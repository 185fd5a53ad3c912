//! How fragments become a datagram: bytes to their places, and at the end the headers.

use culvert_packet::headers::Version;

use super::DATA;
use super::piece::Piece;
use crate::sizes::{DONT_FRAGMENT, change_word, set_word, word};

/// The headers of a datagram, which stand right before [`DATA`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Head {
    version: Version,
    pub(super) length: usize,
    /// Offset of the IP header in them.
    ip: usize,
}

impl Head {
    /// The headers that the first fragment brings.
    pub(super) fn of(first: &Piece) -> Self {
        Self {
            version: first.key.version,
            length: first.head,
            ip: first.ip,
        }
    }
}

/// Copies a fragment out of `packet` to its place in `chunk`, which is another frame's.
pub(super) fn copy(packet: &[u8], chunk: &mut [u8], piece: &Piece) {
    let data = DATA + piece.offset..DATA + piece.end();
    chunk[data].copy_from_slice(&packet[piece.data.clone()]);
    if piece.offset == 0 {
        chunk[DATA - piece.head..DATA].copy_from_slice(&packet[..piece.head]);
        patch_next(chunk, piece);
    }
}

/// Moves a fragment that is at `start` in `chunk` to its place there.
pub(super) fn settle(chunk: &mut [u8], start: usize, piece: &Piece) {
    let data = start + piece.data.start..start + piece.data.end;
    let target = DATA + piece.offset;
    if piece.offset != 0 {
        return chunk.copy_within(data, target);
    }
    // Whichever part goes in the direction of the other must wait until that one is gone.
    let head = start..start + piece.head;
    if target >= data.start {
        chunk.copy_within(data, target);
        chunk.copy_within(head, DATA - piece.head);
    } else {
        chunk.copy_within(head, DATA - piece.head);
        chunk.copy_within(data, target);
    }
    patch_next(chunk, piece);
}

// RFC 4303 §3.4.1 [3.4.1-reassembled-is-whole]: over IPv6 the fragment header goes.
/// RFC 8200 §4.5: the header before the fragment header names the one behind it.
fn patch_next(chunk: &mut [u8], first: &Piece) {
    if let Some((at, next)) = first.next {
        chunk[DATA - first.head + at] = next;
    }
}

// RFC 4303 §3.4.1 [3.4.1-reassembled-is-whole]
/// Writes length, fragment fields and ECN into the headers of the datagram `packet`, of whose fragments `ecn`
/// has the ECN fields that occurred. `None` if it is too long or its ECN fields cannot be.
pub(super) fn finish(packet: &mut [u8], head: Head, ecn: u8) -> Option<()> {
    let congested = congested(ecn)?;
    let ip = &mut packet[head.ip..];
    match head.version {
        Version::V4 => {
            let length = u16::try_from(ip.len()).ok()?;
            let flags = word(ip, 6) & DONT_FRAGMENT;
            change_word(ip, 2, length);
            change_word(ip, 6, flags);
            if congested {
                let marked = word(ip, 0) | 3;
                change_word(ip, 0, marked);
            }
        }
        Version::V6 => {
            let length = u16::try_from(ip.len() - 40).ok()?;
            set_word(ip, 4, length);
            if congested {
                ip[1] |= 0x30;
            }
        }
    }
    Some(())
}

/// Whether a datagram comes out as having met congestion, by the ECN fields of its fragments, each a bit
/// (RFC 3168 §5.3): if any has, and all are ECN-capable. `None` if only some are: no sender does so, and the mark
/// of the network would be lost or be taken for the sender's.
fn congested(ecn: u8) -> Option<bool> {
    const NOT_CAPABLE: u8 = 1 << 0b00;
    const CONGESTION_EXPERIENCED: u8 = 1 << 0b11;
    if ecn & NOT_CAPABLE != 0 && ecn != NOT_CAPABLE {
        return None;
    }
    Some(ecn & CONGESTION_EXPERIENCED != 0)
}

#[cfg(test)]
mod tests {
    use super::congested;

    /// The table of the kernel, `ip_frag_ecn_table` in `net/ipv4/ip_fragment.c`, where `None` is 0xff.
    #[test]
    fn rfc_3168_5_3_ecn_of_the_whole() {
        let [not, one, zero, ce] = [1, 2, 4, 8];
        for (fields, wanted) in [
            (not, Some(false)),
            (one, Some(false)),
            (zero, Some(false)),
            (one | zero, Some(false)),
            (ce, Some(true)),
            (ce | zero, Some(true)),
            (ce | one, Some(true)),
            (ce | one | zero, Some(true)),
            (not | one, None),
            (not | zero, None),
            (not | one | zero, None),
            (not | ce, None),
            (not | ce | one, None),
            (not | ce | zero, None),
            (not | ce | one | zero, None),
        ] {
            assert_eq!(congested(fields), wanted, "{fields:04b}");
        }
    }
}

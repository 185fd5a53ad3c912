//! Reassembly of fragmented ESP, in a table of fixed size (RFC 791 §3.2, RFC 8200 §4.5, RFC 5722).
//!
//! A datagram is put together in the frame of whichever of its fragments came first. Its data has a fixed place
//! in the chunk, so that room for the headers is there before the headers are:
//!
//! ```text
//!   chunk   headroom │ … headers │ data of all fragments, each at its offset …
//!                                └ DATA
//! ```
//! Fragments can be forged by anyone, as nothing is authenticated before the datagram is whole. So a datagram
//! that contradicts itself is discarded, and what still comes of it, too; memory and time are bounded; and the
//! oldest makes place for the newest. What a forger gains is that fragmented packets are lost.

mod piece;
mod received;
mod slot;
mod whole;

use culvert_esp::buffer::Frame;
use culvert_packet::headers::{Fragment, Headers};
use culvert_packet::reason::DropReason;

use self::piece::{Key, Piece};
use self::slot::Slot;
use super::bytes;
use crate::frame::HEADROOM;

/// Datagrams that a worker puts together at a time, and so the most frames that its table keeps.
pub const DATAGRAMS: usize = 64;

/// How long a datagram may take from its first fragment to its last, in milliseconds. The fragments of a
/// datagram leave their sender in one go, so this is for reordering only. RFC 791's and RFC 8200's 15 and 60
/// seconds are for slow links: on a fast one the 65536 identifications of IPv4 come round again in a second or
/// two, and what is kept longer meets fragments of another datagram (RFC 4963).
pub const TIMEOUT: u64 = 2000;

/// Longest headers, in bytes: Ethernet, two VLAN tags, the longest IPv4 header, or IPv6 with some extensions.
const HEADERS: usize = 128;
/// Where the data of a datagram starts in the chunk.
const DATA: usize = HEADROOM + HEADERS;

/// Why fragments were discarded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    /// Two fragments of the datagram have a part in common (RFC 5722), and are not the same.
    Overlap,
    /// The same fragment came twice. The datagram goes on.
    Duplicate,
    /// Not all fragments came within [`TIMEOUT`], or until newer datagrams needed the place.
    Incomplete,
    /// The datagram does not fit a frame.
    TooLarge,
    /// Lengths, offsets, ends, header checksum or ECN fields that cannot be.
    Malformed,
}

impl From<Reason> for DropReason {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Overlap => Self::FragmentOverlap,
            Reason::Duplicate => Self::FragmentDuplicate,
            Reason::Incomplete => Self::FragmentIncomplete,
            Reason::TooLarge => Self::FragmentTooLarge,
            Reason::Malformed => Self::FragmentMalformed,
        }
    }
}

/// Fragments that were discarded: received packets, each of which is counted once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "nothing is lost in silence"]
pub struct Loss {
    /// Why.
    pub reason: Reason,
    /// How many packets.
    pub packets: u64,
}

/// What came of a fragment.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "frames that are not given back are lost"]
pub struct Outcome<F> {
    /// A whole datagram, whose headers are to be walked anew.
    pub finished: Option<F>,
    /// Frames that are free again.
    pub free: [Option<F>; 2],
    /// What was discarded: of this datagram, and of one that had to go for it.
    pub losses: [Option<Loss>; 2],
}

impl<F> Outcome<F> {
    fn nothing() -> Self {
        Self {
            finished: None,
            free: [None, None],
            losses: [None, None],
        }
    }

    /// A call frees two frames at most: its own, and a datagram's.
    fn give_back(&mut self, frame: F) {
        let [first, second] = &mut self.free;
        debug_assert!(second.is_none());
        *if first.is_none() { first } else { second } = Some(frame);
    }

    /// A call loses two datagrams at most: its own, and the one that was in the way.
    fn lose(&mut self, reason: Reason, packets: u64) {
        let [first, second] = &mut self.losses;
        debug_assert!(second.is_none());
        *if first.is_none() { first } else { second } = Some(Loss { reason, packets });
    }
}

/// The datagrams that are being put together.
#[derive(Debug)]
pub struct Reassembly<F> {
    slots: Vec<Slot<F>>,
}

impl<F: Frame> Reassembly<F> {
    /// A table for `datagrams` datagrams, at least one, in frames with chunks of `chunk` bytes.
    #[must_use]
    pub fn new(datagrams: usize, chunk: usize) -> Self {
        let blocks = chunk.saturating_sub(DATA).div_ceil(8);
        let slots = (0..datagrams.max(1)).map(|_| Slot::new(blocks));
        Self {
            slots: slots.collect(),
        }
    }

    // RFC 4303 §3.3.4 [3.3.4-reassembled-before]
    /// Takes a fragment, whose `headers` are relative to the frame's start, at the time `now`, in milliseconds
    /// of a clock that does not go back. A frame that is no fragment comes back as it is.
    ///
    /// A finished datagram has the headers of its first fragment. It may be a fragment of another datagram still
    /// (IPv6 allows to write that): no peer does so, and callers should drop it rather than come back with it.
    pub fn insert(&mut self, mut frame: F, headers: &Headers, now: u64) -> Outcome<F> {
        let mut outcome = Outcome::nothing();
        if headers.fragment == Fragment::Whole {
            outcome.finished = Some(frame);
        } else if let Some(piece) = Piece::read(bytes(&mut frame), headers) {
            self.slot(&piece.key, now, &mut outcome)
                .add(frame, &piece, &mut outcome);
        } else {
            outcome.give_back(frame);
            outcome.lose(Reason::Malformed, 1);
        }
        outcome
    }

    /// Discards one datagram that is past its time at `now`: its frame, and what was lost with it. To be
    /// called, once in a while, until there is none. With [`u64::MAX`] it empties the table.
    pub fn expire(&mut self, now: u64) -> Option<(F, Loss)> {
        self.slots
            .iter_mut()
            .filter(|slot| slot.is_over(now))
            .find_map(Slot::empty)
    }

    /// How many frames it keeps.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.slots.iter().filter(|slot| slot.keeps_frame()).count()
    }

    /// The slot of `key`, its own or a new one.
    fn slot(&mut self, key: &Key, now: u64, outcome: &mut Outcome<F>) -> &mut Slot<F> {
        let own = self.slots.iter().position(|slot| slot.is_for(key));
        // If none is free, the oldest goes.
        let age = |at: &usize| (!self.slots[*at].is_free(), self.slots[*at].born());
        let at = own.unwrap_or_else(|| (0..self.slots.len()).min_by_key(age).unwrap_or(0));
        let slot = &mut self.slots[at];
        if own.is_none() || slot.is_over(now) {
            if let Some((frame, loss)) = slot.empty() {
                outcome.give_back(frame);
                outcome.lose(loss.reason, loss.packets);
            }
            slot.begin(*key, now);
        }
        slot
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;

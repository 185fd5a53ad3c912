//! One datagram of the table.

use culvert_esp::buffer::Frame;

use super::piece::{Key, Piece};
use super::received::Received;
use super::whole::{self, Head};
use super::{DATA, HEADERS, Loss, Outcome, Reason, TIMEOUT};
use crate::sizes::bytes;

/// What a slot is used for.
#[derive(Debug)]
enum State<F> {
    Free,
    /// For a datagram whose first fragment to come is put in at once.
    New,
    /// The frame that the datagram is put together in.
    Building(F),
    /// The datagram was discarded: what still comes of it is, too (RFC 5722 §4).
    Discarded(Reason),
}

/// What a fragment that is not taken makes to be discarded.
enum Refusal {
    /// Itself.
    Fragment(Reason),
    /// The datagram.
    Datagram(Reason),
}

/// A place for a datagram.
#[derive(Debug)]
pub(super) struct Slot<F> {
    state: State<F>,
    /// Whose datagram it is, and since when.
    key: Option<Key>,
    born: u64,
    /// Fragments that were taken.
    packets: u64,
    received: Received,
    /// Bytes that have come; as there are no overlaps, their number says whether all have.
    bytes: usize,
    /// Where the data ends that reaches farthest.
    highest: usize,
    /// Where the last fragment ends, once it has come.
    end: Option<usize>,
    /// The headers, once the first fragment has come.
    head: Option<Head>,
    /// The ECN fields that have come, each a bit.
    ecn: u8,
}

impl<F: Frame> Slot<F> {
    /// A free slot for datagrams of at most `blocks` times eight bytes.
    pub(super) fn new(blocks: usize) -> Self {
        Self {
            state: State::Free,
            key: None,
            born: 0,
            packets: 0,
            received: Received::new(blocks),
            bytes: 0,
            highest: 0,
            end: None,
            head: None,
            ecn: 0,
        }
    }

    pub(super) fn is_free(&self) -> bool {
        matches!(self.state, State::Free)
    }

    pub(super) fn keeps_frame(&self) -> bool {
        matches!(self.state, State::Building(_))
    }

    pub(super) fn is_for(&self, key: &Key) -> bool {
        !self.is_free() && self.key.as_ref() == Some(key)
    }

    /// When it was begun.
    pub(super) fn born(&self) -> u64 {
        self.born
    }

    /// Whether its time is over.
    pub(super) fn is_over(&self, now: u64) -> bool {
        !self.is_free() && now.saturating_sub(self.born) >= TIMEOUT
    }

    /// Makes a free slot that of a datagram; [`Slot::add`] follows.
    pub(super) fn begin(&mut self, key: Key, now: u64) {
        self.state = State::New;
        self.key = Some(key);
        self.born = now;
        self.packets = 0;
        self.received.clear();
        self.bytes = 0;
        self.highest = 0;
        self.end = None;
        self.head = None;
        self.ecn = 0;
    }

    /// Frees the slot; the frame that it kept, and what is lost with it.
    pub(super) fn empty(&mut self) -> Option<(F, Loss)> {
        let loss = Loss {
            reason: Reason::Incomplete,
            packets: self.packets,
        };
        match std::mem::replace(&mut self.state, State::Free) {
            State::Building(frame) => Some((frame, loss)),
            State::Free | State::New | State::Discarded(_) => None,
        }
    }

    /// Takes a fragment of this datagram.
    pub(super) fn add(&mut self, mut frame: F, piece: &Piece, outcome: &mut Outcome<F>) {
        match self.judge(&mut frame, piece) {
            Ok(()) => {}
            Err(Refusal::Fragment(reason)) => {
                outcome.give_back(frame);
                return outcome.lose(reason, 1);
            }
            Err(Refusal::Datagram(reason)) => {
                self.packets += 1;
                outcome.give_back(frame);
                return self.discard(reason, outcome);
            }
        }
        self.note(piece);
        if let State::Building(buffer) = &mut self.state {
            whole::copy(bytes(&mut frame), buffer.chunk(), piece);
            outcome.give_back(frame);
        } else {
            let start = frame.bounds().start;
            whole::settle(frame.chunk(), start, piece);
            self.state = State::Building(frame);
        }
        if self.end == Some(self.bytes) {
            self.finish(outcome);
        }
    }

    /// Whether a fragment goes with those that are there.
    fn judge(&mut self, frame: &mut F, piece: &Piece) -> Result<(), Refusal> {
        let chunk = match &mut self.state {
            State::Discarded(reason) => return Err(Refusal::Fragment(*reason)),
            State::Building(buffer) => buffer.chunk().len(),
            State::Free | State::New => frame.chunk().len(),
        };
        // The end must be one, and nothing may be beyond it.
        let (end, last) = (piece.end(), !piece.more);
        let contradicts = match self.end {
            Some(known) => end > known || last != (end == known),
            None => last && end <= self.highest,
        };
        if contradicts {
            return Err(Refusal::Datagram(Reason::Malformed));
        }
        let blocks = piece.blocks();
        let long_headers = piece.offset == 0 && piece.head > HEADERS;
        if DATA + end > chunk || blocks.end > self.received.room() || long_headers {
            return Err(Refusal::Datagram(Reason::TooLarge));
        }
        if self.received.overlaps(blocks.clone()) {
            // RFC 8200 §4.5: an exact duplicate may be ignored, as it is the network's doing; any other overlap
            // is the end of the datagram.
            if self.received.is_one_fragment(blocks) && self.has(frame, piece) {
                return Err(Refusal::Fragment(Reason::Duplicate));
            }
            return Err(Refusal::Datagram(Reason::Overlap));
        }
        Ok(())
    }

    /// Whether the datagram has the same bytes where the fragment has its data.
    fn has(&mut self, frame: &mut F, piece: &Piece) -> bool {
        let State::Building(buffer) = &mut self.state else {
            return false;
        };
        let there = buffer.chunk().get(DATA + piece.offset..DATA + piece.end());
        there.is_some_and(|there| there == &bytes(frame)[piece.data.clone()])
    }

    /// Notes what has come.
    fn note(&mut self, piece: &Piece) {
        self.packets += 1;
        self.received.add(piece.blocks());
        self.bytes += piece.data.len();
        self.highest = self.highest.max(piece.end());
        self.ecn |= 1 << piece.ecn;
        if !piece.more {
            self.end = Some(piece.end());
        }
        if piece.offset == 0 {
            self.head = Some(Head::of(piece));
        }
    }

    /// All has come: makes a datagram of it.
    fn finish(&mut self, outcome: &mut Outcome<F>) {
        let (State::Building(buffer), Some(head)) = (&mut self.state, self.head) else {
            return;
        };
        let bounds = DATA - head.length..DATA + self.bytes;
        if whole::finish(&mut buffer.chunk()[bounds.clone()], head, self.ecn).is_none() {
            return self.discard(Reason::Malformed, outcome);
        }
        buffer.set_bounds(bounds);
        if let State::Building(frame) = std::mem::replace(&mut self.state, State::Free) {
            outcome.finished = Some(frame);
        }
    }

    /// Discards the datagram, and what will come of it.
    fn discard(&mut self, reason: Reason, outcome: &mut Outcome<F>) {
        outcome.lose(reason, self.packets);
        if let State::Building(buffer) =
            std::mem::replace(&mut self.state, State::Discarded(reason))
        {
            outcome.give_back(buffer);
        }
    }
}

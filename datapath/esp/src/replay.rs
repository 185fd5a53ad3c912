//! The replay window (RFC 4303 §3.4.3 and appendix A), lock-free and in memory that outlives the datapath.
//!
//! A ring of 64-bit words; a word covers a block of 16 sequence numbers: 47 bits say which block, 16 bits
//! which of its numbers were received, and one bit fences it (`culvert_state::handover`). A block that comes round again takes the word over, so moving the
//! right edge clears nothing, and a number is accepted by one compare-and-swap on one word: whatever
//! the workers race for and wherever a process dies, no number is accepted twice.
//!
//! The order check → open → commit is kept by types: only [`ReplayWindow::check`] makes a [`Token`],
//! and only a token can be committed.

use std::sync::atomic::{AtomicU64, Ordering};

use culvert_packet::reason::DropReason;
use culvert_state::Words;
use culvert_state::layout::inbound::{
    BLOCK, FENCE, HIGHEST, HIGHEST_KEPT, LAST, MAP_BITS, RING, words,
};

/// The replay window of one inbound SA.
#[derive(Debug)]
pub struct ReplayWindow {
    words: Words,
    size: u64,
    mask: u64,
    esn: bool,
}

/// A sequence number that passed the check and awaits authentication.
#[derive(Debug)]
#[must_use = "a packet that authenticates must be committed, or it can be replayed"]
pub struct Token {
    sequence: u64,
    far: bool,
}

impl Token {
    /// The extended sequence number that was inferred; without ESN its high half is zero.
    #[inline]
    #[must_use]
    pub fn sequence(&self) -> u64 {
        self.sequence
    }

    /// The reason to give if authentication fails. With ESN, a number left of the window can only be taken for
    /// one of the next 2^32 (RFC 4303 appendix A2.2): it fails authentication, but what it is, is too old.
    #[must_use]
    pub fn refusal(&self) -> DropReason {
        if self.far {
            DropReason::TooOld
        } else {
            DropReason::AuthenticationFailed
        }
    }
}

impl ReplayWindow {
    /// A window of `size` packets on `words`, which keep their content. `None` if `words` are not of the
    /// length that [`culvert_state::layout::inbound::words`] gives.
    #[must_use]
    pub fn new(words_: Words, size: u32, esn: bool) -> Option<Self> {
        if words_.len() != words(size) {
            return None;
        }
        Some(Self {
            mask: (words_.len() - RING) as u64 - 1,
            words: words_,
            size: u64::from(size),
            esn,
        })
    }

    /// Size in packets.
    #[inline]
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The highest sequence number authenticated, 0 for none: the window's right edge.
    #[inline]
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.words[HIGHEST].load(Ordering::Relaxed)
    }

    // RFC 4303 §3.4.3 [3.4.3-window, 3.4.3-check-moves-nothing, 2.2-capable]
    /// Whether a packet that carries `low` may be opened, and as which number. Changes nothing.
    ///
    /// # Errors
    /// [`DropReason::Replayed`] for a number received before, [`DropReason::TooOld`] for one left of the
    /// window, and for 0, which is never sent; [`DropReason::HandedOver`] if the SA is fenced.
    #[inline]
    pub fn check(&self, low: u32) -> Result<Token, DropReason> {
        self.look(low).map_err(|reason| self.refusal(reason))
    }

    #[inline]
    fn look(&self, low: u32) -> Result<Token, DropReason> {
        let highest = self.highest();
        let sequence = if self.esn {
            self.infer(highest, low)
        } else {
            u64::from(low)
        };
        if sequence == 0 || sequence.saturating_add(self.size) <= highest {
            return Err(DropReason::TooOld);
        }
        let word = self.word(sequence).load(Ordering::Relaxed);
        Self::mark(word, sequence).map(|_| Token {
            sequence,
            far: self.esn && sequence > highest.saturating_add(1 << 31),
        })
    }

    // RFC 4303 [3.4.3-moves-after, 3.4.3-no-duplicate, A2.1-advance]
    /// Marks the number of a packet that authenticated. Only now the window moves
    /// (RFC 4303 §3.4.3: "MUST NOT … until the integrity check succeeds").
    ///
    /// # Errors
    /// [`DropReason::Replayed`] or [`DropReason::TooOld`] if another worker was faster; [`DropReason::HandedOver`] if
    /// the SA was fenced since.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "a token is good for once")]
    pub fn commit(&self, token: Token) -> Result<(), DropReason> {
        let sequence = token.sequence;
        let word = self.word(sequence);
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            let marked = Self::mark(seen, sequence).map_err(|reason| self.refusal(reason))?;
            match word.compare_exchange_weak(seen, marked, Ordering::Relaxed, Ordering::Relaxed) {
                Ok(_) => break,
                Err(now) => seen = now,
            }
        }
        // Not a locked maximum, which would cost as much again as the line above: of two workers at once the
        // slower may set the edge back, to where it was when it was interrupted, until the next packet. That lets
        // in nothing twice, as the ring remembers, and what is let in late was not received before.
        if sequence > self.highest() {
            self.words[HIGHEST].store(sequence, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Why a number is refused for which `reason` was found.
    #[cold]
    fn refusal(&self, reason: DropReason) -> DropReason {
        if self.words[HIGHEST_KEPT].load(Ordering::Relaxed) & FENCE == 0 {
            self.mend();
            reason
        } else {
            DropReason::HandedOver
        }
    }

    /// Brings the edge to where it was when the SA was last released, if it is behind. A worker that was stopped in the
    /// middle of [`ReplayWindow::commit`] and woke up after a handover may have set it back that far, and with ESN
    /// numbers would be read as others then, which are too old or do not authenticate. To be called when one does not.
    #[cold]
    pub fn mend(&self) {
        let kept = self.words[HIGHEST_KEPT].load(Ordering::Relaxed);
        if kept & FENCE == 0 && kept > self.highest() {
            self.words[HIGHEST].fetch_max(kept, Ordering::Relaxed);
        }
    }

    // RFC 4303 [A2.2-high-half, 2.2.1-esn]
    /// RFC 4303 appendix A2.2: the number that ends in `low` and is in the window or, failing that, ahead of it; both of
    /// its cases in one, as that is the first such number from the window's left edge on. What would be before the
    /// first number there is, wraps around to above [`LAST`].
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "the low half is asked for")]
    fn infer(&self, highest: u64, low: u32) -> u64 {
        let left = highest.wrapping_add(1).wrapping_sub(self.size);
        left.wrapping_add(u64::from(low.wrapping_sub(left as u32)))
    }

    #[inline]
    fn word(&self, sequence: u64) -> &AtomicU64 {
        &self.words[RING + ((sequence / BLOCK) & self.mask) as usize]
    }

    /// The ring word after `sequence` was received.
    #[inline]
    fn mark(word: u64, sequence: u64) -> Result<u64, DropReason> {
        // 47 bits name a block of 16: enough for 2^51 packets, 7 years at 10 million a second. Above,
        // blocks have no names, and everything is refused. The block of a fenced word is above, too.
        if sequence > LAST {
            return Err(DropReason::TooOld);
        }
        let block = sequence / BLOCK;
        let bit = 1 << (sequence % BLOCK);
        match block.cmp(&(word >> MAP_BITS)) {
            std::cmp::Ordering::Greater => Ok(block << MAP_BITS | bit),
            std::cmp::Ordering::Equal if word & bit == 0 => Ok(word | bit),
            std::cmp::Ordering::Equal => Err(DropReason::Replayed),
            std::cmp::Ordering::Less => Err(DropReason::TooOld),
        }
    }
}

#[cfg(test)]
mod tests;

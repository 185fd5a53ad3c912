//! How the key manager takes an SA away from the datapath's workers, and gives it back.
//!
//! A worker may be stopped anywhere and go on at any time after. So nobody waits for it: the SA is *fenced* by a bit in
//! the very words by which a worker leases a number or accepts a packet, in the one atomic step that it does so by.
//! What a worker did before the fence is seen here; what it tries after is refused. *Releasing* writes those words
//! anew, behind all that was used since, and takes the bit away.
//!
//! Fencing loses nothing: it can be done again at any time, as by a key manager whose predecessor died in the middle
//! of anything here, and gives the same, or more that counts as used, but never less. None of this takes back what was used,
//! whatever is given to it.
//!
//! There is one key manager: none of this is to be called for the same SA by two threads at once. Workers may do what they want.

use std::sync::atomic::{AtomicU64, Ordering::SeqCst};

use crate::Words;
use crate::layout::inbound::{BLOCK, HIGHEST, HIGHEST_KEPT, LAST, MAP_BITS, RING};
use crate::layout::{inbound, outbound};

/// Who uses an SA's numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Holder {
    /// The workers, or nobody.
    Culvert,
    /// The kernel: it may have used numbers that only it knows of.
    Kernel,
}

/// Which numbers of an inbound SA were received.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// The highest one; 0: none.
    pub highest: u64,
    /// Bit *i* of the list, from the lowest bit of its first word: `highest - i` was received.
    pub received: Vec<u64>,
    /// How many bits count. All numbers left of them count as received.
    pub size: u32,
}

impl Window {
    /// A window of `size` numbers up to `highest`; `received` says whether the one that is so far back was received.
    #[must_use]
    pub fn new(highest: u64, size: u32, received: impl Fn(u32) -> bool) -> Self {
        let mut bits = vec![0; size.div_ceil(u64::BITS) as usize];
        for back in 0..size {
            if received(back) {
                bits[(back / u64::BITS) as usize] |= 1 << (back % u64::BITS);
            }
        }
        Self {
            highest,
            received: bits,
            size,
        }
    }

    /// Everything up to `highest` was received.
    #[must_use]
    pub fn up_to(highest: u64) -> Self {
        Self::new(highest, 0, |_| true)
    }

    /// Whether the number `back` before the highest was received, or is left of the window.
    #[must_use]
    pub fn was_received(&self, back: u32) -> bool {
        let word = self.received.get((back / u64::BITS) as usize);
        back >= self.size || word.is_none_or(|word| word >> (back % u64::BITS) & 1 != 0)
    }

    /// Whether this number was received, or is left of the window.
    #[must_use]
    pub fn has(&self, number: u64) -> bool {
        self.highest
            .checked_sub(number)
            .is_some_and(|back| u32::try_from(back).map_or(true, |back| self.was_received(back)))
    }
}

/// Whether the SA is fenced, or about to be, or not wholly released.
#[must_use]
pub fn is_fenced(words: &Words) -> bool {
    if is_outbound(words) {
        words[outbound::LEASED].load(SeqCst) & outbound::FENCE != 0
    } else {
        words[HIGHEST_KEPT].load(SeqCst) & inbound::FENCE != 0
    }
}

/// Who has the SA, as was last noted.
#[must_use]
pub fn holder(words: &Words) -> Holder {
    match words[holder_at(words)].load(SeqCst) {
        0 => Holder::Culvert,
        _ => Holder::Kernel,
    }
}

/// Notes who has the SA.
pub fn set_holder(words: &Words, holder: Holder) {
    let code = match holder {
        Holder::Culvert => 0,
        Holder::Kernel => 1,
    };
    words[holder_at(words)].store(code, SeqCst);
}

fn holder_at(words: &Words) -> usize {
    if is_outbound(words) {
        outbound::HOLDER
    } else {
        inbound::HOLDER
    }
}

/// The lengths of both directions never are the same.
fn is_outbound(words: &Words) -> bool {
    const { assert!(outbound::WORDS < RING) };
    words.len() == outbound::WORDS
}

/// The counter of an outbound SA.
fn counter(words: &Words) -> &AtomicU64 {
    assert!(is_outbound(words), "state of an outbound SA");
    &words[outbound::LEASED]
}

/// The last number that was leased, whether fenced or not.
///
/// # Panics
/// The words are an inbound SA's.
#[must_use]
pub fn leased(words: &Words) -> u64 {
    counter(words).load(SeqCst) & !outbound::FENCE
}

/// From now on, no worker leases a number. Returns the last one that any has leased; what comes after is the caller's. (Without
/// ESN it may be beyond 2^32: the numbers are used up then.)
///
/// # Panics
/// The words are an inbound SA's.
pub fn fence_outbound(words: &Words) -> u64 {
    counter(words).fetch_or(outbound::FENCE, SeqCst) & !outbound::FENCE
}

/// Notes that numbers up to `last` may have been used by another than the workers. The SA is fenced afterwards.
///
/// # Panics
/// The words are an inbound SA's.
pub fn raise_outbound(words: &Words, last: u64) {
    fence_outbound(words);
    // No higher than there are numbers, so that the additions of workers that come late do not reach the fence's bit.
    counter(words).fetch_max(outbound::FENCE | last.min(LAST), SeqCst);
}

/// Lets workers lease again, behind `last`, the last number that anybody may have used, and behind all that was known before.
///
/// # Panics
/// The words are an inbound SA's.
pub fn release_outbound(words: &Words, last: u64) {
    raise_outbound(words, last);
    // Nobody takes away what was just raised.
    counter(words).fetch_and(!outbound::FENCE, SeqCst);
}

/// The ring of an inbound SA.
fn ring(words: &Words) -> &[AtomicU64] {
    assert!(
        words.len() > RING && (words.len() - RING).is_power_of_two(),
        "state of an inbound SA"
    );
    &words[RING..]
}

/// From now on, no worker accepts a packet. Returns what was received, in a window of `window` numbers.
///
/// # Panics
/// The words are an outbound SA's.
pub fn fence_inbound(words: &Words, window: u32) -> Window {
    let kept = &words[HIGHEST_KEPT];
    let before = kept.load(SeqCst);
    // Up to here everything counts as received. What was kept at the last release, the ring knows better.
    let known = if before & inbound::FENCE == 0 {
        kept.store(inbound::FENCE, SeqCst);
        0
    } else {
        before & !inbound::FENCE
    };
    // A worker marks a number by a compare-and-swap on its word: either it was before this and is seen here, or it fails.
    let ring: Vec<u64> = ring(words)
        .iter()
        .map(|word| word.fetch_or(inbound::FENCE, SeqCst) & !inbound::FENCE)
        .collect();
    // A worker that is stopped in the middle may not have said yet how far it came, or say it at any time.
    let highest = ring
        .iter()
        .map(|word| highest_of(*word))
        .chain([words[HIGHEST].load(SeqCst), known])
        .fold(0, u64::max)
        .min(LAST);
    Window::new(highest, window, |back| {
        highest
            .checked_sub(u64::from(back))
            .is_none_or(|number| number <= known || is_marked(&ring, number))
    })
}

/// The highest number that a ring word says was received; 0: none.
fn highest_of(word: u64) -> u64 {
    let map = word & ((1 << MAP_BITS) - 1);
    match map.checked_ilog2() {
        Some(bit) => (word >> MAP_BITS) * BLOCK + u64::from(bit),
        None => 0,
    }
}

/// Whether the ring says that `number` was received, or refuses it as its word stands for a later block.
fn is_marked(ring: &[u64], number: u64) -> bool {
    let block = number / BLOCK;
    let word = ring[slot(block, ring.len())];
    let name = word >> MAP_BITS;
    name > block || name == block && word >> (number % BLOCK) & 1 != 0
}

/// Which word of a ring of `length` words a block has.
#[expect(clippy::cast_possible_truncation, reason = "less than the length")]
fn slot(block: u64, length: usize) -> usize {
    (block & (length as u64 - 1)) as usize
}

/// Notes that numbers up to `highest` may have been accepted by another than the workers: all of them count as received. The SA is
/// fenced afterwards.
///
/// # Panics
/// The words are an outbound SA's.
pub fn raise_inbound(words: &Words, highest: u64) {
    fence_inbound(words, 0);
    words[HIGHEST_KEPT].fetch_max(inbound::FENCE | highest.min(LAST), SeqCst);
}

/// Lets workers accept again what was not received: neither before the fence, of which a window of `window` numbers counts, nor by
/// whoever had the SA since, as `since` says. What is left of either window is refused.
///
/// # Panics
/// The words are an outbound SA's.
pub fn release_inbound(words: &Words, window: u32, since: &Window) {
    let before = fence_inbound(words, window);
    let highest = before.highest.max(since.highest).min(LAST);
    let received = |number| number <= highest && (before.has(number) || since.has(number));
    // Whoever finds this half done counts everything as received.
    words[HIGHEST_KEPT].store(inbound::FENCE | highest, SeqCst);
    let ring = ring(words);
    let last = highest / BLOCK;
    for (at, word) in ring.iter().enumerate() {
        // The newest block that this word is for. So the ring alone refuses whatever is left of the window, also when
        // a worker that was stopped sets the edge back.
        let back = slot(last.wrapping_sub(at as u64), ring.len());
        let anew = last.checked_sub(back as u64).map_or(0, |block| {
            let marks = (0..BLOCK).filter(|bit| received(block * BLOCK + bit));
            marks.fold(block << MAP_BITS, |word, bit| word | 1 << bit)
        });
        word.store(anew, SeqCst);
    }
    words[HIGHEST].fetch_max(highest, SeqCst);
    words[HIGHEST_KEPT].store(highest, SeqCst);
}

#[cfg(test)]
mod tests;

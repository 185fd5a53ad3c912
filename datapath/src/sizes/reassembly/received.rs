//! Which blocks of a datagram have come, and where the fragments that brought them began: two bitmaps of
//! eight-byte blocks.

use std::ops::Range;

/// The blocks of one datagram.
#[derive(Debug)]
pub(super) struct Received {
    there: Vec<u64>,
    starts: Vec<u64>,
}

impl Received {
    /// Bitmaps for at least `blocks` blocks.
    pub(super) fn new(blocks: usize) -> Self {
        let words = vec![0; blocks.div_ceil(64)];
        Self {
            there: words.clone(),
            starts: words,
        }
    }

    /// How many blocks there is room for.
    pub(super) fn room(&self) -> usize {
        self.there.len() * 64
    }

    /// Forgets all.
    pub(super) fn clear(&mut self) {
        self.there.fill(0);
        self.starts.fill(0);
    }

    /// Notes a fragment of these blocks, which must be within [`Received::room`], and at least one.
    pub(super) fn add(&mut self, blocks: Range<usize>) {
        self.starts[blocks.start / 64] |= 1 << (blocks.start % 64);
        for (word, mask) in masks(blocks) {
            self.there[word] |= mask;
        }
    }

    /// Whether any of these blocks has come.
    pub(super) fn overlaps(&self, blocks: Range<usize>) -> bool {
        masks(blocks).any(|(word, mask)| self.there[word] & mask != 0)
    }

    /// Whether these blocks have come as one fragment.
    pub(super) fn is_one_fragment(&self, blocks: Range<usize>) -> bool {
        let ends = !bit(&self.there, blocks.end) || bit(&self.starts, blocks.end);
        let begins = bit(&self.starts, blocks.start);
        let mut begun = 0;
        for (word, mask) in masks(blocks) {
            if self.there[word] & mask != mask {
                return false;
            }
            begun += (self.starts[word] & mask).count_ones();
        }
        begins && ends && begun == 1
    }
}

/// Whether a bit is set; those beyond the end are not.
fn bit(words: &[u64], at: usize) -> bool {
    words
        .get(at / 64)
        .is_some_and(|word| word >> (at % 64) & 1 != 0)
}

/// The words that a range has bits in, by index, each with these bits.
fn masks(blocks: Range<usize>) -> impl Iterator<Item = (usize, u64)> {
    (blocks.start / 64..blocks.end.div_ceil(64)).map(move |word| {
        let from = blocks.start.saturating_sub(word * 64);
        let to = (blocks.end - word * 64).min(64);
        (word, u64::MAX >> (64 - (to - from)) << from)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_within_over_and_up_to_word_borders() {
        for range in [0..1, 5..64, 63..65, 64..128, 0..128, 10..127, 127..128] {
            let bits: u32 = masks(range.clone())
                .map(|(_, mask)| mask.count_ones())
                .sum();
            assert_eq!(bits as usize, range.len(), "{range:?}");
            for (word, mask) in masks(range.clone()) {
                for bit in (0..64).filter(|bit| mask >> bit & 1 != 0) {
                    assert!(range.contains(&(word * 64 + bit)), "{range:?}");
                }
            }
        }
    }

    #[test]
    fn one_fragment_is_neither_a_part_nor_two() {
        let mut received = Received::new(128);
        received.add(3..60);
        received.add(60..128);
        assert!(received.is_one_fragment(3..60));
        assert!(received.is_one_fragment(60..128));
        for other in [3..59, 4..60, 3..61, 3..128, 0..60, 59..128, 0..3] {
            assert!(!received.is_one_fragment(other.clone()), "{other:?}");
        }
        assert!(!received.overlaps(0..3));
        assert!(received.overlaps(0..4));
        received.clear();
        assert!(!received.overlaps(0..128));
    }
}

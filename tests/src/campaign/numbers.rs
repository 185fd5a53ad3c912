//! Numbers that may come once: compact where they are dense, as sequence numbers are, and IVs that are made of them.

use std::collections::HashMap;

/// Bits of a number that say where in its block it is.
const BLOCK: u32 = 9;

/// A set of numbers: a bit each, in blocks of 512.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    blocks: HashMap<u64, [u64; 1 << (BLOCK - 6)]>,
}

impl Numbers {
    /// Adds one; false if it is there already.
    pub fn insert(&mut self, number: u64) -> bool {
        let block = self.blocks.entry(number >> BLOCK).or_default();
        let at = number & ((1 << BLOCK) - 1);
        let (word, bit) = (at as usize / 64, 1 << (at % 64));
        let new = block[word] & bit == 0;
        block[word] |= bit;
        new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_is_new_once() {
        let mut numbers = Numbers::default();
        for number in (0..2000).chain(u64::MAX - 2000..=u64::MAX) {
            assert!(numbers.insert(number));
        }
        for number in (0..2000).chain(u64::MAX - 2000..=u64::MAX) {
            assert!(!numbers.insert(number));
        }
        assert!(numbers.insert(2000));
    }

    #[test]
    fn with_a_salt_they_take_no_more_room() {
        let (mut plain, mut salted) = (Numbers::default(), Numbers::default());
        for number in 0..100_000 {
            plain.insert(number);
            salted.insert(number ^ 0x1234_5678_9abc_def0);
        }
        assert!(plain.blocks.len() <= 200 && salted.blocks.len() <= 2 * plain.blocks.len());
    }
}

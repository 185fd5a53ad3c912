//! Numbers that a seed stands for.

use std::time::SystemTime;

use anyhow::{Context, Result};

/// `SplitMix64`: the same numbers for the same seed, in every release.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The numbers of `seed`.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next number.
    pub fn number(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// The next number, from 0 up to and without `end`, which must not be 0.
    pub fn below(&mut self, end: usize) -> usize {
        (self.number() % end as u64) as usize
    }

    /// Whether something happens that happens `often` times in a million.
    pub fn happens(&mut self, often: u32) -> bool {
        self.number() % 1_000_000 < u64::from(often)
    }

    /// Fills `bytes`, eight from each number.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(8) {
            let number = self.number().to_le_bytes();
            chunk.copy_from_slice(&number[..chunk.len()]);
        }
    }
}

/// The seed that the environment variable `name` gives, or another each time.
///
/// # Errors
/// The variable is not a number.
pub fn seed(name: &str) -> Result<u64> {
    if let Ok(seed) = std::env::var(name) {
        return seed.parse().with_context(|| format!("{name}={seed}"));
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(u64::from(now.subsec_nanos()) ^ now.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_stands_for_its_numbers() {
        let mut random = Random::new(0);
        // The first two of SplitMix64 from 0, as its authors have them.
        assert_eq!(random.number(), 0xe220_a839_7b1d_cdaf);
        assert_eq!(random.number(), 0x6e78_9e6a_a1b9_65f4);
    }

    #[test]
    fn what_happens_is_as_frequent_as_it_says() {
        let mut random = Random::new(1);
        let often = (0..100_000).filter(|_| random.happens(10_000)).count();
        assert!((800..1200).contains(&often), "{often}");
        assert!(!(0..1000).any(|_| random.happens(0)));
    }
}

//! Time in clocks of the CPU's time stamp counter: what others count their packets in. It goes at the CPU's nominal
//! frequency, whatever the core's frequency is just then.

use std::hint::black_box;

/// The counter; on other machines than x86, nanoseconds.
#[inline]
#[must_use]
pub fn now() -> u64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_mm_lfence, _rdtsc};
        // SAFETY: every x86-64 has both. The fences keep what is timed from moving over the reading of the counter.
        unsafe {
            _mm_lfence();
            let clocks = _rdtsc();
            _mm_lfence();
            clocks
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    {
        use std::sync::OnceLock;
        use std::time::Instant;
        static START: OnceLock<Instant> = OnceLock::new();
        let start = START.get_or_init(Instant::now);
        u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }
}

/// Clocks that `work` takes, with those that reading the counter takes.
#[inline]
pub fn of<T>(work: impl FnOnce() -> T) -> u64 {
    let start = now();
    black_box(work());
    now() - start
}

/// Clocks a packet, as they were measured over and over.
#[derive(Debug, Default)]
pub struct Clocks {
    samples: Vec<f64>,
}

impl Clocks {
    /// `packets` took `clocks` together.
    pub fn add(&mut self, clocks: u64, packets: usize) {
        self.samples.push(clocks as f64 / packets as f64);
    }

    /// The best of all: without whatever else the machine did.
    #[must_use]
    pub fn best(&self) -> f64 {
        self.samples.iter().copied().fold(f64::INFINITY, f64::min)
    }

    /// The median.
    ///
    /// # Panics
    /// Nothing was measured.
    #[must_use]
    pub fn median(&mut self) -> f64 {
        self.quantile(0.5)
    }

    /// What that part of all, from 0 to 1, is below.
    ///
    /// # Panics
    /// Nothing was measured.
    #[must_use]
    pub fn quantile(&mut self, part: f64) -> f64 {
        self.samples.sort_by(f64::total_cmp);
        let at = (self.samples.len() as f64 * part) as usize;
        self.samples[at.min(self.samples.len() - 1)]
    }
}

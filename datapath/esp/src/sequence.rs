//! Sequence numbers of an outbound SA, leased in blocks from a counter that outlives the datapath.
//!
//! The counter says what has been leased, not what has been sent: it grows before a number is used, in
//! one atomic step, in memory that belongs to the key manager. So two workers never hold the same
//! number, and a datapath that is killed and started again goes on after all leases of the dead one. A
//! worker leases as many numbers as it has packets for the SA in a batch: nothing is wasted, and
//! numbers leave nearly in order whatever the number of workers.

use std::sync::atomic::{AtomicU64, Ordering};

use culvert_state::layout::inbound;

/// A sequence number to be used once: it cannot be copied, and sealing consumes it.
#[derive(Debug, PartialEq, Eq)]
pub struct Sequence(u64);

impl Sequence {
    /// The number, for a test vector. Everything else leases.
    #[must_use]
    pub fn for_test_vector(number: u64) -> Self {
        Self(number)
    }

    /// The extended sequence number; without ESN its high half is zero.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0
    }
}

/// Sequence numbers that are this worker's alone.
#[derive(Debug)]
#[must_use = "numbers that are leased and not used are lost"]
pub struct Lease {
    next: u64,
    end: u64,
}

impl Lease {
    // RFC 4303 [2.2-new-sa-in-time, 3.3.3-no-cycle, 3.3.3-first-is-one]
    /// Leases the next `count` numbers up to and including `last`, the highest that the SA may use; fewer,
    /// or none, when it comes to its end; none when it is fenced (`culvert_state::handover`).
    pub fn new(leased: &AtomicU64, count: u32, last: u64) -> Self {
        // An exhausted counter is left alone, so that it cannot creep to its own overflow. One that is fenced is higher
        // than `last`; if that comes between these two steps, `before` is, and the lease is empty all the same.
        if leased.load(Ordering::Relaxed) >= last {
            return Self { next: 0, end: 0 };
        }
        let before = leased.fetch_add(u64::from(count), Ordering::Relaxed);
        Self {
            next: before.min(last) + 1,
            end: before.saturating_add(u64::from(count)).min(last) + 1,
        }
    }

    // RFC 4303 [2.2-increment, 2.2-capable]
    /// The next number of the lease, or `None` after the last.
    #[inline]
    pub fn take(&mut self) -> Option<Sequence> {
        (self.next < self.end).then(|| {
            self.next += 1;
            Sequence(self.next - 1)
        })
    }
}

/// The last number that an SA may use. With ESN it is the last one that [`crate::replay`] has a name for: more than
/// seven years at ten million packets a second, and far enough from 2^63, the fence, that no lease gets there.
#[must_use]
pub const fn last(esn: bool) -> u64 {
    if esn { inbound::LAST } else { u32::MAX as u64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    #[test]
    fn the_first_number_is_one() {
        // RFC 4303 [3.3.3-first-is-one, 2.2-capable]
        // RFC 4303 §3.3.3: the first packet sent using a given SA has sequence number 1.
        let counter = AtomicU64::new(0);
        assert_eq!(
            Lease::new(&counter, 1, last(false)).take(),
            Some(Sequence(1))
        );
    }

    #[test]
    fn without_esn_the_last_number_is_not_followed_by_zero() {
        // RFC 4303 [2.2-new-sa-in-time, 3.3.3-no-cycle]
        // RFC 4303 §3.3.3: the sender must not let the sequence number cycle.
        let counter = AtomicU64::new(u64::from(u32::MAX) - 2);
        let mut lease = Lease::new(&counter, 64, last(false));
        assert_eq!(lease.take(), Some(Sequence(u64::from(u32::MAX) - 1)));
        assert_eq!(lease.take(), Some(Sequence(u64::from(u32::MAX))));
        assert_eq!(lease.take(), None);
        assert_eq!(Lease::new(&counter, 1, last(false)).take(), None);
    }

    #[test]
    fn threads_never_hold_the_same_number() {
        // RFC 4303 §2.2 [2.2-increment]
        let counter = AtomicU64::new(0);
        let all: Vec<u64> = std::thread::scope(|scope| {
            let threads: Vec<_> = (1..=4_u32)
                .map(|count| {
                    let counter = &counter;
                    scope.spawn(move || {
                        let mut mine = Vec::new();
                        for _ in 0..5_000 {
                            let mut lease = Lease::new(counter, count, last(true));
                            while let Some(sequence) = lease.take() {
                                mine.push(sequence.get());
                            }
                        }
                        mine
                    })
                })
                .collect();
            threads
                .into_iter()
                .flat_map(|thread| thread.join().unwrap())
                .collect()
        });
        let unique: HashSet<u64> = all.iter().copied().collect();
        assert_eq!(unique.len(), all.len());
        assert_eq!(all.len(), 5_000 * (1 + 2 + 3 + 4));
    }

    proptest! {
        /// Against the naive oracle: a counter that is stepped one by one, with crashes that lose what
        /// was leased and not used.
        #[test]
        fn leases_agree_with_a_naive_counter(
            start in prop_oneof![Just(0), u64::from(u32::MAX) - 100..u64::from(u32::MAX) + 100],
            esn in any::<bool>(),
            steps in proptest::collection::vec((1_u32..70, 0_u32..70), 1..50),
        ) {
            let counter = AtomicU64::new(start);
            let mut naive = start;
            for (count, used) in steps {
                let mut lease = Lease::new(&counter, count, last(esn));
                for step in 0..count {
                    naive = naive.saturating_add(1);
                    if step < used {
                        let expected = (naive <= last(esn)).then_some(naive);
                        prop_assert_eq!(lease.take().map(|s| s.get()), expected);
                    }
                }
                if naive > last(esn) {
                    prop_assert!(Lease::new(&counter, 1, last(esn)).take().is_none());
                    return Ok(());
                }
            }
        }
    }
}

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

fn window(size: u32, esn: bool) -> ReplayWindow {
    ReplayWindow::new(Words::on_heap(words(size)), size, esn).unwrap()
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "the wire carries the low half"
)]
fn receive(window: &ReplayWindow, sequence: u64) -> Result<(), DropReason> {
    let token = window.check(sequence as u32)?;
    // Authentication: the sender used `sequence`, and the ICV covers it.
    if token.sequence() != sequence {
        return Err(token.refusal());
    }
    window.commit(token)
}

#[test]
fn a_number_is_taken_once() {
    // RFC 4303 §3.4.3 [3.4.3-anti-replay, 3.4.3-no-duplicate, 3.4.3-window, 3.4.3-window-32, 2.2-capable]
    // RFC 4303 §3.4.3 [3.4.3-starts-at-zero]: a new window takes 1 first.
    let window = window(32, false);
    assert_eq!(receive(&window, 0), Err(DropReason::TooOld));
    assert_eq!(receive(&window, 1), Ok(()));
    assert_eq!(receive(&window, 1), Err(DropReason::Replayed));
    assert_eq!(receive(&window, 40), Ok(()));
    assert_eq!(receive(&window, 8), Err(DropReason::TooOld));
    assert_eq!(receive(&window, 9), Ok(()));
    assert_eq!(receive(&window, 9), Err(DropReason::Replayed));
}

#[test]
fn the_check_alone_changes_nothing() {
    // RFC 4303 §3.4.3 [3.4.3-check-moves-nothing, 3.4.3-moves-after]
    let window = window(64, true);
    for _ in 0..3 {
        let _unused = window.check(77).unwrap();
    }
    assert_eq!(window.highest(), 0);
    assert_eq!(receive(&window, 77), Ok(()));
}

#[test]
fn esn_crosses_the_edge() {
    // RFC 4303 [2.2.1-esn, A2.2-high-half]
    // RFC 4303 appendix A2.2, cases A and B.
    let window = window(64, true);
    window.words[HIGHEST].store((1 << 32) - 10, Ordering::Relaxed);
    assert_eq!(receive(&window, (1 << 32) - 5), Ok(()));
    assert_eq!(receive(&window, (1 << 32) + 3), Ok(()));
    assert_eq!(receive(&window, (1 << 32) - 6), Ok(()));
    assert_eq!(receive(&window, (1 << 32) - 5), Err(DropReason::Replayed));
    assert_eq!(receive(&window, 1 << 32), Ok(()));
    assert_eq!(window.highest(), (1 << 32) + 3);
}

#[test]
fn state_survives_its_user() {
    let words = Words::on_heap(words(128));
    let first = ReplayWindow::new(words.clone(), 128, true).unwrap();
    assert_eq!(receive(&first, 5), Ok(()));
    drop(first);
    let second = ReplayWindow::new(words, 128, true).unwrap();
    assert_eq!(receive(&second, 5), Err(DropReason::Replayed));
}

#[test]
fn threads_never_take_the_same_number_twice() {
    // RFC 4303 §3.4.3 [3.4.3-no-duplicate]
    let window = window(4096, true);
    let taken: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    (1..20_000_u64)
                        .filter(|sequence| receive(&window, *sequence).is_ok())
                        .count()
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    assert!(taken < 20_000);
}

/// The window as the RFC's text has it: a set and a right edge.
struct Oracle {
    seen: HashSet<u64>,
    highest: u64,
    size: u64,
}

impl Oracle {
    fn receive(&mut self, sequence: u64) -> Result<(), DropReason> {
        if sequence == 0 || sequence + self.size <= self.highest {
            return Err(DropReason::TooOld);
        }
        if !self.seen.insert(sequence) {
            return Err(DropReason::Replayed);
        }
        self.highest = self.highest.max(sequence);
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn agrees_with_a_naive_oracle(
        size in 32_u32..=4096, esn in any::<bool>(), seed_edge in 0_u64..3,
        steps in proptest::collection::vec((0_u8..10, 0_u64..6000), 1..600),
    ) {
        // RFC 4303 [3.4.3-window, 3.4.3-window-32, 3.4.3-window-larger, A2.1-advance, A2.2-high-half]
        let window = window(size, esn);
        let mut oracle = Oracle { seen: HashSet::new(), highest: 0, size: u64::from(size) };
        if esn {
            oracle.highest = (seed_edge << 32).saturating_sub(2500);
            window.words[HIGHEST].store(oracle.highest, Ordering::Relaxed);
        }
        for (kind, distance) in steps {
            let sequence = match kind {
                0..5 => oracle.highest + 1 + distance % 4,
                5..9 => oracle.highest.saturating_sub(distance % (u64::from(size) + 40)),
                _ => oracle.highest + distance,
            };
            let expected = oracle.receive(sequence);
            let got = receive(&window, sequence);
            prop_assert_eq!(got, expected, "sequence {} highest {}", sequence, oracle.highest);
            prop_assert_eq!(window.highest(), oracle.highest);
        }
    }
}

/// Numbers that are never more than `step` from where the last one was, seldom new, near an edge of 2^32: all three
/// cases of RFC 4303 appendix A2.2, ten million times, against the set that the RFC's text describes.
#[test]
fn ten_million_steps_around_the_edges_agree_with_a_naive_oracle() {
    const RUNS: u64 = 2_000;
    const STEPS: u64 = 5_000;
    // RFC 4303 [3.4.3-no-duplicate, 3.4.3-window, A2.1-advance, A2.2-high-half]
    // xorshift64*: repeatable, and no crate knows less about sequence numbers.
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        state.wrapping_mul(0x2545_f491_4f6c_dd1d)
    };
    // Where the window was against the edge: within one half, over the edge with the number on either side.
    let mut cases = [0_u64; 3];
    let sizes = [32, 33, 64, 100, 1024, 4096];
    for (run, size) in (0..RUNS).zip(sizes.into_iter().cycle()) {
        let esn = run % 4 != 0;
        let window = window(size, esn);
        let size = u64::from(size);
        let edge = if esn { (random() % 4) << 32 } else { 0 };
        let start = edge.saturating_sub(random() % (size + 1_000));
        window.words[HIGHEST].store(start, Ordering::Relaxed);
        let mut oracle = Oracle {
            seen: HashSet::new(),
            highest: start,
            size,
        };
        for _ in 0..STEPS {
            let distance = random() % (size + size / 4 + 2);
            let highest = oracle.highest;
            let sequence = match random() % 64 {
                0..24 => highest + 1 + distance % 3,
                24..63 => highest.saturating_sub(distance),
                _ => highest + distance,
            };
            let half = highest & 0xffff_ffff;
            if half + 1 >= size {
                cases[0] += 1;
            } else {
                cases[if sequence >> 32 == highest >> 32 {
                    1
                } else {
                    2
                }] += 1;
            }
            let expected = oracle.receive(sequence);
            assert_eq!(
                receive(&window, sequence),
                expected,
                "size {size}, ESN {esn}: {sequence:#x} after {highest:#x}"
            );
            assert_eq!(window.highest(), oracle.highest);
        }
    }
    assert!(cases.iter().sum::<u64>() == RUNS * STEPS && cases.iter().all(|case| *case > 10_000));
}

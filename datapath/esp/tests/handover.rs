//! Leases and replay windows while the key manager takes them away and gives them back.
#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use culvert_esp::replay::{ReplayWindow, Token};
use culvert_esp::sequence::{Lease, last};
use culvert_packet::reason::DropReason;
use culvert_state::Words;
use culvert_state::handover::{
    Window, fence_inbound, fence_outbound, is_fenced, leased, raise_inbound, release_inbound,
    release_outbound,
};
use culvert_state::layout::{inbound, outbound};
use proptest::prelude::*;

fn window(size: u32, esn: bool) -> (Words, ReplayWindow) {
    let words = Words::on_heap(inbound::words(size));
    let window = ReplayWindow::new(words.clone(), size, esn).unwrap();
    (words, window)
}

/// Checks a packet that was sent with `number`.
#[expect(clippy::cast_possible_truncation, reason = "what is on the wire")]
fn check(window: &ReplayWindow, number: u64) -> Result<Token, DropReason> {
    let token = window.check(number as u32)?;
    if token.sequence() == number {
        return Ok(token);
    }
    // The ICV is wrong.
    window.mend();
    Err(token.refusal())
}

fn receive(window: &ReplayWindow, number: u64) -> Result<(), DropReason> {
    window.commit(check(window, number)?)
}

#[test]
fn a_fenced_sa_says_so_and_goes_on_afterwards() {
    for esn in [false, true] {
        let (words, window) = window(64, esn);
        for number in [1, 2, 5] {
            receive(&window, number).unwrap();
        }
        let stopped = check(&window, 6).unwrap();
        let fenced = fence_inbound(&words, 64);
        assert_eq!(fenced, Window::new(5, 64, |back| back != 1 && back != 2));
        for number in [1, 3, 6, 1000] {
            assert_eq!(receive(&window, number), Err(DropReason::HandedOver));
        }
        assert_eq!(window.commit(stopped), Err(DropReason::HandedOver));
        assert_eq!(window.highest(), 5);
        // The kernel has received 3 and 7.
        release_inbound(
            &words,
            64,
            &Window::new(7, 32, |back| back != 1 && back != 3),
        );
        let stopped = [2, 3, 4, 5, 6, 7, 8].map(|number| receive(&window, number).is_ok());
        assert_eq!(stopped, [false, false, true, false, true, false, true]);
        raise_inbound(&words, 100);
        release_inbound(&words, 64, &Window::new(8, 64, |_| false));
        assert_eq!(receive(&window, 100), Err(DropReason::Replayed));
        receive(&window, 101).unwrap();
    }
}

#[test]
fn a_fence_between_the_two_steps_of_a_lease_empties_it() {
    let words = Words::on_heap(outbound::WORDS);
    for esn in [false, true] {
        let counter = &words[outbound::LEASED];
        assert!(Lease::new(counter, 3, last(esn)).take().is_some());
        let before = fence_outbound(&words);
        assert!(Lease::new(counter, 3, last(esn)).take().is_none());
        assert_eq!(leased(&words), before);
        release_outbound(&words, before + 10);
        let next = Lease::new(counter, 3, last(esn)).take().unwrap();
        assert_eq!(next.get(), before + 11);
    }
}

/// A worker that had accepted a number, was stopped before it moved the edge, and woke up when the kernel had come 2^32 further.
#[test]
fn an_edge_that_is_set_back_over_a_handover_lets_in_nothing_twice_and_is_mended() {
    let (words, window) = window(64, true);
    receive(&window, 5).unwrap();
    fence_inbound(&words, 64);
    let far = 3 << 32;
    release_inbound(&words, 64, &Window::new(far, 64, |back| back != 2));
    words[inbound::HIGHEST].store(5, Ordering::Relaxed);
    assert!(receive(&window, far + 1).is_err(), "read as another number");
    for number in [5, 6, far - 100, far - 1, far] {
        assert!(receive(&window, number).is_err(), "{number}");
    }
    receive(&window, far + 1).unwrap();
    receive(&window, far - 2).unwrap();
}

proptest! {
    /// Numbers that come before a handover, during it and after it: what is refused afterwards is what was received, or is left
    /// of one of the windows; nothing else.
    #[test]
    fn a_handover_refuses_what_was_received_and_nothing_else(
        size in 32_u32..300, theirs in 32_u32..300, esn in any::<bool>(), edge in any::<bool>(),
        before in proptest::collection::vec(1_u64..900, 0..200),
        during in proptest::collection::vec(1_u64..900, 0..200),
    ) {
        let (words, window) = window(size, esn);
        // With ESN, over the edge of the low half.
        let base = if esn && edge { (1 << 32) - 500 } else { 0 };
        words[inbound::HIGHEST].store(base, Ordering::Relaxed);
        let mut seen = HashSet::new();
        for number in before {
            if receive(&window, base + number).is_ok() {
                seen.insert(base + number);
            }
        }
        let ours = fence_inbound(&words, size);
        prop_assert_eq!(ours.highest, seen.iter().copied().fold(base, u64::max));
        for back in 0..size.min(u32::try_from(ours.highest).unwrap_or(u32::MAX)) {
            let number = ours.highest - u64::from(back);
            prop_assert_eq!(ours.was_received(back), seen.contains(&number));
        }
        let mut floor = ours.highest.saturating_sub(u64::from(size));
        let mut highest = ours.highest;
        for number in during {
            let number = base + number;
            if number > highest.saturating_sub(u64::from(theirs)) && !ours.has(number) {
                seen.insert(number);
                highest = highest.max(number);
            }
        }
        let kernels = Window::new(highest, theirs, |back| {
            let number = highest.saturating_sub(u64::from(back));
            ours.has(number) || seen.contains(&number)
        });
        floor = floor.max(highest.saturating_sub(u64::from(theirs)));
        floor = floor.max(highest.saturating_sub(u64::from(size)));
        release_inbound(&words, size, &kernels);
        prop_assert!(!is_fenced(&words));
        prop_assert_eq!(window.highest(), highest);
        for number in (base + 1..base + 900).filter(|number| *number <= highest) {
            let fresh = number > floor && !seen.contains(&number);
            prop_assert_eq!(receive(&window, number).is_ok(), fresh, "{} of {}", number, highest);
        }
        prop_assert_eq!(receive(&window, highest + 1), Ok(()));
    }
}

/// Workers that lease or receive while a key manager takes the SA away, uses numbers as the kernel would, and gives it back.
const WORKERS: usize = 2;
const HANDOVERS: usize = 10_000;
/// Numbers that each worker gets at least.
const EACH: usize = 1_000;

/// Runs `work` in threads until that and `hand_over` have been called often enough; all numbers that they gave.
fn race(
    work: impl Fn(usize, &mut Vec<u64>) + Sync,
    mut hand_over: impl FnMut(&mut Vec<u64>),
) -> Vec<Vec<u64>> {
    let done = AtomicBool::new(false);
    let satisfied = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let (work, done, satisfied) = (&work, &done, &satisfied);
                scope.spawn(move || {
                    let mut mine = Vec::new();
                    while !done.load(Ordering::Relaxed) {
                        let before = mine.len();
                        for _ in 0..16 {
                            work(worker, &mut mine);
                        }
                        std::thread::yield_now();
                        if before < EACH && mine.len() >= EACH {
                            satisfied.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                    mine
                })
            })
            .collect();
        let mut kernels = Vec::new();
        let mut round = 0;
        while round < HANDOVERS || satisfied.load(Ordering::Relaxed) < WORKERS {
            hand_over(&mut kernels);
            round += 1;
            // Some come close upon each other, some do not.
            (0..round % 100).for_each(|_| std::hint::spin_loop());
        }
        done.store(true, Ordering::Relaxed);
        let mut all: Vec<_> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        all.push(kernels);
        all
    })
}

fn assert_distinct(all: &[Vec<u64>]) {
    let mut numbers = all.concat();
    let count = numbers.len();
    numbers.sort_unstable();
    numbers.dedup();
    assert_eq!(numbers.len(), count, "a number was used twice");
}

#[test]
fn no_number_is_leased_twice_however_often_the_counter_is_fenced() {
    for esn in [false, true] {
        let words = Words::on_heap(outbound::WORDS);
        let all = race(
            |worker, mine| {
                let mut lease = Lease::new(
                    &words[outbound::LEASED],
                    u32::try_from(worker).unwrap() * 3 + 1,
                    last(esn),
                );
                while let Some(sequence) = lease.take() {
                    mine.push(sequence.get());
                }
            },
            |kernels| {
                let from = fence_outbound(&words);
                kernels.extend(from + 1..=from + 5);
                release_outbound(&words, from + 5);
            },
        );
        assert_distinct(&all);
    }
}

#[test]
fn no_packet_is_accepted_twice_however_often_the_window_is_fenced() {
    const SIZE: u32 = 128;
    for esn in [false, true] {
        let (words, window) = window(SIZE, esn);
        let start = if esn { (1 << 32) - 3_000 } else { 0 };
        words[inbound::HIGHEST].store(start, Ordering::Relaxed);
        // What a peer has sent so far; the workers get all of it, and most of it twice.
        let sent = AtomicU64::new(start);
        let all = race(
            |_, mine| {
                let newest = sent.fetch_add(1, Ordering::Relaxed) + 1;
                for number in newest.saturating_sub(40).max(1)..=newest {
                    if receive(&window, number).is_ok() {
                        mine.push(number);
                    }
                }
            },
            |kernels| {
                let ours = fence_inbound(&words, SIZE);
                let newest = ours.highest + 3;
                // Every second number that is missing, and one that is new.
                let mut gets: HashSet<u64> = (newest.saturating_sub(60).max(1)..newest)
                    .filter(|number| number % 2 == 0 && !ours.has(*number))
                    .collect();
                gets.insert(newest);
                let since = Window::new(newest, SIZE, |back| {
                    let number = newest.saturating_sub(u64::from(back));
                    gets.contains(&number) || ours.has(number)
                });
                kernels.extend(gets);
                sent.fetch_max(newest, Ordering::Relaxed);
                assert_eq!(
                    fence_inbound(&words, SIZE),
                    ours,
                    "somebody came in behind the fence"
                );
                release_inbound(&words, SIZE, &since);
            },
        );
        assert_distinct(&all);
    }
}

use super::*;
use proptest::prelude::*;
use std::collections::HashSet;

const WINDOW: u32 = 64;

fn inbound_words() -> Words {
    Words::on_heap(inbound::words(WINDOW))
}

fn outbound_words() -> Words {
    Words::on_heap(outbound::WORDS)
}

#[test]
fn a_window_knows_what_it_was_told_and_counts_what_is_left_of_it_as_received() {
    let window = Window::new(1000, 70, |back| back % 3 == 0);
    for back in 0..200 {
        assert_eq!(window.was_received(back), back >= 70 || back % 3 == 0);
        assert_eq!(
            window.has(1000 - u64::from(back)),
            window.was_received(back)
        );
    }
    assert!(!window.has(1001));
    assert!(window.has(1000 - 70));
    let all = Window::up_to(u64::MAX);
    assert!(all.has(0) && all.has(u64::MAX));
    let cut = Window {
        highest: 9,
        received: Vec::new(),
        size: 100,
    };
    assert!(cut.was_received(0), "bits that are not there");
}

#[test]
fn the_holder_is_culvert_until_it_is_noted() {
    for words in [inbound_words(), outbound_words()] {
        assert_eq!(holder(&words), Holder::Culvert);
        for noted in [Holder::Kernel, Holder::Culvert] {
            set_holder(&words, noted);
            assert_eq!(holder(&words), noted);
        }
        assert!(!is_fenced(&words));
    }
}

#[test]
fn a_fenced_counter_is_above_every_last_number_and_never_goes_back() {
    let words = outbound_words();
    words[outbound::LEASED].store(77, SeqCst);
    assert_eq!((fence_outbound(&words), fence_outbound(&words)), (77, 77));
    assert!(is_fenced(&words) && words[outbound::LEASED].load(SeqCst) > LAST);
    raise_outbound(&words, 200);
    assert_eq!(fence_outbound(&words), 200);
    // What the kernel says is less than what is known.
    release_outbound(&words, 100);
    assert_eq!((leased(&words), is_fenced(&words)), (200, false));
    release_outbound(&words, 300);
    assert_eq!(words[outbound::LEASED].load(SeqCst), 300);
    // Nonsense, and a worker that adds to it late.
    fence_outbound(&words);
    raise_outbound(&words, u64::MAX);
    words[outbound::LEASED].fetch_add(1 << 32, SeqCst);
    assert!(is_fenced(&words) && leased(&words) > LAST);
}

#[test]
fn an_untouched_window_comes_back_untouched() {
    let words = inbound_words();
    let window = fence_inbound(&words, WINDOW);
    assert_eq!(window, Window::new(0, WINDOW, |_| true));
    assert!(is_fenced(&words));
    release_inbound(&words, WINDOW, &window);
    assert!(!is_fenced(&words));
    let worker = Worker::default().accepts(&words, 1);
    assert!(worker);
}

/// A worker as culvert-esp has it, but one step at a time: it can be stopped between any two.
#[derive(Clone, Copy, Debug, Default)]
struct Worker {
    number: u64,
    at: Step,
}

#[derive(Clone, Copy, Debug, Default)]
enum Step {
    #[default]
    Idle,
    /// The word was read.
    Seen(u64),
    /// The number is marked, the edge not compared.
    Marked,
    /// It found the edge lower.
    Behind,
}

impl Worker {
    /// One step; says whether a number was accepted by it.
    fn step(&mut self, words: &Words, next: u64) -> bool {
        let ring = ring(words);
        let word = |number: u64| &ring[slot(number / BLOCK, ring.len())];
        match self.at {
            Step::Idle => {
                let seen = word(next).load(SeqCst);
                self.number = next;
                let late = next + u64::from(WINDOW) <= words[HIGHEST].load(SeqCst);
                if !late && next > 0 && mark(seen, next).is_some() {
                    self.at = Step::Seen(seen);
                }
                false
            }
            Step::Seen(seen) => {
                let Some(marked) = mark(seen, self.number) else {
                    self.at = Step::Idle;
                    return false;
                };
                match word(self.number).compare_exchange(seen, marked, SeqCst, SeqCst) {
                    Ok(_) => self.at = Step::Marked,
                    Err(now) => self.at = Step::Seen(now),
                }
                matches!(self.at, Step::Marked)
            }
            Step::Marked => {
                let behind = self.number > words[HIGHEST].load(SeqCst);
                self.at = if behind { Step::Behind } else { Step::Idle };
                false
            }
            Step::Behind => {
                words[HIGHEST].store(self.number, SeqCst);
                self.at = Step::Idle;
                false
            }
        }
    }

    fn accepts(mut self, words: &Words, number: u64) -> bool {
        (0..4).fold(false, |accepted, _| self.step(words, number) || accepted)
    }
}

fn mark(word: u64, number: u64) -> Option<u64> {
    let (block, bit) = (number / BLOCK, 1 << (number % BLOCK));
    match block.cmp(&(word >> MAP_BITS)) {
        std::cmp::Ordering::Greater => Some(block << MAP_BITS | bit),
        std::cmp::Ordering::Equal if word & bit == 0 => Some(word | bit),
        _ => None,
    }
}

fn all(words: &Words) -> Vec<u64> {
    words.iter().map(|word| word.load(SeqCst)).collect()
}

/// As if whoever turned `before` into what the words are now had died: of the ring only `written` words are new, and what is
/// written after the ring is not.
fn die(words: &Words, before: &[u64], kept: u64, written: usize) {
    for (word, old) in ring(words).iter().zip(&before[RING..]).skip(written) {
        word.store(*old, SeqCst);
    }
    words[HIGHEST].store(before[HIGHEST], SeqCst);
    words[HIGHEST_KEPT].store(kept, SeqCst);
}

/// What is tried, in turns.
#[derive(Clone, Debug)]
enum Turn {
    /// A worker does a step; if it is idle, with a number so far from the highest.
    Work { worker: usize, distance: i64 },
    /// The kernel has it, and accepts what it has not of these numbers after the highest, less 40. It may have
    /// forgotten what it was told; the key manager may die after so many words of the release.
    Kernel {
        gets: Vec<u64>,
        window: u32,
        forgets: bool,
        dies: Option<usize>,
    },
    /// The key manager dies in fencing, after so many words.
    Death { written: usize },
    /// It notes that everything up to so many after the highest may be received.
    Raise { ahead: u64 },
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let turn = prop_oneof![
        20 => (0_usize..3, -80_i64..20)
            .prop_map(|(worker, distance)| Turn::Work { worker, distance }),
        2 => (
            proptest::collection::vec(0_u64..80, 0..20),
            0_u32..200,
            any::<bool>(),
            proptest::option::of(0_usize..9),
        )
            .prop_map(|(gets, window, forgets, dies)| Turn::Kernel { gets, window, forgets, dies }),
        1 => (0_usize..9).prop_map(|written| Turn::Death { written }),
        1 => (0_u64..50).prop_map(|ahead| Turn::Raise { ahead }),
    ];
    proptest::collection::vec(turn, 1..400)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]
    /// Against a set of all that was ever received, with workers that are stopped anywhere, and key managers that die.
    #[test]
    fn nothing_is_accepted_twice_wherever_anybody_is_stopped(
        start in prop_oneof![Just(0), Just(1000), Just((1_u64 << 32) - 50)],
        turns in turns(),
    ) {
        let words = inbound_words();
        words[HIGHEST].store(start, SeqCst);
        let mut workers = [Worker::default(); 3];
        let mut received = HashSet::new();
        let mut highest = start;
        let mut fenced = false;
        for turn in turns {
            match turn {
                Turn::Work { worker, distance } => {
                    let next = highest.saturating_add_signed(distance);
                    let worker = &mut workers[worker];
                    if worker.step(&words, next) {
                        prop_assert!(received.insert(worker.number), "{} again", worker.number);
                        prop_assert!(!fenced, "{} behind the fence", worker.number);
                        highest = highest.max(worker.number);
                    }
                }
                Turn::Kernel { gets, window, forgets, dies } => {
                    let ours = fence_inbound(&words, WINDOW);
                    prop_assert_eq!(&fence_inbound(&words, WINDOW), &ours);
                    prop_assert!(ours.highest >= highest);
                    for number in &received {
                        prop_assert!(ours.has(*number), "{} was forgotten", number);
                    }
                    highest = ours.highest;
                    let mut theirs = HashSet::new();
                    for ahead in gets {
                        let number = (highest + ahead).saturating_sub(40);
                        if number > 0 && !ours.has(number) {
                            theirs.insert(number);
                        }
                    }
                    received.extend(&theirs);
                    highest = received.iter().copied().fold(highest, u64::max);
                    let theirs = Window::new(highest, window, |back| {
                        let number = highest.saturating_sub(u64::from(back));
                        number == 0 || theirs.contains(&number) || !forgets && ours.has(number)
                    });
                    let before = all(&words);
                    release_inbound(&words, WINDOW, &theirs);
                    prop_assert!(!is_fenced(&words));
                    prop_assert_eq!(words[HIGHEST].load(SeqCst), highest);
                    if let Some(written) = dies {
                        die(&words, &before, inbound::FENCE | highest, written);
                    }
                    fenced = false;
                }
                Turn::Death { written } => {
                    let before = all(&words);
                    fence_inbound(&words, WINDOW);
                    let kept = words[HIGHEST_KEPT].load(SeqCst);
                    die(&words, &before, kept, written);
                }
                Turn::Raise { ahead } => {
                    raise_inbound(&words, highest + ahead);
                    highest += ahead;
                    // For the workers, too: they have not been received, but must not be.
                    received.extend(highest.saturating_sub(100)..=highest);
                    fenced = true;
                }
            }
        }
    }

    /// Numbers of an outbound SA: whoever has it, none is used twice.
    #[test]
    fn no_number_is_leased_twice(steps in proptest::collection::vec((0_u8..4, 1_u64..64), 1..100)) {
        let words = outbound_words();
        let mut used = 0;
        for (step, count) in steps {
            match step {
                0 | 1 => {
                    let before = words[outbound::LEASED].fetch_add(count, SeqCst);
                    // What is fenced is above the last number.
                    if before <= LAST {
                        prop_assert!(before >= used);
                        used = before + count;
                    }
                }
                2 => {
                    let last = fence_outbound(&words);
                    prop_assert!(last >= used);
                    prop_assert_eq!(fence_outbound(&words), last);
                    used = last + count;
                    raise_outbound(&words, used);
                }
                _ => {
                    used += count;
                    release_outbound(&words, used);
                }
            }
        }
    }
}

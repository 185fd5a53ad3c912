//! What becomes of the frames of one direction: no socket, no clock, so that a seed stands for all of it.

use std::time::{Duration, Instant};

use super::sort::{Sort, sort};
use crate::random::Random;

/// At most that many later frames overtake one that is held back. Far less than a replay window.
const REACH: usize = 24;
/// A frame is held back no longer than this, if no others come.
const PATIENCE: Duration = Duration::from_millis(5);
/// Length of an Ethernet header. It stays whole, as damage there only leads a frame astray.
const ETHERNET: usize = 14;

/// How often what happens to a frame, in a million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// It is lost.
    pub loss: u32,
    /// It comes twice.
    pub duplication: u32,
    /// Frames behind it overtake it: up to 24 of them.
    pub reordering: u32,
    /// One of its bits is another, anywhere from the IP header on.
    pub corruption: u32,
}

/// What was seen, and what was done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// ESP that arrived, also in UDP.
    pub esp: u64,
    /// Geneve in clear that arrived.
    pub plaintext_geneve: u64,
    /// Whatever else arrived.
    pub other: u64,
    /// Frames that were lost.
    pub lost: u64,
    /// Frames that were sent twice.
    pub duplicated: u64,
    /// Frames that were overtaken.
    pub reordered: u64,
    /// Frames that were sent with a wrong bit.
    pub corrupted: u64,
    /// Frames that were sent on, of whatever kind.
    pub sent: u64,
    /// Of these, those that the kernel did not take: the receiver's ring was full, so they are lost.
    pub refused: u64,
    /// Frames longer than the wire's MTU, which it does not carry: none of Culvert's are.
    pub too_long: u64,
    /// Frames that came faster than they were taken, and are lost.
    pub missed: u64,
}

/// A frame that is held back.
#[derive(Debug)]
struct Held {
    frame: Vec<u8>,
    /// So many more are to overtake it.
    more: usize,
    overtaken: bool,
    until: Instant,
}

/// One direction.
#[derive(Debug)]
pub struct Way {
    faults: Faults,
    random: Random,
    held: Vec<Held>,
    /// What was counted so far.
    pub counts: Counts,
}

impl Way {
    /// One that does this, by these random numbers.
    #[must_use]
    pub fn new(faults: Faults, random: Random) -> Self {
        Self {
            faults,
            random,
            held: Vec::new(),
            counts: Counts::default(),
        }
    }

    /// Takes a frame that has come, and sends what is to go on now.
    pub fn take(&mut self, frame: &mut [u8], now: Instant, send: &mut impl FnMut(&[u8])) {
        match sort(frame) {
            Sort::Esp => self.counts.esp += 1,
            Sort::Geneve => self.counts.plaintext_geneve += 1,
            Sort::Other => self.counts.other += 1,
        }
        if self.random.happens(self.faults.loss) {
            self.counts.lost += 1;
            return;
        }
        let again = self.random.happens(self.faults.duplication);
        self.counts.duplicated += u64::from(again);
        for _ in 0..1 + u32::from(again) {
            self.take_copy(frame, now, send);
        }
    }

    /// Each copy has its own fate.
    fn take_copy(&mut self, frame: &mut [u8], now: Instant, send: &mut impl FnMut(&[u8])) {
        let damage = (self.random.happens(self.faults.corruption) && frame.len() > ETHERNET)
            .then(|| self.random.below((frame.len() - ETHERNET) * 8));
        flip(frame, damage);
        self.counts.corrupted += u64::from(damage.is_some());
        if self.random.happens(self.faults.reordering) {
            self.held.push(Held {
                frame: frame.to_vec(),
                more: 1 + self.random.below(REACH),
                overtaken: false,
                until: now + PATIENCE,
            });
        } else {
            self.counts.sent += 1;
            send(frame);
            for held in &mut self.held {
                held.more = held.more.saturating_sub(1);
                held.overtaken = true;
            }
            self.release(now, send);
        }
        flip(frame, damage);
    }

    /// Sends what was held back for long enough.
    pub fn release(&mut self, now: Instant, send: &mut impl FnMut(&[u8])) {
        let ready = |held: &mut Held| held.more == 0 || held.until <= now;
        for held in self.held.extract_if(.., ready) {
            self.counts.sent += 1;
            self.counts.reordered += u64::from(held.overtaken);
            send(&held.frame);
        }
    }

    /// When something is to be released.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.held.iter().map(|held| held.until).min()
    }
}

/// Flips a bit behind the Ethernet header.
fn flip(frame: &mut [u8], bit: Option<usize>) {
    if let Some(bit) = bit {
        frame[ETHERNET + bit / 8] ^= 1 << (bit % 8);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Sends 10,000 numbered frames; returns the numbers in the order in which they came out, and those that were damaged.
    fn run(faults: Faults, seed: u64) -> (Vec<u32>, usize, Counts) {
        let mut way = Way::new(faults, Random::new(seed));
        let mut numbers = Vec::new();
        let mut damaged = 0;
        let start = Instant::now();
        let mut send = |frame: &[u8]| {
            // The number is in the Ethernet header, which stays whole.
            numbers.push(u32::from_be_bytes([frame[0], frame[1], frame[2], frame[3]]));
            damaged += usize::from(frame[ETHERNET..].iter().any(|byte| *byte != 0));
        };
        for number in 0..10_000_u32 {
            let mut frame = [0; 100];
            frame[..4].copy_from_slice(&number.to_be_bytes());
            way.take(&mut frame, start, &mut send);
        }
        way.release(start + PATIENCE, &mut send);
        assert_eq!(way.next(), None);
        (numbers, damaged, way.counts)
    }

    #[test]
    fn without_faults_everything_goes_on() {
        let (numbers, damaged, counts) = run(Faults::default(), 1);
        assert!(numbers.into_iter().eq(0..10_000));
        let (other, sent) = (10_000, 10_000);
        let expected = Counts {
            other,
            sent,
            ..Counts::default()
        };
        assert_eq!((damaged, counts), (0, expected));
    }

    #[test]
    fn what_is_counted_has_happened() {
        let faults = Faults {
            loss: 10_000,
            duplication: 20_000,
            reordering: 50_000,
            corruption: 5_000,
        };
        let (numbers, damaged, counts) = run(faults, 2);
        assert_eq!(run(faults, 2).0, numbers, "a seed stands for it");
        assert_ne!(run(faults, 3).0, numbers);
        let mut sorted = numbers.clone();
        sorted.sort_unstable();
        sorted.dedup();
        assert_eq!(10_000 - sorted.len() as u64, counts.lost);
        assert_eq!((numbers.len() - sorted.len()) as u64, counts.duplicated);
        assert_eq!(
            (numbers.len() as u64, damaged as u64),
            (counts.sent, counts.corrupted)
        );
        let early = |pair: &[u32]| pair[1] < pair[0];
        let backwards = numbers.windows(2).filter(|pair| early(pair)).count() as u64;
        assert!(
            backwards > 300 && backwards <= counts.reordered,
            "{backwards} {counts:?}"
        );
        // Held frames do not count as overtaking, so now and then it is a few more.
        let mut highest = 0;
        for number in numbers {
            highest = highest.max(number);
            assert!(
                highest - number < 2 * REACH as u32,
                "{number} after {highest}"
            );
        }
    }
}

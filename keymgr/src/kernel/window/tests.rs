use super::*;
use proptest::prelude::*;

/// The kernel's receiver, as net/xfrm/xfrm_replay.c has it (`xfrm_replay_check_esn`, `xfrm_replay_advance_esn`), in plain
/// numbers.
struct Receiver {
    state: ReplayEsn,
}

impl Receiver {
    fn top(&self) -> u64 {
        join(self.state.seq_hi, self.state.seq)
    }

    fn bit(&mut self, number: u64) -> (&mut u32, u32) {
        let bit = number.wrapping_sub(1) % u64::from(self.state.replay_window);
        let bit = u32::try_from(bit).unwrap();
        (&mut self.state.bmp[(bit / 32) as usize], bit % 32)
    }

    fn accepts(&mut self, number: u64) -> bool {
        let (top, size) = (self.top(), u64::from(self.state.replay_window));
        if number > top {
            return true;
        }
        let (word, bit) = self.bit(number);
        top - number < size && *word >> bit & 1 == 0
    }

    fn receive(&mut self, number: u64) {
        let (top, size) = (self.top(), self.state.replay_window);
        if number > top {
            for skipped in (top + 1..number).take(size as usize) {
                let (word, bit) = self.bit(skipped);
                *word &= !(1 << bit);
            }
            (self.state.seq_hi, self.state.seq) = halves(number);
        }
        let (word, bit) = self.bit(number);
        *word |= 1 << bit;
    }
}

/// Whether Culvert, going on from this window, would take a number.
fn accepts(window: &Window, number: u64) -> bool {
    match window.highest.checked_sub(number) {
        None => true,
        Some(back) => u32::try_from(back).is_ok_and(|back| !has(window, back)),
    }
}

fn around(top: u64) -> impl Iterator<Item = u64> {
    top.saturating_sub(5000).max(1)..top + 10
}

#[test]
fn nothing_is_received_at_first() {
    let fresh = full(0, 1024);
    let mut receiver = Receiver {
        state: to_kernel(&fresh),
    };
    assert_eq!(receiver.state.replay_window, 1024);
    for number in 1..3000 {
        assert!(receiver.accepts(number));
    }
    assert_eq!(from_kernel(&receiver.state), fresh);
}

#[test]
fn sizes_are_those_of_the_kernel() {
    for (size, kernel) in [(1, 32), (33, 64), (64, 64), (100, 128), (4096, 4096)] {
        let state = to_kernel(&full(10_000, size));
        assert_eq!((state.replay_window, state.bmp_len), (kernel, kernel / 32));
        assert_eq!(state.bmp.len(), state.bmp_len as usize);
    }
}

#[test]
fn the_older_state_is_read_too() {
    let state = Replay {
        oseq: 0,
        seq: 100,
        bitmap: 0b101,
    };
    let window = from_legacy(&state, 32);
    assert!(!accepts(&window, 100) && accepts(&window, 99) && !accepts(&window, 98));
    assert!(accepts(&window, 69) && !accepts(&window, 68));
}

proptest! {
    #[test]
    fn both_take_the_same_numbers(
        start in prop_oneof![0_u64..200, (1_u64 << 32) - 3000..(1_u64 << 32) + 3000, 1_u64 << 40..1_u64 << 41],
        size in 1_u32..=4096,
        words in proptest::collection::vec(any::<u64>(), 64),
        steps in proptest::collection::vec((any::<bool>(), 0_u64..500), 0..60),
    ) {
        let ours = Window { highest: start, received: words, size };
        let mut receiver = Receiver { state: to_kernel(&ours) };
        for number in around(start) {
            prop_assert_eq!(receiver.accepts(number), accepts(&ours, number), "{}", number);
        }
        for (ahead, by) in steps {
            let top = receiver.top();
            let number = if ahead { top + by } else { top.saturating_sub(by) };
            if number > 0 && receiver.accepts(number) {
                receiver.receive(number);
            }
        }
        let theirs = from_kernel(&receiver.state);
        for number in around(receiver.top()) {
            prop_assert_eq!(accepts(&theirs, number), receiver.accepts(number), "{}", number);
        }
        // And there again.
        prop_assert_eq!(from_kernel(&to_kernel(&theirs)), theirs);
    }
}

//! What a wire may do to the frames of an SA, in batches: whatever comes late, again, damaged or never, each frame is let in
//! once and as it was, and what is not is counted for the reason that a naive oracle has.

use std::collections::{BTreeMap, BTreeSet};

use culvert_packet::reason::DropReason;
use culvert_proto::sa::Cipher;
use proptest::prelude::*;

use crate::common::*;
use crate::esp_at;

/// One frame that arrives: so many numbers further than the last step, so many back from there; and a byte of it, counted
/// from its end, that is wrong.
type Step = (usize, usize, Option<usize>);

fn step() -> impl Strategy<Value = Step> {
    // In order, a little late, at the window's edge, anywhere.
    let back = prop_oneof![4 => Just(0), 3 => 1_usize..8, 1 => 58_usize..70, 1 => 0_usize..150];
    let damage = prop_oneof![9 => Just(None), 1 => (1_usize..60).prop_map(Some)];
    (0_usize..3, back, damage)
}

fn kind() -> impl Strategy<Value = Kind> {
    let cipher = proptest::sample::select(&Cipher::ALL[..]);
    (cipher, any::<[bool; 3]>()).prop_map(|(cipher, [esn, v6, encapsulated])| Kind {
        cipher,
        esn,
        v6,
        encapsulated,
        window: 64,
    })
}

/// What becomes of a frame, by RFC 4303 §3.4.3 as it is written there.
#[derive(Default)]
struct Oracle {
    highest: usize,
    seen: BTreeSet<usize>,
}

impl Oracle {
    fn judge(&mut self, window: usize, number: usize, damaged: bool) -> Result<(), DropReason> {
        if number + window <= self.highest {
            return Err(DropReason::TooOld);
        }
        if self.seen.contains(&number) {
            return Err(DropReason::Replayed);
        }
        if damaged {
            return Err(DropReason::AuthenticationFailed);
        }
        self.seen.insert(number);
        self.highest = self.highest.max(number);
        Ok(())
    }
}

/// The number at a frame's end.
fn number_of(frame: &[u8]) -> usize {
    usize::from_be_bytes(*frame.last_chunk().unwrap())
}

/// Takes what has come out at the host side.
fn opened(worker: &mut MemoryWorker) -> Vec<Vec<u8>> {
    let (_, host, pool) = worker.parts();
    let frames = host.sent.drain(..);
    frames
        .map(|frame| {
            let bytes = frame.bytes().to_vec();
            pool.give(frame);
            bytes
        })
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn each_frame_comes_once_whatever_the_wire_does(
        kind in kind(),
        batches in proptest::collection::vec(proptest::collection::vec(step(), 1..60), 1..10),
    ) {
        let (mut a, _) = worker(kind, false);
        let (mut b, handle) = worker(kind, true);
        // Numbers count from 1, and so does this.
        let mut frames = vec![(Vec::new(), Vec::new())];
        let mut base = 1;
        let mut oracle = Oracle::default();
        let mut drops: BTreeMap<DropReason, u64> = BTreeMap::new();
        for batch in batches {
            let mut expected = Vec::new();
            for (further, back, damage) in batch {
                base += further;
                let number = base.saturating_sub(back).max(1);
                while frames.len() <= number {
                    let mut clear = geneve(kind, 80, 0);
                    let at = clear.len() - 8;
                    clear[at..].copy_from_slice(&frames.len().to_be_bytes());
                    let sealed = through_outbound(&mut a, &clear).unwrap();
                    frames.push((clear, sealed));
                }
                let mut sealed = frames[number].1.clone();
                if let Some(back) = damage {
                    // Behind the sequence number, so that the oracle knows which it is.
                    let at = (sealed.len() - back).max(esp_at(kind) + 8);
                    sealed[at] ^= 0x10;
                }
                match oracle.judge(kind.window as usize, number, damage.is_some()) {
                    Ok(()) => expected.push(number),
                    Err(reason) => *drops.entry(reason).or_default() += 1,
                }
                let (wire, _, pool) = b.parts();
                let mut frame = pool.take().unwrap();
                frame.write(&sealed).unwrap();
                wire[0].arriving.push_back(frame);
            }
            while !b.parts().0[0].arriving.is_empty() {
                b.turn();
            }
            let opened = opened(&mut b);
            let numbers: Vec<usize> = opened.iter().map(|frame| number_of(frame)).collect();
            prop_assert_eq!(&numbers, &expected);
            for (number, frame) in numbers.into_iter().zip(opened) {
                prop_assert!(frame == frames[number].0, "number {} is another", number);
            }
        }
        for reason in DropReason::ALL {
            let expected = drops.get(reason).copied().unwrap_or_default();
            prop_assert_eq!(handle.counters().dropped(*reason), expected, "{:?}", reason);
        }
        prop_assert_eq!(b.parts().2.free(), 256);
    }
}

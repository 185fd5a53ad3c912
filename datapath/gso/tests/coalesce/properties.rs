//! Generated batches.

use culvert_gso::Coalescer;
use proptest::prelude::*;

use crate::common::batch::{EVERYTHING, VERIFIED, check, flow, groups};
use crate::common::{Dice, Shape, written};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    /// Segments of one superpacket are joined again, but for what the kernel does not join either.
    #[test]
    fn what_was_one_is_one_again(seed: u64) {
        let shape = Shape::random(&mut Dice(seed), true);
        let frames = shape.segments();
        let outer = shape.outer.as_ref().unwrap();
        let options = !shape.ip.options.is_empty() || !outer.ip.options.is_empty();
        let window_reduced = shape.tcp.as_ref().is_some_and(|tcp| tcp.flags & 0x80 != 0);
        let all: Vec<usize> = (0..frames.len()).collect();
        let expected: Vec<Vec<usize>> = if options {
            all.iter().map(|index| vec![*index]).collect()
        } else if window_reduced {
            vec![vec![0], all[1..].to_vec()]
        } else {
            vec![all]
        };
        prop_assert_eq!(&groups(EVERYTHING, &frames), &expected);
        prop_assert_eq!(&groups(VERIFIED, &frames), &expected);
        check(EVERYTHING, &frames);
        check(VERIFIED, &frames);
        if let [_] = expected[..] {
            let mut coalescer = Coalescer::new(EVERYTHING, frames.len());
            coalescer.coalesce(&frames);
            let (header, bytes) = written(&coalescer, &coalescer.groups()[0], &frames);
            let (mut expected, whole) = shape.superpacket();
            expected.gso.as_mut().unwrap().ecn = false;
            prop_assert_eq!(header, expected);
            prop_assert_eq!(bytes, whole);
        }
    }

    /// Batches of many flows, with packets lost, doubled and damaged: each flow keeps its order, and everything that was
    /// joined becomes again what it was.
    #[test]
    fn batches_keep_their_order_and_become_what_they_were(seed: u64, flows in 1_usize..8) {
        let mut dice = Dice(seed);
        let mut queues: Vec<std::collections::VecDeque<Vec<u8>>> = Vec::new();
        for _ in 0..flows {
            let mut shape = Shape::random(&mut dice, true);
            shape.size = dice.within(8..=300);
            shape.payload.truncate(shape.size * dice.within(1..=12) + dice.below(20));
            queues.push(shape.segments().into());
        }
        let mut frames = Vec::new();
        while queues.iter().any(|queue| !queue.is_empty()) {
            let flow = dice.below(queues.len());
            let Some(mut frame) = queues[flow].pop_front() else { continue };
            if dice.one_in(12) {
                continue;
            }
            if dice.one_in(6) {
                let at = dice.below(frame.len().min(250));
                frame[at] ^= 1 << dice.below(8);
            }
            if dice.one_in(20) {
                frame.extend([0; 4]);
            }
            for _ in 0..if dice.one_in(20) { 2 } else { 1 } {
                frames.push(frame.clone());
            }
        }
        check(VERIFIED, &frames);
        for settings in [EVERYTHING, VERIFIED] {
            let groups = groups(settings, &frames);
            let place_of = |frame: usize| groups.iter().position(|group| group.contains(&frame)).unwrap();
            let flows: Vec<Option<Vec<u8>>> = frames.iter().map(|frame| flow(frame)).collect();
            for (later, flow) in flows.iter().enumerate() {
                for (earlier, other) in flows[..later].iter().enumerate() {
                    let (before, behind) = (place_of(earlier), place_of(later));
                    if flow.is_none() || other.is_none() {
                        prop_assert!(before < behind, "{} passed {}", later, earlier);
                    } else if flow == other {
                        prop_assert!(before <= behind, "{} passed {}", later, earlier);
                    } else {
                        prop_assert!(before != behind, "{} and {} are of two flows", earlier, later);
                    }
                }
            }
        }
    }

    /// Anything at all.
    #[test]
    fn rubbish_costs_only_itself(frames in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..200), 0..20)) {
        check(EVERYTHING, &frames);
    }
}

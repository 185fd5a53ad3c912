//! The table against a naive one, which keeps lists of fragments.

use std::collections::BTreeMap;

use culvert_packet::headers::UDP;
use proptest::prelude::*;
use proptest::sample::Index;

use super::*;
use crate::sizes::testing::{CHUNK_LENGTH, Packet, frame, headers, pattern};

/// Datagrams that a table of the model keeps at a time.
const PLACES: usize = 3;

/// Six datagrams of as many keys.
fn datagrams() -> Vec<Packet> {
    let v4 = Packet::v4(pattern(1000));
    let v6 = Packet::v6(pattern(1003));
    vec![
        Packet {
            id: 1,
            protocol: UDP,
            tags: 1,
            ..v4.clone()
        },
        Packet {
            id: 2,
            options: vec![0x94, 4, 0, 0],
            ..v4.clone()
        },
        v4,
        Packet {
            id: 1,
            options: vec![0; 8],
            ..v6.clone()
        },
        Packet {
            source: 3,
            ..v6.clone()
        },
        v6,
    ]
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct NaivePiece {
    offset: usize,
    data: Vec<u8>,
    more: bool,
}

impl NaivePiece {
    fn end(&self) -> usize {
        self.offset + self.data.len()
    }

    fn contradicts(&self, other: &Self) -> bool {
        let one_way = |last: &Self, any: &Self| {
            !last.more && (any.end() > last.end() || any.more == (any.end() == last.end()))
        };
        one_way(self, other) || one_way(other, self)
    }

    fn overlaps(&self, other: &Self) -> bool {
        self.offset < other.end() && other.offset < self.end()
    }
}

#[derive(Clone, Debug)]
struct Entry {
    born: u64,
    pieces: Vec<NaivePiece>,
    discarded: Option<Reason>,
}

impl Entry {
    fn over(&self, now: u64) -> bool {
        now - self.born >= TIMEOUT
    }

    /// What is lost if it ends now.
    fn ends(&self) -> Option<(Reason, u64)> {
        let packets = self.pieces.len() as u64;
        self.discarded
            .is_none()
            .then_some((Reason::Incomplete, packets))
    }
}

/// By number of the datagram.
#[derive(Debug, Default)]
struct Naive(BTreeMap<usize, Entry>);

impl Naive {
    /// The data of a datagram that is whole now, and what was lost.
    fn insert(
        &mut self,
        key: usize,
        piece: NaivePiece,
        now: u64,
    ) -> (Option<Vec<u8>>, Vec<(Reason, u64)>) {
        if piece.data.is_empty() || piece.more && !piece.data.len().is_multiple_of(8) {
            return (None, vec![(Reason::Malformed, 1)]);
        }
        let mut lost = Vec::new();
        if self.0.get(&key).is_some_and(|entry| entry.over(now)) {
            lost.extend(self.0.remove(&key).and_then(|entry| entry.ends()));
        } else if self.0.len() == PLACES && !self.0.contains_key(&key) {
            let oldest = self.0.iter().min_by_key(|(_, entry)| entry.born);
            let oldest = *oldest.unwrap().0;
            lost.extend(self.0.remove(&oldest).and_then(|entry| entry.ends()));
        }
        let entry = self.0.entry(key).or_insert(Entry {
            born: now,
            pieces: Vec::new(),
            discarded: None,
        });
        if let Some(reason) = entry.discarded {
            lost.push((reason, 1));
            return (None, lost);
        }
        let others = &entry.pieces;
        let conflict = if others.iter().any(|other| other.contradicts(&piece)) {
            Some(Reason::Malformed)
        } else if DATA + piece.end() > CHUNK_LENGTH {
            Some(Reason::TooLarge)
        } else if others.contains(&piece) {
            lost.push((Reason::Duplicate, 1));
            return (None, lost);
        } else if others.iter().any(|other| other.overlaps(&piece)) {
            Some(Reason::Overlap)
        } else {
            None
        };
        entry.pieces.push(piece);
        if let Some(reason) = conflict {
            entry.discarded = Some(reason);
            lost.push((reason, entry.pieces.len() as u64));
            return (None, lost);
        }
        entry.pieces.sort_by_key(|piece| piece.offset);
        let data: Vec<u8> = entry
            .pieces
            .iter()
            .flat_map(|piece| piece.data.clone())
            .collect();
        let last = entry.pieces.last().unwrap();
        if last.more || last.end() != data.len() {
            return (None, lost);
        }
        self.0.remove(&key);
        (Some(data), lost)
    }

    fn frames(&self) -> usize {
        self.0
            .values()
            .filter(|entry| entry.discarded.is_none())
            .count()
    }
}

/// What happens to the tables.
#[derive(Clone, Debug)]
enum Step {
    /// A fragment as it would be cut: the datagram's number, and which one.
    Honest(usize, Index),
    /// Any part of any datagram: number, offset in blocks, length, more, and what is added to its first byte.
    Any(usize, u16, usize, bool, u8),
    /// Datagrams whose time is over go.
    Expire,
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let honest = (0_usize..6, any::<Index>()).prop_map(|(key, index)| Step::Honest(key, index));
    let any = (
        0_usize..6,
        prop_oneof![9 => 0_u16..125, 1 => 0_u16..600],
        prop_oneof![3 => (1_usize..40).prop_map(|blocks| blocks * 8), 1 => 0_usize..300],
        any::<bool>(),
        prop_oneof![3 => Just(0_u8), 1 => any::<u8>()],
    )
        .prop_map(|(key, offset, length, more, change)| {
            Step::Any(key, offset, length, more, change)
        });
    let step = prop_oneof![30 => honest, 2 => any, 1 => Just(Step::Expire)];
    // Mostly at once, sometimes late; never at the same time, so that one is the oldest.
    let pause = prop_oneof![20 => 1_u64..20, 1 => 1_u64..1500];
    proptest::collection::vec((pause, step), 1..200)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn both_tables_say_the_same(
        steps in steps(), cuts in proptest::collection::btree_set(1_usize..125, 0..4),
    ) {
        let datagrams = datagrams();
        let cuts: Vec<usize> = cuts.into_iter().map(|block| block * 8).collect();
        let mut table = Reassembly::new(PLACES, CHUNK_LENGTH);
        let mut naive = Naive::default();
        let (mut now, mut came, mut went) = (0, 0, 0);
        for (pause, step) in steps {
            now += pause;
            let (key, piece) = match step {
                Step::Honest(key, index) => {
                    let pieces = datagrams[key].pieces(&cuts);
                    (key, pieces[index.index(pieces.len())].clone())
                }
                Step::Any(key, offset, length, more, change) => {
                    let mut long = Packet { data: pattern(6000), ..datagrams[key].clone() };
                    long.data[usize::from(offset) * 8] ^= change;
                    (key, long.piece(usize::from(offset) * 8, length, more))
                }
                Step::Expire => {
                    let mut lost = Vec::new();
                    while let Some((_, loss)) = table.expire(now) {
                        went += 1;
                        lost.push((loss.reason, loss.packets));
                    }
                    let gone = naive.0.extract_if(.., |_, entry| entry.over(now));
                    let mut wanted: Vec<_> = gone.filter_map(|(_, entry)| entry.ends()).collect();
                    lost.sort_unstable();
                    wanted.sort_unstable();
                    prop_assert_eq!(lost, wanted);
                    continue;
                }
            };
            // Both versions have the offset in a word of their own.
            let (offset, more) = match piece.v6 {
                false => (usize::from(piece.fragment & 0x1fff) * 8, piece.fragment & 0x2000 != 0),
                true => (usize::from(piece.fragment & !7), piece.fragment & 1 != 0),
            };
            if offset == 0 && !more {
                // A whole datagram: has nothing to do with the table.
                continue;
            }
            let bytes = piece.bytes();
            came += 1;
            let outcome = table.insert(frame(&bytes), &headers(&bytes), now);
            let data = piece.data.clone();
            let (whole, lost) = naive.insert(key, NaivePiece { offset, data, more }, now);

            let wanted = whole.map(|data| Packet { data, ..datagrams[key].clone() }.bytes());
            let finished = outcome.finished.as_ref().map(|frame| frame.bytes().to_vec());
            prop_assert_eq!(finished, wanted);
            let losses = outcome.losses.iter().flatten().map(|loss| (loss.reason, loss.packets));
            prop_assert_eq!(losses.collect::<Vec<_>>(), lost);
            went += outcome.free.iter().flatten().count() + outcome.finished.iter().count();
            prop_assert_eq!(table.frames(), naive.frames());
            prop_assert_eq!(came, went + table.frames());
        }
    }

    /// What honest senders cut arrives whole, shuffled, twice in part, and between each other.
    #[test]
    fn all_datagrams_arrive(
        sizes in proptest::collection::vec(8_usize..3600, 6), cut in 1_usize..60,
        seed in any::<u64>(),
    ) {
        let mut table = Reassembly::new(6, CHUNK_LENGTH);
        let datagrams: Vec<Packet> = datagrams()
            .into_iter()
            .zip(sizes)
            .map(|(packet, size)| Packet { data: pattern(size), ..packet })
            .collect();
        let mut pieces = Vec::new();
        for (key, packet) in datagrams.iter().enumerate() {
            let cuts: Vec<usize> = (0..packet.data.len()).step_by(cut * 8).skip(1).collect();
            pieces.extend(packet.pieces(&cuts).into_iter().map(|piece| (key, piece)));
        }
        let mut random = seed;
        let mut arrived = 0;
        while !pieces.is_empty() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let at = (random >> 33) as usize % pieces.len();
            let (key, piece) = pieces.swap_remove(at);
            let bytes = piece.bytes();
            let outcome = table.insert(frame(&bytes), &headers(&bytes), 0);
            prop_assert_eq!(outcome.losses, [None, None]);
            if let Some(whole) = outcome.finished {
                prop_assert_eq!(whole.bytes(), &datagrams[key].bytes()[..]);
                arrived += 1;
            } else if random & (1 << 40) != 0 {
                let again = table.insert(frame(&bytes), &headers(&bytes), 0);
                let lost = again.losses.iter().flatten().map(|loss| (loss.reason, loss.packets));
                prop_assert_eq!(lost.collect::<Vec<_>>(), [(Reason::Duplicate, 1)]);
            }
        }
        prop_assert_eq!((arrived, table.frames()), (6, 0));
    }
}

//! What an SA goes through: lifetimes, statistics, peers that move; and what is put behind payloads.

use super::common::*;
use super::policies::paired;
use culvert_packet::reason::DropReason;
use culvert_proto::message::Update;
use culvert_proto::sa::{Action, Spi};
use culvert_state::Words;
use culvert_state::handover::{
    Window, fence_inbound, fence_outbound, release_inbound, release_outbound,
};
use culvert_state::layout::{both, inbound, outbound};
use std::cell::RefCell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A worker, and the state of its SAs, outbound and inbound.
fn watched(update: Update) -> (MemoryWorker, culvert_datapath::worker::Handle, [Words; 2]) {
    let made = RefCell::new(Vec::new());
    let database = culvert_datapath::tables::Database::default()
        .updated(update, |state| {
            let words = Words::on_heap(state.words as usize);
            made.borrow_mut().push(words.clone());
            Ok(words)
        })
        .unwrap();
    let (worker, handle) = worker_without_tables();
    handle.publish(Arc::new(database.snapshot()));
    let mut made = made.into_inner();
    made.sort_by_key(|words| words.len());
    let [out, into] = made.try_into().unwrap();
    (worker, handle, [out, into])
}

fn read(words: &Words, at: usize) -> u64 {
    words[at].load(Ordering::Relaxed)
}

#[test]
fn a_hard_lifetime_stops_the_sa_at_the_packet() {
    let kind = Kind::default();
    let clear = geneve(kind, 92, 0);
    for (packets, bytes) in [(Some(3), None), (None, Some(201)), (None, Some(300))] {
        let mut limited = [update(kind, false), update(kind, true)];
        for update in &mut limited {
            for sa in &mut update.add_sas {
                sa.lifetime.hard.packets = packets;
                sa.lifetime.hard.bytes = bytes;
            }
        }
        let [at_a, at_b] = limited;
        let (mut a, sealing, [out, _]) = watched(at_a);
        let (mut unlimited, _) = worker(kind, false);
        let (mut b, opening, _) = watched(at_b);
        for number in 1..=5 {
            assert_eq!(through_outbound(&mut a, &clear).is_some(), number <= 3);
            let sealed = through_outbound(&mut unlimited, &clear).unwrap();
            assert_eq!(through_inbound(&mut b, &sealed).is_some(), number <= 3);
        }
        for handle in [sealing, opening] {
            assert_eq!(handle.counters().dropped(DropReason::SaExpired), 2);
        }
        assert_eq!(read(&out, both::PACKETS), 3);
        assert_eq!(read(&out, both::BYTES), 300);
        assert!(read(&out, both::FIRST_USE) > 0);
    }
}

#[test]
fn an_sa_whose_time_is_over_stops() {
    let kind = Kind::default();
    let (mut a, handle, [out, _]) = watched(update(kind, false));
    assert!(through_outbound(&mut a, &geneve(kind, 10, 0)).is_some());
    out[both::STATE].store(both::EXPIRING, Ordering::Relaxed);
    assert!(through_outbound(&mut a, &geneve(kind, 10, 0)).is_some());
    out[both::STATE].store(both::EXPIRED, Ordering::Relaxed);
    assert!(through_outbound(&mut a, &geneve(kind, 10, 0)).is_none());
    assert_eq!(handle.counters().dropped(DropReason::SaExpired), 1);
    assert_eq!(read(&out, outbound::LEASED), 2, "no number was used up");
}

#[test]
fn without_esn_the_last_number_is_the_last_packet() {
    // RFC 4303 [2.2-new-sa-in-time, 3.3.3-no-cycle]
    let kind = Kind {
        esn: false,
        ..Kind::default()
    };
    let (mut a, handle, [out, _]) = watched(update(kind, false));
    out[outbound::LEASED].store(u64::from(u32::MAX) - 1, Ordering::Relaxed);
    let sealed = through_outbound(&mut a, &geneve(kind, 10, 0)).unwrap();
    assert_eq!(sealed[38..42], [0xff; 4]);
    for _ in 0..3 {
        assert!(through_outbound(&mut a, &geneve(kind, 10, 0)).is_none());
    }
    assert_eq!(handle.counters().dropped(DropReason::SequenceExhausted), 3);
}

#[test]
fn an_sa_that_is_handed_over_drops_and_goes_on_behind_what_was_used() {
    for esn in [false, true] {
        let kind = Kind {
            esn,
            ..Kind::default()
        };
        let clear = geneve(kind, 20, 0);
        let number = |sealed: &[u8]| u32::from_be_bytes(sealed[38..42].try_into().unwrap());
        let (mut a, sealing, [out, _]) = watched(update(kind, false));
        let (mut b, opening, [_, into]) = watched(update(kind, true));
        let seal = |a: &mut MemoryWorker| through_outbound(a, &clear).unwrap();
        let mut sent: Vec<_> = (0..5).map(|_| seal(&mut a)).collect();
        assert!(through_inbound(&mut b, &sent[0]).is_some());
        assert!(through_inbound(&mut b, &sent[4]).is_some());

        assert_eq!(fence_outbound(&out), 5);
        let window = fence_inbound(&into, 64);
        for _ in 0..3 {
            assert!(through_outbound(&mut a, &clear).is_none());
            // Old, new, and received before: the kernel will say.
            for packet in [0, 2, 4] {
                assert!(through_inbound(&mut b, &sent[packet]).is_none());
            }
        }
        let reasons = [
            DropReason::HandedOver,
            DropReason::SequenceExhausted,
            DropReason::Replayed,
            DropReason::TooOld,
        ];
        let dropped = |handle: &culvert_datapath::worker::Handle| {
            reasons.map(|reason| handle.counters().dropped(reason))
        };
        assert_eq!(dropped(&sealing), [3, 0, 0, 0]);
        assert_eq!(dropped(&opening), [9, 0, 0, 0]);

        // The kernels have sent and received 6 to 9, and 2, which was late.
        release_outbound(&out, 9);
        let since = Window::new(9, 64, |back| {
            back < 4 || back == 7 || window.was_received(back - 4)
        });
        release_inbound(&into, 64, &since);
        sent.extend((0..3).map(|_| seal(&mut a)));
        assert_eq!(
            sent[5..]
                .iter()
                .map(|sealed| number(sealed))
                .collect::<Vec<_>>(),
            [10, 11, 12]
        );
        let accepted: Vec<_> = sent
            .iter()
            .chain(&sent)
            .filter(|sealed| through_inbound(&mut b, sealed).is_some())
            .map(|sealed| number(sealed))
            .collect();
        assert_eq!(accepted, [3, 4, 10, 11, 12]);
        assert_eq!(dropped(&opening), [9, 0, 11, 0]);
    }
}

#[test]
fn each_sa_counts_what_went_wrong_under_it() {
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let (mut b, _, [_, into]) = watched(update(kind, true));
    let sealed: Vec<_> = (0..100)
        .map(|_| through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap())
        .collect();
    let mut forged = sealed[50].clone();
    *forged.last_mut().unwrap() ^= 1;
    for frame in [&sealed[99], &sealed[99], &sealed[0], &forged, &sealed[98]] {
        let _ = through_inbound(&mut b, frame);
    }
    let counts = [
        inbound::REPLAYED,
        inbound::LATE,
        inbound::FAILED,
        inbound::AUTHENTICATED,
        inbound::HIGHEST,
    ];
    assert_eq!(counts.map(|at| read(&into, at)), [1, 1, 1, 2, 100]);
}

#[test]
fn a_peer_behind_nat_is_followed_when_it_authenticates() {
    for v6 in [false, true] {
        let kind = Kind {
            encapsulated: true,
            v6,
            ..Kind::default()
        };
        let udp = if v6 { 54 } else { 34 };
        let (mut a, _) = worker(kind, false);
        let (mut b, _, [out, into]) = watched(update(kind, true));
        let sealed: Vec<_> = (0..4)
            .map(|_| through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap())
            .collect();
        // The way back, for which any Geneve from b will do.
        let answer = |b: &mut MemoryWorker| {
            let mut back = geneve(kind, 20, 0);
            let (from, length) = if v6 { (22, 16) } else { (26, 4) };
            let source = back[from..from + length].to_vec();
            back.copy_within(from + length..from + 2 * length, from);
            back[from + length..from + 2 * length].copy_from_slice(&source);
            let sealed = through_outbound(b, &back).unwrap();
            u16::from_be_bytes([sealed[udp + 2], sealed[udp + 3]])
        };
        let from = |frame: &[u8], port: u16| {
            let mut frame = frame.to_vec();
            frame[udp..udp + 2].copy_from_slice(&port.to_be_bytes());
            frame
        };
        assert!(through_inbound(&mut b, &sealed[0]).is_some());
        assert_eq!(answer(&mut b), 4500);
        // A forgery moves nobody.
        let mut forged = from(&sealed[2], 666);
        *forged.last_mut().unwrap() ^= 1;
        assert!(through_inbound(&mut b, &forged).is_none());
        assert_eq!((answer(&mut b), read(&into, inbound::PORT)), (4500, 0));
        assert!(through_inbound(&mut b, &from(&sealed[2], 40_000)).is_some());
        assert_eq!(
            (answer(&mut b), read(&into, inbound::PORT)),
            (40_000, 40_000)
        );
        // What was held back on the way does not move it back.
        assert!(through_inbound(&mut b, &from(&sealed[1], 4500)).is_some());
        assert_eq!(answer(&mut b), 40_000);
        assert!(through_inbound(&mut b, &from(&sealed[3], 4500)).is_some());
        assert_eq!(answer(&mut b), 4500);
        assert_eq!(read(&out, outbound::PORT), 4500);
    }
}

#[test]
fn a_new_sa_goes_where_the_peer_is_and_so_do_those_of_other_policies() {
    // OVS's pairs: what comes in under one policy, goes out under the other.
    let kind = Kind {
        encapsulated: true,
        ..Kind::default()
    };
    let with_outbound = |spi: u32| {
        let mut update = update(kind, true);
        let spi = Spi::new(spi).unwrap();
        update.add_sas[0].id.spi = spi;
        if let Action::Protect {
            outbound: Some(outbound),
            ..
        } = &mut update.add_policies[0].action
        {
            outbound.spi = spi;
        }
        paired(update)
    };
    let (mut a, _) = worker(kind, false);
    let (mut b, handle, [_, into]) = watched(with_outbound(0x2001));
    let receive = |b: &mut MemoryWorker, a: &mut MemoryWorker| {
        let mut sealed = through_outbound(a, &geneve(kind, 20, 0)).unwrap();
        sealed[34..36].copy_from_slice(&40_000_u16.to_be_bytes());
        assert!(through_inbound(b, &sealed).is_some());
    };
    let sends_to = |b: &mut MemoryWorker| {
        let mut back = geneve(kind, 20, 0);
        back.swap(29, 33);
        let sealed = through_outbound(b, &back).unwrap();
        u16::from_be_bytes([sealed[36], sealed[37]])
    };
    receive(&mut b, &mut a);
    assert_eq!(sends_to(&mut b), 40_000);
    // A rekey: the inbound SA, which knows where the peer is, stays as it is.
    let again = culvert_datapath::tables::Database::default()
        .updated(with_outbound(0x2002), |state| {
            Ok(if state.words as usize == into.len() {
                into.clone()
            } else {
                Words::on_heap(state.words as usize)
            })
        })
        .unwrap();
    handle.publish(Arc::new(again.snapshot()));
    receive(&mut b, &mut a);
    assert_eq!(sends_to(&mut b), 40_000);
}

#[test]
fn tfc_padding_hides_the_length_and_is_cut_off() {
    // RFC 4303 [2.7-tfc, 2.7-tfc-length, 3.4.4.2-tfc]
    for kind in Kind::all() {
        let mut padded = update(kind, false);
        padded.add_sas[0].tfc = 1000;
        let (mut a, _) = worker_with(padded);
        let (mut b, _) = worker(kind, true);
        let mut lengths = Vec::new();
        for payload in [0, 1, 2, 3, 500, 991, 992] {
            let clear = geneve(kind, payload, 0);
            let sealed = through_outbound(&mut a, &clear).unwrap();
            lengths.push(sealed.len());
            assert_eq!(through_inbound(&mut b, &sealed), Some(clear), "{kind:?}");
        }
        assert!(
            lengths.iter().all(|length| *length == lengths[0]),
            "{kind:?} {lengths:?}"
        );
        let long = geneve(kind, 1200, 0);
        let sealed = through_outbound(&mut a, &long).unwrap();
        assert!(sealed.len() > lengths[0]);
        assert_eq!(through_inbound(&mut b, &sealed), Some(long));
    }
}

#[test]
fn tfc_padding_keeps_to_the_mtu() {
    // RFC 4303 §2.7 [2.7-tfc]
    let kind = Kind::default();
    let mut padded = update(kind, false);
    padded.add_sas[0].tfc = 9000;
    let (mut a, _) = worker_with(padded);
    let sealed = through_outbound(&mut a, &geneve(kind, 10, 0)).unwrap();
    assert!(sealed.len() - 14 > MTU - 4 && sealed.len() - 14 <= MTU);
}

//! Packets that the wire does not take in one piece, and headers that are not plain.

use super::common::*;
use super::policies::with_first;
use culvert_packet::headers;
use culvert_packet::reason::DropReason;
use culvert_proto::sa::Action;

/// `frame` without DF, checksum mended.
fn fragmentable(mut frame: Vec<u8>) -> Vec<u8> {
    frame[20] &= !0x40;
    frame[24..26].fill(0);
    let sum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

/// A fragment of `frame`: those bytes behind the IP header, with that word of flags and offset.
fn piece(frame: &[u8], bytes: std::ops::Range<usize>, flags: [u8; 2]) -> Vec<u8> {
    let mut piece = frame[..34].to_vec();
    piece.extend(&frame[34..][bytes]);
    let length = u16::try_from(piece.len() - 14).unwrap();
    piece[16..18].copy_from_slice(&length.to_be_bytes());
    piece[20..22].copy_from_slice(&flags);
    fragmentable(piece)
}

#[test]
fn the_sender_is_told_the_mtu_that_is_left() {
    // RFC 4303 §3.3.4 [3.3.4-pmtu]
    for kind in Kind::all() {
        let (mut a, handle) = worker(kind, false);
        let mut told = None;
        for payload in (1380..1460).rev() {
            let clear = geneve(kind, payload, 0);
            let out = turn(&mut a, true, &clear);
            let length = clear.len() - 14;
            if let [sealed] = &out.wire[..] {
                assert_eq!(
                    told,
                    Some(length),
                    "{kind:?}: the MTU told is the one that fits"
                );
                assert!(sealed.len() - 14 <= MTU && sealed.len() - 14 > MTU - 4);
                break;
            }
            let [answer] = &out.host[..] else {
                panic!("{kind:?} {payload}: {out:?}")
            };
            // ICMP to the sender, from the peer.
            let ip = &answer[14..];
            let (mtu, from) = if kind.v6 {
                assert_eq!((ip[6], ip[40], ip[41]), (58, 2, 0));
                (u32::from_be_bytes(ip[44..48].try_into().unwrap()), 8..24)
            } else {
                assert_eq!((ip[9], ip[20], ip[21]), (1, 3, 4));
                (u32::from(u16::from_be_bytes([ip[26], ip[27]])), 12..16)
            };
            assert_eq!(answer[..6], clear[6..12]);
            assert_eq!(
                ip[from.clone()],
                clear[14 + from.end..14 + from.end + from.len()]
            );
            told = Some(mtu as usize);
        }
        assert!(handle.counters().dropped(DropReason::TooLarge) > 0);
    }
}

#[test]
fn what_may_be_fragmented_is_sealed_first_and_opened_whole() {
    // RFC 4303 [3.3.4-fragment-after, 3.3.4-reassembled-before, 3.4.1-reassembled-is-whole]
    for kind in Kind::all().filter(|kind| !kind.v6) {
        let (mut a, _) = worker(kind, false);
        let (mut b, at_b) = worker(kind, true);
        for payload in [1472 - 20, 1472, 2000, 3000] {
            let mut clear = geneve(kind, payload, 0);
            // What is left of one datagram is not to meet the next.
            clear[18..20].copy_from_slice(&u16::try_from(payload).unwrap().to_be_bytes());
            let clear = fragmentable(clear);
            let fragments = turn(&mut a, true, &clear).wire;
            assert_eq!(
                fragments.len(),
                (payload + 60).div_ceil(1480),
                "{kind:?} {payload}"
            );
            for fragment in &fragments {
                assert!(fragment.len() - 14 <= MTU);
                assert_eq!(checksum(&fragment[14..34]), 0);
                assert_eq!(fragment[18..20], clear[18..20], "identification");
                assert_eq!(fragment[15], clear[15], "DSCP and ECN");
            }
            // In any order; one that comes again is no harm.
            let mut came = Vec::new();
            for fragment in fragments.iter().rev().chain(fragments.last()) {
                came.extend(turn(&mut b, false, fragment).host);
                if came.is_empty() {
                    came.extend(turn(&mut b, false, fragment).host);
                }
            }
            assert!(came == [clear], "{kind:?} {payload}: {} came", came.len());
        }
        assert!(at_b.counters().dropped(DropReason::FragmentDuplicate) > 0);
        assert_eq!(at_b.counters().dropped(DropReason::FragmentOverlap), 0);
    }
}

#[test]
fn fragments_of_geneve_are_sealed_as_one() {
    // RFC 4303 §3.3.4 [3.3.4-whole-datagrams]: also of what the host's stack has cut already.
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let (mut b, _) = worker(kind, true);
    let clear = fragmentable(geneve(kind, 2000, 0));
    assert_eq!(
        turn(&mut a, true, &piece(&clear, 0..1480, [0x20, 0])),
        Out::default()
    );
    let sealed = turn(&mut a, true, &piece(&clear, 1480..2008, [0, 185])).wire;
    assert_eq!(sealed.len(), 2);
    assert!(turn(&mut b, false, &sealed[0]).host.is_empty());
    assert_eq!(turn(&mut b, false, &sealed[1]).host, [clear]);
}

#[test]
fn what_the_next_port_does_not_take_is_cut_or_answered_or_counted() {
    let kind = Kind::default();
    let bypassed = with_first(kind, false, Action::Bypass, 77, 77);
    // In clear, and put together here.
    let (mut a, _) = worker_with(bypassed);
    let long = geneve(kind, 2000, 0);
    let out = turn(&mut a, true, &fragmentable(long.clone()));
    assert_eq!((out.wire.len(), out.host.len()), (2, 0));
    assert!(out.wire.iter().all(|frame| frame.len() - 14 <= MTU));
    let out = turn(&mut a, true, &long);
    assert_eq!((out.wire.len(), out.host.len()), (0, 1), "told the MTU");

    // Opened, and longer than the host port takes.
    let (mut sender, _) = wide_worker(update(kind, false));
    let (mut b, at_b) = worker(kind, true);
    let too_long = geneve(kind, HOST_MTU - 20 - 8 + 4, 0);
    let sealed = turn(&mut sender, true, &too_long).wire.remove(0);
    assert_eq!(turn(&mut b, false, &sealed), Out::default());
    assert_eq!(at_b.counters().dropped(DropReason::TooLarge), 1);
    let mut cut = fragmentable(too_long);
    cut[18] = 0x77;
    let cut = fragmentable(cut);
    let sealed = turn(&mut sender, true, &cut).wire.remove(0);
    assert_eq!(turn(&mut b, false, &sealed).host.len(), 2);
}

#[test]
fn what_is_answered_uses_up_no_numbers() {
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let mut numbers = Vec::new();
    for payload in [10, 1480, 1480, 10] {
        let out = turn(&mut a, true, &geneve(kind, payload, 0));
        numbers.extend(out.wire.iter().map(|sealed| sealed[41]));
    }
    assert_eq!(numbers, [1, 2]);
}

#[test]
fn what_arrives_does_not_end_up_in_what_leaves() {
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let clear = fragmentable(geneve(kind, 2000, 0));
    // Somebody on the wire makes up the end of what this host is about to send.
    assert_eq!(
        turn(&mut a, false, &piece(&clear, 1480..2008, [0, 185])),
        Out::default()
    );
    assert_eq!(
        turn(&mut a, true, &piece(&clear, 0..1480, [0x20, 0])),
        Out::default()
    );
}

#[test]
fn overlapping_fragments_of_esp_are_dropped_and_counted() {
    // RFC 5722
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let (mut b, at_b) = worker(kind, true);
    let clear = fragmentable(geneve(kind, 2000, 0));
    let [first, second] = turn(&mut a, true, &clear).wire.try_into().unwrap();
    let mut early = second.clone();
    early[21] -= 1;
    early[24..26].fill(0);
    let sum = checksum(&early[14..34]);
    early[24..26].copy_from_slice(&sum.to_be_bytes());
    for frame in [&first, &early, &second] {
        assert!(turn(&mut b, false, frame).host.is_empty());
    }
    assert_eq!(at_b.counters().dropped(DropReason::FragmentOverlap), 3);
}

#[test]
fn over_ipv6_esp_covers_options_for_the_receiver() {
    // RFC 4303 §3.1.1 [3.1.1-after-extensions, 3.1.1-destination-options]
    // Hop-by-hop and routing before ESP, destination options behind it.
    for encapsulated in [false, true] {
        let kind = Kind {
            v6: true,
            encapsulated,
            ..Kind::default()
        };
        let (mut a, _) = worker(kind, false);
        let (mut b, _) = worker(kind, true);
        let plain = geneve(kind, 100, 0);
        let mut clear = plain[..54].to_vec();
        // Hop-by-hop, routing with no segments left, destination options: each with padding only.
        clear.extend([43, 0, 1, 4, 0, 0, 0, 0]);
        clear.extend([60, 0, 4, 0, 0, 0, 0, 0]);
        clear.extend([17, 0, 1, 4, 0, 0, 0, 0]);
        clear.extend(&plain[54..]);
        clear[20] = 0;
        let length = u16::try_from(clear.len() - 54).unwrap();
        clear[18..20].copy_from_slice(&length.to_be_bytes());
        let sealed = through_outbound(&mut a, &clear).unwrap();
        let walked = headers::walk(&sealed[..]).unwrap();
        assert_eq!(walked.transport, 54 + 16);
        assert_eq!(walked.protocol, if encapsulated { 17 } else { 50 });
        assert_eq!(sealed[..18], clear[..18], "flow label and traffic class");
        assert_eq!(
            sealed[20..62],
            clear[20..62],
            "hop limit, addresses, hop-by-hop"
        );
        assert_eq!(through_inbound(&mut b, &sealed), Some(clear));
    }
}

#[test]
fn long_packets_are_sealed_and_opened_as_any_other() {
    for kind in Kind::all() {
        let (mut a, _) = jumbo_worker(update(kind, false));
        let (mut b, _) = jumbo_worker(update(kind, true));
        for payload in [100, 3500, 3700, 3800, 8800] {
            let clear = geneve(kind, payload, 0);
            let out = turn(&mut a, true, &clear);
            let [sealed] = &out.wire[..] else {
                panic!("{kind:?} {payload}: {out:?}")
            };
            let came = turn(&mut b, false, sealed).host;
            assert!(came == [clear], "{kind:?} {payload}: {} came", came.len());
        }
        for worker in [&mut a, &mut b] {
            let pool = worker.parts().2;
            assert_eq!((pool.free(), pool.free_long()), (256, 64), "{kind:?}");
        }
    }
}

#[test]
fn long_datagrams_come_together_from_short_and_long_fragments() {
    for kind in Kind::all().filter(|kind| !kind.v6) {
        let (mut a, _) = jumbo_worker(update(kind, false));
        let (mut b, at_b) = jumbo_worker(update(kind, true));
        // Sealed too long for the wire: it goes in two, of which the first is long.
        let clear = fragmentable(geneve(kind, 8960, 0));
        let fragments = turn(&mut a, true, &clear).wire;
        assert_eq!(fragments.len(), 2, "{kind:?}");
        let came: Vec<_> = fragments
            .iter()
            .rev()
            .flat_map(|fragment| turn(&mut b, false, fragment).host)
            .collect();
        assert!(came == [clear], "{kind:?}: {} came", came.len());
        // A router between has cut it into what fits one chunk each.
        let mut clear = fragmentable(geneve(kind, 8000, 0));
        clear[18..20].copy_from_slice(&[1, 2]);
        let clear = fragmentable(clear);
        let [sealed] = &turn(&mut a, true, &clear).wire[..] else {
            panic!("{kind:?}")
        };
        let end = sealed.len() - 34;
        let mut came = Vec::new();
        for at in (0..end).step_by(1480) {
            let last = at + 1480 >= end;
            let [high, low] = u16::try_from(at / 8).unwrap().to_be_bytes();
            let flags = [if last { high } else { high | 0x20 }, low];
            let fragment = piece(sealed, at..end.min(at + 1480), flags);
            came.extend(turn(&mut b, false, &fragment).host);
        }
        assert!(came == [clear], "{kind:?}: {} came", came.len());
        assert_eq!(at_b.counters().dropped(DropReason::FragmentTooLarge), 0);
        let pool = b.parts().2;
        assert_eq!((pool.free(), pool.free_long()), (256, 64), "{kind:?}");
    }
}

#[test]
fn tfc_padding_keeps_to_the_frame() {
    let kind = Kind::default();
    let mut padded = update(kind, false);
    padded.add_sas[0].tfc = 8000;
    let (mut a, _) = jumbo_worker(padded);
    let (mut b, _) = jumbo_worker(update(kind, true));
    for payload in [10, 1400, 3500, 5000] {
        let clear = geneve(kind, payload, 0);
        let sealed = turn(&mut a, true, &clear).wire.pop().unwrap();
        assert!(sealed.len() > 3700, "{payload}: {}", sealed.len());
        assert_eq!(turn(&mut b, false, &sealed).host, [clear], "{payload}");
    }
}

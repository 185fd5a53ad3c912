use culvert_esp::buffer::HeapFrame;
use culvert_packet::headers::UDP;

use super::*;
use crate::sizes::testing::{
    CHUNK_LENGTH, Packet, frame, frame_in, headers, naive_checksum, pattern,
};

fn table() -> Reassembly<HeapFrame> {
    Reassembly::new(4, CHUNK_LENGTH)
}

fn insert_bytes(table: &mut Reassembly<HeapFrame>, bytes: &[u8], now: u64) -> Outcome<HeapFrame> {
    table.insert(frame(bytes), &headers(bytes), now)
}

fn insert(table: &mut Reassembly<HeapFrame>, piece: &Packet, now: u64) -> Outcome<HeapFrame> {
    insert_bytes(table, &piece.bytes(), now)
}

/// That a fragment was taken, nothing more.
fn assert_taken(outcome: &Outcome<HeapFrame>) {
    assert!(outcome.finished.is_none());
    assert_eq!(outcome.losses, [None, None]);
}

fn loss(reason: Reason, packets: u64) -> [Option<Loss>; 2] {
    [Some(Loss { reason, packets }), None]
}

fn free(outcome: &Outcome<HeapFrame>) -> usize {
    outcome.free.iter().flatten().count()
}

/// The datagrams that most tests use: both versions, with VLAN tags and options.
fn samples() -> [Packet; 4] {
    [
        Packet::v4(pattern(100)),
        Packet {
            tags: 2,
            options: vec![0x94, 4, 0, 0],
            class: 0xb8,
            ..Packet::v4(pattern(3001))
        },
        Packet::v6(pattern(100)),
        Packet {
            tags: 1,
            options: vec![0; 16],
            class: 0xb8,
            protocol: UDP,
            ..Packet::v6(pattern(3001))
        },
    ]
}

#[test]
fn in_any_order() {
    // RFC 4303 [3.3.4-reassembled-before, 3.4.1-reassembled-is-whole]
    for packet in samples() {
        let pieces = packet.pieces(&[16, 40]);
        for order in [
            [0, 1, 2],
            [0, 2, 1],
            [1, 0, 2],
            [1, 2, 0],
            [2, 0, 1],
            [2, 1, 0],
        ] {
            let mut table = table();
            assert_taken(&insert(&mut table, &pieces[order[0]], 0));
            assert_taken(&insert(&mut table, &pieces[order[1]], 1));
            assert_eq!(table.frames(), 1);
            let outcome = insert(&mut table, &pieces[order[2]], 2);
            assert_eq!(free(&outcome), 1);
            assert_eq!(outcome.losses, [None, None]);
            assert_eq!(outcome.finished.unwrap().bytes(), packet.bytes());
            assert_eq!(table.frames(), 0);
        }
    }
}

#[test]
fn a_frame_in_any_place_of_its_chunk() {
    for packet in samples() {
        for (first, second) in [(0, 1), (1, 0)] {
            let pieces = packet.pieces(&[64]);
            for headroom in [0, 1, 63, 300, 400, 500, 900] {
                let mut table = table();
                let bytes = pieces[first].bytes();
                let odd = HeapFrame::new(headroom, &bytes, CHUNK_LENGTH - headroom - bytes.len());
                assert_taken(&table.insert(odd, &headers(&bytes), 0));
                let whole = insert(&mut table, &pieces[second], 0).finished.unwrap();
                assert_eq!(whole.bytes(), packet.bytes());
            }
        }
    }
}

#[test]
fn a_whole_packet_passes() {
    for packet in samples() {
        let outcome = insert(&mut table(), &packet, 0);
        assert_eq!(outcome.finished, Some(frame(&packet.bytes())));
    }
    // RFC 6946: an atomic fragment is a whole packet.
    let atomic = Packet {
        fragment: 0x0006,
        ..Packet::v6(pattern(9))
    };
    assert!(insert(&mut table(), &atomic, 0).finished.is_some());
}

#[test]
fn ethernet_padding_is_no_data() {
    let packet = Packet::v4(pattern(20));
    let pieces = packet.pieces(&[16]);
    let mut table = table();
    let mut bytes = pieces[1].bytes();
    let short = headers(&bytes);
    bytes.resize(60, 0xaa);
    assert_taken(&table.insert(frame(&bytes), &short, 0));
    let whole = insert(&mut table, &pieces[0], 0).finished.unwrap();
    assert_eq!(whole.bytes(), packet.bytes());
}

#[test]
fn rfc_5722_an_overlap_discards_what_came_and_what_comes() {
    for packet in samples() {
        let pieces = packet.pieces(&[16, 40]);
        let mut table = table();
        assert_taken(&insert(&mut table, &pieces[0], 0));
        assert_taken(&insert(&mut table, &pieces[1], 0));
        let overlap = packet.piece(32, 16, true);
        let outcome = insert(&mut table, &overlap, 10);
        assert_eq!(outcome.losses, loss(Reason::Overlap, 3));
        assert_eq!((free(&outcome), table.frames()), (2, 0));
        let outcome = insert(&mut table, &pieces[2], TIMEOUT - 1);
        assert_eq!(outcome.losses, loss(Reason::Overlap, 1));
        assert_eq!((free(&outcome), table.frames()), (1, 0));
        // When its time is over, the key may be another datagram's.
        assert_taken(&insert(&mut table, &pieces[2], TIMEOUT));
        assert_eq!(table.frames(), 1);
    }
}

#[test]
fn rfc_8200_4_5_an_exact_duplicate_is_ignored() {
    for packet in samples() {
        let pieces = packet.pieces(&[16, 40]);
        let mut table = table();
        assert_taken(&insert(&mut table, &pieces[2], 0));
        assert_taken(&insert(&mut table, &pieces[0], 0));
        for piece in [&pieces[0], &pieces[2]] {
            let outcome = insert(&mut table, piece, 0);
            assert_eq!(outcome.losses, loss(Reason::Duplicate, 1));
            assert_eq!(free(&outcome), 1);
        }
        assert!(insert(&mut table, &pieces[1], 0).finished.is_some());
    }
}

#[test]
fn a_duplicate_with_other_bytes_is_an_overlap() {
    let packet = Packet::v4(pattern(100));
    let mut table = table();
    let mut piece = packet.piece(16, 16, true);
    assert_taken(&insert(&mut table, &piece, 0));
    piece.data[5] ^= 1;
    let outcome = insert(&mut table, &piece, 0);
    assert_eq!(outcome.losses, loss(Reason::Overlap, 2));
}

#[test]
fn ends_that_contradict_each_other() {
    let packet = Packet::v6(pattern(200));
    let more = |offset, length| packet.piece(offset, length, true);
    let last = |offset, length| packet.piece(offset, length, false);
    for (one, other) in [
        (last(64, 8), last(80, 8)),
        (last(80, 8), last(64, 8)),
        (last(64, 8), more(64, 16)),
        (last(64, 8), more(72, 8)),
        (more(72, 8), last(64, 8)),
        // The same bytes, but one says that there are more.
        (last(64, 8), more(64, 8)),
        (more(64, 8), last(64, 8)),
        (last(64, 8), last(64, 7)),
    ] {
        let mut table = table();
        assert_taken(&insert(&mut table, &one, 0));
        let outcome = insert(&mut table, &other, 0);
        assert_eq!(
            outcome.losses,
            loss(Reason::Malformed, 2),
            "{one:?} {other:?}"
        );
        assert_eq!(free(&outcome), 2);
    }
}

#[test]
fn malformed_fragments_cost_only_themselves() {
    let packet = Packet::v4(pattern(100));
    let mut damaged = packet.piece(16, 16, true).bytes();
    damaged[14 + 8] ^= 1;
    let mut cut_off = packet.piece(16, 16, true).bytes();
    let cut_headers = headers(&cut_off);
    cut_off.pop();
    let beyond = Packet {
        fragment: 0x1fff,
        ..packet.piece(0, 8, true)
    };
    let mut table = table();
    for (bytes, headers) in [
        (&damaged, headers(&damaged)),
        (&cut_off, cut_headers),
        (&beyond.bytes(), headers(&beyond.bytes())),
        (
            &packet.piece(16, 15, true).bytes(),
            headers(&packet.piece(16, 15, true).bytes()),
        ),
        (
            &packet.piece(16, 0, true).bytes(),
            headers(&packet.piece(16, 0, true).bytes()),
        ),
        (
            &packet.piece(16, 0, false).bytes(),
            headers(&packet.piece(16, 0, false).bytes()),
        ),
    ] {
        let outcome = table.insert(frame(bytes), &headers, 0);
        assert_eq!(outcome.losses, loss(Reason::Malformed, 1));
        assert_eq!((free(&outcome), table.frames()), (1, 0));
    }
}

#[test]
fn a_fragment_of_a_fragment_is_put_together_once() {
    // The data of the whole begins with a fragment header of its own: more to come, next header ESP.
    let mut data = pattern(64);
    data[..8].copy_from_slice(&[50, 0, 0, 1, 0, 0, 0, 9]);
    let packet = Packet {
        protocol: 44,
        ..Packet::v6(data)
    };
    let pieces = packet.pieces(&[32]);
    let mut table = table();
    assert_taken(&insert(&mut table, &pieces[0], 0));
    let whole = insert(&mut table, &pieces[1], 0).finished.unwrap();
    assert_eq!(whole.bytes(), packet.bytes());
    assert_eq!(headers(whole.bytes()).fragment, Fragment::First(9));
}

#[test]
fn what_does_not_fit_a_frame() {
    let room = CHUNK_LENGTH - DATA;
    let big = Packet::v4(pattern(room + 8));
    let mut table = table();
    assert_taken(&insert(&mut table, &big.piece(0, 1000, true), 0));
    assert_taken(&insert(&mut table, &big.piece(room - 8, 8, true), 0));
    let outcome = insert(&mut table, &big.piece(room, 8, false), 0);
    assert_eq!(outcome.losses, loss(Reason::TooLarge, 3));
    assert_eq!(free(&outcome), 2);
    let outcome = insert(&mut table, &big.piece(1000, 80, true), 0);
    assert_eq!(outcome.losses, loss(Reason::TooLarge, 1));

    let fits = Packet {
        id: 7,
        ..Packet::v4(pattern(room))
    };
    assert_taken(&insert(
        &mut table,
        &fits.piece(1000, room - 1000, false),
        0,
    ));
    let whole = insert(&mut table, &fits.piece(0, 1000, true), 0).finished;
    assert_eq!(whole.unwrap().bytes(), fits.bytes());

    // More headers than have a place.
    let long = Packet {
        options: vec![0; 80],
        ..Packet::v6(pattern(100))
    };
    let outcome = insert(&mut table, &long.piece(0, 16, true), 0);
    assert_eq!(outcome.losses, loss(Reason::TooLarge, 1));
}

#[test]
fn the_longest_datagram_and_one_that_is_longer() {
    const CHUNK: usize = 70_000;
    for (length, fits) in [(65_515, true), (65_516, false)] {
        let mut table = Reassembly::new(1, CHUNK);
        // Of the datagram itself the length field could not say so.
        let packet = Packet::v4(pattern(length));
        let pieces = packet.pieces(&[30_000, 60_000]);
        let mut outcomes = pieces.iter().map(|piece| {
            let bytes = piece.bytes();
            table.insert(frame_in(CHUNK, &bytes), &headers(&bytes), 0)
        });
        assert_taken(&outcomes.next().unwrap());
        assert_taken(&outcomes.next().unwrap());
        let outcome = outcomes.next().unwrap();
        if fits {
            assert_eq!(outcome.finished.unwrap().bytes(), packet.bytes());
        } else {
            assert_eq!(outcome.losses, loss(Reason::Malformed, 3));
        }
    }
}

#[test]
fn the_time_of_a_datagram() {
    let packet = Packet::v4(pattern(100));
    let pieces = packet.pieces(&[16, 40]);
    let mut table = table();
    assert_taken(&insert(&mut table, &pieces[0], 100));
    assert_taken(&insert(&mut table, &pieces[1], 1000));
    assert!(table.expire(100 + TIMEOUT - 1).is_none());
    let (_, lost) = table.expire(100 + TIMEOUT).unwrap();
    assert_eq!(Some(lost), loss(Reason::Incomplete, 2)[0]);
    assert!(table.expire(100 + TIMEOUT).is_none());

    // Without a call of `expire`, a late fragment starts anew.
    assert_taken(&insert(&mut table, &pieces[0], 5000));
    let outcome = insert(&mut table, &pieces[1], 5000 + TIMEOUT);
    assert_eq!(outcome.losses, loss(Reason::Incomplete, 1));
    assert_eq!((free(&outcome), table.frames()), (1, 1));
    assert!(table.expire(u64::MAX).is_some());
    assert_eq!(table.frames(), 0);
}

#[test]
fn the_oldest_makes_place() {
    let mut table = table();
    let piece = |id, length| Packet {
        id,
        ..Packet::v4(pattern(8000)).piece(0, length, true)
    };
    for id in 0..4 {
        assert_taken(&insert(&mut table, &piece(id, 8), u64::from(10 - id)));
    }
    let outcome = insert(&mut table, &piece(4, 8), 20);
    assert_eq!(outcome.losses, loss(Reason::Incomplete, 1));
    assert_eq!((free(&outcome), table.frames()), (1, 4));
    // It was number 3; number 0 is there still.
    let outcome = insert(&mut table, &piece(0, 8), 21);
    assert_eq!(outcome.losses, loss(Reason::Duplicate, 1));

    // One that goes for another that cannot be kept: two losses, two frames.
    let long = Packet {
        options: vec![0; 80],
        ..Packet::v6(pattern(100)).piece(0, 16, true)
    };
    let outcome = insert(&mut table, &long, 22);
    let [first, second] = outcome.losses;
    assert_eq!(first, loss(Reason::Incomplete, 1)[0]);
    assert_eq!(second, loss(Reason::TooLarge, 1)[0]);
    assert_eq!((free(&outcome), table.frames()), (2, 3));
}

#[test]
fn what_tells_datagrams_apart() {
    let base = Packet::v4(pattern(64));
    let base6 = Packet::v6(pattern(64));
    let others = [
        Packet {
            id: 9,
            ..base.clone()
        },
        Packet {
            source: 9,
            ..base.clone()
        },
        // RFC 791 §3.2: the protocol, too.
        Packet {
            protocol: UDP,
            ..base.clone()
        },
        base6.clone(),
    ];
    for other in others {
        let mut table = table();
        assert_taken(&insert(&mut table, &base.piece(0, 32, true), 0));
        assert_taken(&insert(&mut table, &other.piece(32, 32, false), 0));
        assert_eq!(table.frames(), 2);
    }
    // RFC 8200 §4.5: over IPv6 not; the first fragment's next header counts.
    let other = Packet {
        protocol: UDP,
        ..base6.clone()
    };
    let mut table = table();
    assert_taken(&insert(&mut table, &other.piece(32, 32, false), 0));
    let outcome = insert(&mut table, &base6.piece(0, 32, true), 0);
    assert_eq!(outcome.finished.unwrap().bytes(), base6.bytes());
}

#[test]
fn rfc_3168_5_3_congestion_marks() {
    for packet in [Packet::v4(pattern(64)), Packet::v6(pattern(64))] {
        for (first, second, wanted) in [
            (0xb8, 0xb8, Some(0xb8)),
            (0xba, 0xba, Some(0xba)),
            (0xba, 0xbb, Some(0xbb)),
            (0xbb, 0xb9, Some(0xbb)),
            (0xb8, 0xbb, None),
            (0xba, 0xb8, None),
        ] {
            let mut table = table();
            let mut pieces = packet.pieces(&[32]);
            pieces[0].class = first;
            pieces[1].class = second;
            assert_taken(&insert(&mut table, &pieces[1], 0));
            let outcome = insert(&mut table, &pieces[0], 0);
            let Some(class) = wanted else {
                assert_eq!(outcome.losses, loss(Reason::Malformed, 2));
                assert_eq!(free(&outcome), 2);
                continue;
            };
            let whole = Packet {
                class,
                ..packet.clone()
            };
            assert_eq!(outcome.finished.unwrap().bytes(), whole.bytes());
        }
    }
}

#[test]
fn dont_fragment_is_kept_and_the_first_header_counts() {
    let mut packet = Packet::v4(pattern(64));
    let mut pieces = packet.pieces(&[32]);
    pieces[0].fragment |= 0x4000;
    pieces[1].options = vec![1, 1, 1, 1];
    let mut table = table();
    assert_taken(&insert(&mut table, &pieces[0], 0));
    let whole = insert(&mut table, &pieces[1], 0).finished.unwrap();
    packet.fragment = 0x4000;
    assert_eq!(whole.bytes(), packet.bytes());
    assert_eq!(naive_checksum(&whole.bytes()[14..34]), 0);
}

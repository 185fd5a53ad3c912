use culvert_esp::buffer::HeapFrame;
use proptest::prelude::*;

use super::*;
use crate::sizes::reassembly::Reassembly;
use crate::sizes::testing::{CHUNK_LENGTH, Packet, Stock, frame, headers, naive_checksum, pattern};

/// The fragments of `packet`, or why there are none; no frame may be lost either way.
fn cut(packet: &Packet, mtu: usize, frames: usize) -> Result<Vec<HeapFrame>, Error> {
    let bytes = packet.bytes();
    let mut first = frame(&bytes);
    let mut stock = Stock::new(frames);
    let mut fragmenter = Fragmenter::default();
    let later = fragmenter
        .fragment(&mut first, &headers(&bytes), mtu, &mut stock)
        .map(Vec::from_iter);
    match later {
        Ok(later) => {
            assert_eq!(stock.free.len() + later.len(), frames);
            Ok([vec![first], later].concat())
        }
        Err(error) => {
            assert_eq!(stock.free.len(), frames);
            assert_eq!(first, frame(&bytes));
            Err(error)
        }
    }
}

/// Length, identification, fragment word of the IP header.
fn fields(frame: &HeapFrame) -> [u16; 3] {
    [2, 4, 6].map(|at| word(frame.bytes(), headers(frame.bytes()).ip + at))
}

#[test]
fn rfc_791_3_2_lengths_and_offsets() {
    // 1500 - 20 is a multiple of eight; 1499 - 20 is not.
    let packet = Packet::v4(pattern(3400));
    let fragments = cut(&packet, 1500, 2).unwrap();
    let seen: Vec<_> = fragments.iter().map(fields).collect();
    let id = packet.id;
    assert_eq!(
        seen,
        [[1500, id, 0x2000], [1500, id, 0x2000 | 185], [460, id, 370]]
    );
    let fragments = cut(&packet, 1499, 2).unwrap();
    let seen: Vec<_> = fragments.iter().map(fields).collect();
    assert_eq!(
        seen,
        [[1492, id, 0x2000], [1492, id, 0x2000 | 184], [476, id, 368]]
    );
    for fragment in &fragments {
        let ip = &fragment.bytes()[14..34];
        assert_eq!(naive_checksum(ip), 0);
        assert_eq!(fragment.bytes()[..14], packet.bytes()[..14]);
    }
}

#[test]
fn rfc_791_3_1_options_without_the_copied_flag_stay_in_the_first() {
    // Record route (not copied), no-operation, strict source route (copied), end.
    let mut packet = Packet::v4(pattern(600));
    packet.options = vec![7, 7, 4, 0, 0, 0, 0, 1, 0x89, 7, 4, 192, 0, 2, 7, 0];
    let fragments = cut(&packet, 576, 1).unwrap();
    assert_eq!(fragments[0].bytes()[34..50], packet.options);
    assert_eq!(fields(&fragments[0]), [36 + 536, packet.id, 0x2000]);
    let last = fragments[1].bytes();
    assert_eq!(last[14], 0x47);
    assert_eq!(last[34..42], [0x89, 7, 4, 192, 0, 2, 7, 0]);
    assert_eq!(naive_checksum(&last[14..42]), 0);
    assert_eq!(last[42..], packet.data[536..]);
}

#[test]
fn a_packet_that_fits_stays() {
    let packet = Packet::v4(pattern(1480));
    let fragments = cut(&packet, 1500, 0).unwrap();
    assert_eq!(fragments, [frame(&packet.bytes())]);
}

#[test]
fn padding_behind_the_packet_is_no_data() {
    let packet = Packet::v4(pattern(100));
    let mut bytes = packet.bytes();
    let headers = headers(&bytes);
    bytes.extend([0xaa; 9]);
    let mut first = frame(&bytes);
    let mut fragmenter = Fragmenter::default();
    let later: Vec<_> = fragmenter
        .fragment(&mut first, &headers, 76, &mut Stock::new(1))
        .unwrap()
        .collect();
    assert_eq!(later[0].bytes()[34..], packet.data[56..]);
}

#[test]
fn what_must_not_or_cannot_be_cut() {
    let packet = Packet::v4(pattern(3000));
    let dont = |fragment| Packet {
        fragment,
        ..packet.clone()
    };
    assert_eq!(cut(&dont(0x4000), 1500, 5), Err(Error::DontFragment));
    assert_eq!(cut(&dont(0x2000), 1500, 5), Err(Error::Fragmented));
    assert_eq!(cut(&dont(0x0001), 1500, 5), Err(Error::Fragmented));
    assert_eq!(
        cut(&Packet::v6(pattern(3000)), 1500, 5),
        Err(Error::NotIpv4)
    );
    assert_eq!(cut(&packet, 27, 5), Err(Error::MtuTooSmall));
    assert_eq!(cut(&packet, 0, 5), Err(Error::MtuTooSmall));
    assert_eq!(cut(&packet, 28, 500), Err(Error::TooMany));
    assert_eq!(cut(&packet, 576, 4), Err(Error::NoFrame));
    assert_eq!(cut(&packet, 576, 5).map(|all| all.len()), Ok(6));
}

#[test]
fn malformed_options_are_refused() {
    for options in [
        [0x89, 0, 0, 0],
        [0x89, 1, 0, 0],
        [0x89, 5, 0, 0],
        [1, 1, 1, 0x89],
    ] {
        let packet = Packet {
            options: options.to_vec(),
            ..Packet::v4(pattern(600))
        };
        assert_eq!(cut(&packet, 576, 5), Err(Error::Malformed), "{options:?}");
    }
}

#[test]
fn frames_that_are_too_small_are_given_back() {
    let bytes = Packet::v4(pattern(600)).bytes();
    let mut stock = Stock {
        free: vec![HeapFrame::new(10, &[], 300); 2],
    };
    let mut first = frame(&bytes);
    let mut fragmenter = Fragmenter::default();
    let result = fragmenter.fragment(&mut first, &headers(&bytes), 576, &mut stock);
    assert_eq!(result.err(), Some(Error::NoFrame));
    assert_eq!(stock.free.len(), 2);
    assert_eq!(first, frame(&bytes));
}

#[test]
fn a_damaged_header_stays_damaged() {
    let mut bytes = Packet::v4(pattern(600)).bytes();
    bytes[14 + 8] ^= 0x10;
    let mut first = frame(&bytes);
    let mut fragmenter = Fragmenter::default();
    let later = fragmenter.fragment(&mut first, &headers(&bytes), 576, &mut Stock::new(1));
    assert_eq!(later.map(Iterator::count), Ok(1));
    assert_ne!(naive_checksum(&first.bytes()[14..34]), 0);
}

/// Options of which all are copied, so that reassembly gives back what was cut.
fn options() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        Just(vec![]),
        Just(vec![0x88, 4, 1, 2]),
        Just(vec![0x94, 4, 0, 0, 0x89, 7, 4, 192, 0, 2, 7, 0]),
    ]
}

proptest! {
    /// What is cut and put together, in whatever order it arrives, is as it was.
    #[test]
    fn cut_and_put_together(
        length in 1_usize..3600, mtu in 76_usize..2000, tags in 0_usize..3, options in options(),
        order in any::<u64>(),
    ) {
        let packet = Packet { tags, options, ..Packet::v4(pattern(length)) };
        let mut fragments = cut(&packet, mtu, 128).unwrap();
        for fragment in &fragments {
            let headers = headers(fragment.bytes());
            prop_assert!(headers.end - headers.ip <= mtu);
            prop_assert_eq!(headers.end, fragment.bytes().len());
            prop_assert_eq!(naive_checksum(&fragment.bytes()[headers.ip..headers.transport]), 0);
        }
        if fragments.len() == 1 {
            prop_assert_eq!(fragments[0].bytes(), &packet.bytes()[..]);
        }
        let mut table = Reassembly::new(1, CHUNK_LENGTH);
        let mut random = order;
        while !fragments.is_empty() {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            let next = fragments.remove((random >> 33) as usize % fragments.len());
            let headers = headers(next.bytes());
            let outcome = table.insert(next, &headers, 0);
            prop_assert_eq!(outcome.losses, [None, None]);
            prop_assert_eq!(outcome.finished.is_some(), fragments.is_empty());
            if let Some(whole) = outcome.finished {
                prop_assert_eq!(whole.bytes(), &packet.bytes()[..]);
            }
        }
    }
}

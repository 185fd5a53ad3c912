use culvert_esp::buffer::HeapFrame;
use proptest::prelude::*;

use super::*;
use crate::sizes::testing::{Packet, frame, headers, naive_checksum, pattern};

/// A packet that says "don't fragment".
fn v4(length: usize) -> Packet {
    Packet {
        fragment: 0x4000,
        ..Packet::v4(pattern(length))
    }
}

/// The answer to a packet.
fn answer(packet: &Packet, mtu: u32) -> Result<Vec<u8>, Error> {
    let bytes = packet.bytes();
    let mut answer = frame(&bytes);
    let result = too_big(&mut answer, &headers(&bytes), mtu);
    if result.is_err() {
        assert_eq!(answer, frame(&bytes));
    }
    result.map(|()| answer.bytes().to_vec())
}

fn hex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}

/// Golden headers by scapy 2: `Ether/Dot1Q(vlan=5)/IP(tos=0xc0, id=0, ttl=64)/ICMP(type=3, code=4,
/// nexthopmtu=1400)/quote` and `Ether/IPv6(hlim=64)/ICMPv6PacketTooBig(mtu=1400)/quote`.
#[test]
fn rfc_1191_4_and_rfc_4443_3_2_as_scapy_writes_them() {
    // RFC 4303 §3.3.4 [3.3.4-pmtu]
    let with_tag = |length| Packet {
        tags: 1,
        ..v4(length)
    };
    for (packet, ethernet, longest_quote, golden) in [
        (
            with_tag(40),
            18,
            548,
            "02000000000c02000000000d81000005080045c00058000000004001f580c0000263c0000201\
             03048a8a00000578",
        ),
        (
            with_tag(2000),
            18,
            548,
            "02000000000c02000000000d81000005080045c00240000000004001f398c0000263c0000201\
             030456aa00000578",
        ),
        (
            Packet::v6(pattern(40)),
            14,
            1232,
            "02000000000c02000000000d86dd6000000000583a4020010db8000000000000000000000063\
             20010db8000000000000000000000001020040e700000578",
        ),
        (
            Packet::v6(pattern(2000)),
            14,
            1232,
            "02000000000c02000000000d86dd6000000004d83a4020010db8000000000000000000000063\
             20010db8000000000000000000000001\
             02006d3700000578",
        ),
    ] {
        let answer = answer(&packet, 1400).unwrap();
        let (front, quote) = answer.split_at(golden.len() / 2);
        assert_eq!(front, hex(golden));
        let original = &packet.bytes()[ethernet..];
        assert_eq!(quote, &original[..original.len().min(longest_quote)]);
    }
}

#[test]
fn mtus_that_a_stack_would_not_believe() {
    let mtu4 = |mtu| {
        let answer = answer(&v4(100), mtu).unwrap();
        u16::from_be_bytes([answer[40], answer[41]])
    };
    assert_eq!(
        [0, 67, 68, 9000, 70_000].map(mtu4),
        [68, 68, 68, 9000, 0xffff]
    );
    let mtu6 = |mtu| {
        let answer = answer(&Packet::v6(pattern(100)), mtu).unwrap();
        u32::from_be_bytes([answer[58], answer[59], answer[60], answer[61]])
    };
    // RFC 8201 §4: no less than 1280.
    assert_eq!(
        [0, 1279, 1281, 70_000].map(mtu6),
        [1280, 1280, 1281, 70_000]
    );
}

#[test]
fn rfc_1122_3_2_2_what_is_never_answered() {
    let v4 = v4(100);
    let v6 = Packet::v6(pattern(100));
    let mut silent = vec![
        v4.piece(16, 16, true),
        v4.piece(16, 16, false),
        v6.piece(16, 16, true),
    ];
    for kind in [3, 4, 5, 11, 12] {
        let data = vec![kind; 8];
        silent.push(Packet {
            protocol: 1,
            data,
            ..v4.clone()
        });
    }
    for kind in [0, 1, 2, 3, 4, 127, 137] {
        let data = vec![kind; 8];
        silent.push(Packet {
            protocol: 58,
            data,
            ..v6.clone()
        });
    }
    silent.push(Packet {
        protocol: 1,
        data: vec![],
        ..v4.clone()
    });
    silent.push(Packet {
        protocol: 58,
        data: vec![],
        ..v6.clone()
    });
    for packet in silent {
        assert_eq!(
            answer(&packet, 1400),
            Err(Error::Unanswerable),
            "{packet:?}"
        );
    }
    // An echo request may be answered, and so may a first fragment.
    for packet in [
        Packet {
            protocol: 1,
            data: vec![8; 8],
            ..v4.clone()
        },
        Packet {
            protocol: 58,
            data: vec![128; 8],
            ..v6.clone()
        },
        v4.piece(0, 16, true),
        v6.piece(0, 16, true),
    ] {
        assert!(answer(&packet, 1400).is_ok(), "{packet:?}");
    }
}

#[test]
fn rfc_1122_3_2_2_addresses_that_are_nobodys() {
    /// The answer, where the bytes at `at` of the packet are others.
    fn answer_with(packet: &Packet, at: usize, address: &[u8]) -> Result<(), Error> {
        let mut bytes = packet.bytes();
        bytes[at..at + address.len()].copy_from_slice(address);
        let mut frame = frame(&bytes);
        too_big(&mut frame, &headers(&bytes), 1400)
    }
    let v4 = v4(100);
    for address in [
        [0, 0, 0, 0],
        [127, 0, 0, 1],
        [224, 0, 0, 1],
        [239, 1, 1, 1],
        [240, 0, 0, 1],
        [255, 255, 255, 255],
    ] {
        for at in [14 + 12, 14 + 16] {
            let result = answer_with(&v4, at, &address);
            assert_eq!(result, Err(Error::Unanswerable), "{address:?}");
        }
    }
    let v6 = Packet::v6(pattern(100));
    let mut loopback = [0; 16];
    loopback[15] = 1;
    let mut multicast = [0; 16];
    multicast[0] = 0xff;
    for address in [[0; 16], loopback, multicast] {
        for at in [14 + 8, 14 + 24] {
            let result = answer_with(&v6, at, &address);
            assert_eq!(result, Err(Error::Unanswerable), "{address:?}");
        }
    }
    for at in [0, 6] {
        let result = answer_with(&v6, at, &[0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(result, Err(Error::Unanswerable));
    }
}

#[test]
fn headers_of_another_packet() {
    let bytes = v4(100).bytes();
    let headers = headers(&bytes);
    let mut short = frame(&bytes[..bytes.len() - 1]);
    assert_eq!(too_big(&mut short, &headers, 1400), Err(Error::Malformed));
}

#[test]
fn a_chunk_without_room() {
    let bytes = v4(100).bytes();
    let mut frame = HeapFrame::new(27, &bytes, 27);
    let before = frame.clone();
    assert_eq!(
        too_big(&mut frame, &headers(&bytes), 1400),
        Err(Error::NoRoom)
    );
    assert_eq!(frame, before);
}

proptest! {
    /// Whatever the room before and behind it: the sums are right, the addresses are swapped, the quote is
    /// the packet's beginning.
    #[test]
    fn sums_addresses_and_quote(
        v6: bool, length in 0_usize..3000, tags in 0_usize..3, headroom in 0_usize..64,
        options in 0_usize..3, padding in 0_usize..20,
    ) {
        let options = vec![0; options * 8];
        let data = pattern(length);
        let base = if v6 { Packet::v6(data) } else { v4(length) };
        let packet = Packet { tags, options, ..base };
        let bytes = packet.bytes();
        let old = headers(&bytes);
        let mut frame = HeapFrame::new(headroom, &bytes, padding + 48);
        frame.set_bounds(headroom..headroom + bytes.len() + padding);
        too_big(&mut frame, &old, 1400).unwrap();

        let answer = frame.bytes();
        let new = headers(answer);
        prop_assert_eq!(new.end, answer.len());
        prop_assert_eq!(new.ip, old.ip);
        prop_assert_eq!((new.source, new.destination), (old.destination, old.source));
        prop_assert_eq!(&answer[..6], &bytes[6..12]);
        prop_assert_eq!(&answer[6..12], &bytes[..6]);
        prop_assert_eq!(&answer[12..new.ip], &bytes[12..old.ip]);
        let icmp = &answer[new.transport..];
        if v6 {
            let pseudo = [
                &new.source[..], &new.destination, &u32::try_from(icmp.len()).unwrap().to_be_bytes(),
                &[0, 0, 0, 58], icmp,
            ];
            prop_assert_eq!(naive_checksum(&pseudo.concat()), 0);
            prop_assert!(new.end - new.ip <= 1280);
        } else {
            prop_assert_eq!(naive_checksum(icmp), 0);
            prop_assert_eq!(naive_checksum(&answer[new.ip..new.transport]), 0);
            prop_assert!(new.end - new.ip <= 576);
        }
        let original = &bytes[old.ip..old.end];
        prop_assert_eq!(&icmp[8..], &original[..icmp.len() - 8]);
        let least = original.len().min(if v6 { 1232 } else { 548 });
        prop_assert_eq!(icmp.len() - 8, least);
    }
}

//! Segmenting against packets that are built one by one.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use culvert_gso::Superpacket;
use culvert_gso::segment::{Fit, Refused};
use culvert_gso::vnet::{Checksum, Gso, Header, Kind};
use proptest::prelude::*;

use common::{Dice, Shape, cut, low};

const ANY_LENGTH: usize = 65535;

fn same(ours: &[Vec<u8>], theirs: &[Vec<u8>], shape: &Shape) {
    assert_eq!(ours.len(), theirs.len());
    for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
        let at = ours.iter().zip(theirs).position(|(a, b)| a != b);
        assert!(
            ours == theirs,
            "segment {index}: byte {at:?} of {} and {}, {shape:?}",
            ours.len(),
            theirs.len()
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

    #[test]
    fn segments_are_those_that_the_superpacket_stands_for(seed: u64, tunnel: bool) {
        let shape = Shape::random(&mut Dice(seed), tunnel);
        let (header, bytes) = shape.superpacket();
        same(&cut(&header, &bytes, ANY_LENGTH), &shape.segments(), &shape);
    }

    #[test]
    fn headers_and_payload_apart_are_the_same(seed: u64, tunnel: bool) {
        let shape = Shape::random(&mut Dice(seed), tunnel);
        let (header, bytes) = shape.superpacket();
        let packet = Superpacket::new(&header, &bytes).unwrap();
        let expected = shape.segments();
        for (segment, expected) in packet.segments(ANY_LENGTH).iter().zip(&expected) {
            let mut headers = vec![0; packet.headers()];
            prop_assert_eq!(segment.headers_into(&mut headers), Ok(headers.len()));
            prop_assert_eq!(&[&headers[..], segment.payload()].concat(), expected);
            prop_assert_eq!(&bytes[segment.payload_range()], segment.payload());
            let short = headers.len() - 1;
            prop_assert!(segment.headers_into(&mut headers[..short]).is_err());
            prop_assert!(segment.write_into(&mut vec![0; segment.len() - 1]).is_err());
        }
    }

    /// TCP becomes shorter segments; datagrams stay what they are.
    #[test]
    fn nothing_is_longer_than_what_fits(seed: u64, less in 1_usize..1000) {
        let shape = Shape::random(&mut Dice(seed), true);
        let (header, bytes) = shape.superpacket();
        let packet = Superpacket::new(&header, &bytes).unwrap();
        let size = shape.size.saturating_sub(less);
        let segments = packet.segments(packet.headers() + size);
        if shape.tcp.is_some() && size >= 8 {
            prop_assert_eq!(segments.fit(), Fit::Shrunk { from: shape.size, to: size });
            same(&cut(&header, &bytes, packet.headers() + size), &shape.segments_of(size), &shape);
        } else {
            prop_assert_eq!(segments.fit(), Fit::TooLong);
            same(&cut(&header, &bytes, packet.headers() + size), &shape.segments(), &shape);
        }
        prop_assert_eq!(packet.segments(packet.headers() + shape.size).fit(), Fit::Whole);
    }

    /// A damaged frame or header is refused, or cut into something: nothing else happens, and no byte is made up.
    #[test]
    fn damage_costs_only_itself(seed: u64, tunnel: bool, damage in proptest::collection::vec((0_usize..200, any::<u8>()), 1..6)) {
        let mut dice = Dice(seed);
        let shape = Shape::random(&mut dice, tunnel);
        let (header, mut bytes) = shape.superpacket();
        let mut vnet = [0; 24];
        header.write(&mut vnet, culvert_gso::vnet::Layout::Tunnel).unwrap();
        for (at, value) in damage {
            match at.checked_sub(24) {
                None => vnet[at] = value,
                Some(at) => if let Some(byte) = bytes.get_mut(at) { *byte = value },
            }
        }
        bytes.truncate(dice.within(bytes.len() / 2..=bytes.len() * 2));
        let Ok(header) = Header::parse(&vnet, culvert_gso::vnet::Layout::Tunnel) else { return Ok(()) };
        let Ok(packet) = Superpacket::new(&header, &bytes) else { return Ok(()) };
        let segments = packet.segments(dice.within(0..=3000));
        let payload: usize = segments.iter().map(|segment| segment.payload().len()).sum();
        prop_assert_eq!(payload, bytes.len() - packet.headers());
        for segment in segments.iter() {
            let mut to = vec![0; segment.len()];
            prop_assert_eq!(segment.write_into(&mut to), Ok(to.len()));
        }
    }
}

/// A superpacket of the kind that OVN sends, for tests that change one thing.
fn plain() -> Shape {
    let mut dice = Dice(1);
    loop {
        let shape = Shape::random(&mut dice, true);
        let outer = shape.outer.as_ref().unwrap();
        if shape.tcp.is_some() && !outer.ip.v6 && !shape.ip.v6 && shape.ethernet.len() == 12 {
            return shape;
        }
    }
}

#[test]
fn a_single_packet_gets_its_checksum_and_nothing_else() {
    for seed in 0..200 {
        let mut shape = Shape::random(&mut Dice(seed), true);
        shape.payload.truncate(shape.size);
        shape.outer.as_mut().unwrap().checksum = false;
        let (mut header, bytes) = shape.superpacket();
        same(&cut(&header, &bytes, ANY_LENGTH), &shape.segments(), &shape);
        header.gso = None;
        same(&cut(&header, &bytes, ANY_LENGTH), &shape.segments(), &shape);
        header.checksum = None;
        assert_eq!(cut(&header, &bytes, ANY_LENGTH), [bytes]);
    }
}

/// `virtio_net_hdr_tnl_from_skb` forgets the tag that the kernel keeps beside the packet.
#[test]
fn offsets_that_forget_a_vlan_tag_are_understood() {
    for seed in 0..500 {
        let shape = Shape::random(&mut Dice(seed), true);
        let (mut header, bytes) = shape.superpacket();
        let tunnel = header.gso.as_mut().unwrap().tunnel.as_mut().unwrap();
        tunnel.outer_transport -= 4;
        tunnel.inner_network -= 4;
        if shape.ethernet.len() > 12 {
            same(&cut(&header, &bytes, ANY_LENGTH), &shape.segments(), &shape);
        } else {
            assert_eq!(
                Superpacket::new(&header, &bytes).unwrap_err(),
                Refused::Offset
            );
        }
    }
}

#[test]
fn what_contradicts_the_frame_is_refused() {
    let shape = plain();
    let refused = |header: &Header, bytes: &[u8]| Superpacket::new(header, bytes).unwrap_err();
    let (header, bytes) = shape.superpacket();
    let gso = header.gso.unwrap();
    let tunnel = gso.tunnel.unwrap();
    let with_gso = |gso: Gso| Header {
        gso: Some(gso),
        ..header
    };
    let with_tunnel = |tunnel| {
        with_gso(Gso {
            tunnel: Some(tunnel),
            ..gso
        })
    };
    let changed = |at: usize, value: u8| {
        let mut bytes = bytes.clone();
        bytes[at] = value;
        bytes
    };
    let inner = usize::from(tunnel.inner_network);
    let transport = usize::from(header.checksum.unwrap().start);

    let six = Gso {
        kind: Kind::TcpV6,
        ..gso
    };
    assert_eq!(refused(&with_gso(six), &bytes), Refused::Kind);
    let udp = Gso {
        kind: Kind::Udp,
        ..gso
    };
    assert_eq!(refused(&with_gso(udp), &bytes), Refused::Kind);
    let mut other = tunnel;
    other.v6 = true;
    assert_eq!(refused(&with_tunnel(other), &bytes), Refused::Kind);
    other = tunnel;
    other.outer_transport += 2;
    assert_eq!(refused(&with_tunnel(other), &bytes), Refused::Offset);
    other = tunnel;
    other.inner_network += 1;
    assert_eq!(refused(&with_tunnel(other), &bytes), Refused::Offset);
    other.inner_network = tunnel.outer_transport;
    assert_eq!(refused(&with_tunnel(other), &bytes), Refused::Offset);
    other.inner_network = 0xfffe;
    assert!(Superpacket::new(&with_tunnel(other), &bytes).is_err());
    for (start, offset) in [(transport + 2, 16), (transport, 6), (0xffff, 0xffff)] {
        let wrong = Header {
            checksum: Some(Checksum {
                start: low(start),
                offset: low(offset),
            }),
            ..header
        };
        assert_eq!(refused(&wrong, &bytes), Refused::Offset);
        let wrong = Header { gso: None, ..wrong };
        assert_eq!(
            Superpacket::new(&wrong, &bytes).is_err(),
            start == 0xffff,
            "a checksum anywhere within the frame is the kernel's business"
        );
    }
    assert_eq!(
        refused(&header, &changed(inner + 6, 0x20)),
        Refused::Malformed
    );
    assert_eq!(refused(&header, &changed(inner + 9, 17)), Refused::Kind);
    assert_eq!(
        refused(&header, &changed(inner + 3, bytes[inner + 3] ^ 1)),
        Refused::Length
    );
    assert_eq!(refused(&header, &changed(23, 6)), Refused::Kind);
    assert_eq!(
        refused(&header, &changed(transport + 12, 0x40)),
        Refused::Transport
    );
    assert_eq!(refused(&header, &bytes[..bytes.len() - 1]), Refused::Length);
    assert_eq!(refused(&header, &[]), Refused::Malformed);
    assert_eq!(refused(&header, &vec![0; 65536]), Refused::TooLong);
    let tiny = Gso { size: 7, ..gso };
    assert_eq!(refused(&with_gso(tiny), &bytes), Refused::Segments);
}

#[test]
fn udp_has_its_own_limits() {
    let mut dice = Dice(7);
    let mut shape = Shape::random(&mut dice, false);
    while shape.tcp.is_some() {
        shape = Shape::random(&mut dice, false);
    }
    shape.size = 10;
    shape.payload = vec![7; 1280];
    let (header, bytes) = shape.superpacket();
    assert_eq!(cut(&header, &bytes, ANY_LENGTH).len(), 128);
    let without = Header {
        checksum: None,
        ..header
    };
    assert_eq!(
        Superpacket::new(&without, &bytes).unwrap_err(),
        Refused::Checksum
    );
    shape.payload.push(7);
    let (header, bytes) = shape.superpacket();
    assert_eq!(
        Superpacket::new(&header, &bytes).unwrap_err(),
        Refused::Segments
    );
}

/// `tcp4_gso_segment`: the sum of the pseudo header need not be there.
#[test]
fn tcp_without_a_partial_checksum_gets_one() {
    for seed in 0..200 {
        let shape = Shape::random(&mut Dice(seed), false);
        let (mut header, mut bytes) = shape.superpacket();
        if shape.tcp.is_none() {
            continue;
        }
        let at = usize::from(header.checksum.take().unwrap().start) + 16;
        bytes[at..at + 2].copy_from_slice(&[0xbe, 0xef]);
        same(&cut(&header, &bytes, ANY_LENGTH), &shape.segments(), &shape);
    }
}

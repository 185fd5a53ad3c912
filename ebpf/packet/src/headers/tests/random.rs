//! What must hold for every frame.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;

/// A frame of any bytes, of which the first that are looked at are often right.
fn any_frame() -> impl Strategy<Value = Vec<u8>> {
    let tags = vec(prop_oneof![Just(0x8100_u16), Just(0x88a8)], 0..4);
    let ethertype = prop_oneof![4 => Just(ETH_IPV4), 4 => Just(ETH_IPV6), 1 => any::<u16>()];
    // The start of an IP header that gets past the first checks, then anything.
    let first = prop_oneof![Just(0x45_u8), Just(0x4f), Just(0x60), any::<u8>()];
    let next = prop_oneof![
        Just(0_u8),
        Just(43),
        Just(44),
        Just(60),
        Just(UDP),
        Just(ESP),
        any::<u8>()
    ];
    (tags, ethertype, first, next, vec(any::<u8>(), 0..400)).prop_map(
        |(tags, ethertype, first, next, mut rest)| {
            if let Some(byte) = rest.first_mut() {
                *byte = first;
            }
            let protocol_at = if ethertype == ETH_IPV6 { 6 } else { 9 };
            if let Some(byte) = rest.get_mut(protocol_at) {
                *byte = next;
            }
            ethernet(&tags, ethertype, &rest)
        },
    )
}

proptest! {
    #[test]
    fn random_bytes_never_panic(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(headers) = walk(&bytes[..]) {
            classify(&bytes[..], &headers);
        }
        addresses(&bytes[..]);
    }

    /// Whatever is walked, offsets are in order, and who sent it is what `addresses` says.
    #[test]
    fn what_is_walked_is_consistent(frame in any_frame()) {
        let Ok(headers) = walk(&frame[..]) else { return Ok(()) };
        classify(&frame[..], &headers);
        prop_assert!(14 <= headers.ip && headers.ip <= 22);
        prop_assert!(headers.ip < headers.protocol_at);
        prop_assert!(headers.protocol_at < headers.transport);
        prop_assert_eq!(frame[headers.protocol_at], headers.protocol);
        prop_assert!(headers.transport <= HEADERS_END);
        prop_assert!(headers.ip < headers.inner_protocol_at);
        prop_assert!(headers.inner_protocol_at < headers.inner);
        prop_assert!(headers.inner <= headers.transport);
        prop_assert_eq!(frame[headers.inner_protocol_at], headers.inner_protocol);
        prop_assert_eq!(
            addresses(&frame[..]),
            Some((headers.source, headers.destination))
        );
    }

    /// Bytes behind what was read do not matter: eBPF sees the start of a superpacket as userspace sees a frame.
    #[test]
    fn what_comes_after_the_headers_does_not_matter(
        frame in any_frame(),
        more in vec(any::<u8>(), 1..100),
    ) {
        let Ok(headers) = walk(&frame[..]) else { return Ok(()) };
        let longer = concat(&[&frame, &more]);
        prop_assert_eq!(walk(&longer[..]), Ok(headers));
        match classify(&frame[..], &headers) {
            // What was cut off is there now; an SPI too short to be read may be.
            Kind::Truncated | Kind::OtherUdp => {}
            kind => prop_assert_eq!(classify(&longer[..], &headers), kind),
        }
    }

    /// What is made as Geneve is found as Geneve, with any ports, options and tags.
    #[test]
    fn geneve_is_always_found(
        six in any::<bool>(),
        tags in 0_usize..3,
        extra in 0_u8..6,
        other_port in any::<u16>(),
        swapped in any::<bool>(),
    ) {
        let (source, destination) = if swapped {
            (GENEVE_PORT, other_port)
        } else {
            (other_port, GENEVE_PORT)
        };
        let datagram = udp(source, destination, &[1; 20]);
        let frame = if six {
            let mut payload = Vec::new();
            for left in (0..extra).rev() {
                payload.extend(options6(if left == 0 { UDP } else { 43 }, 1 + left));
            }
            payload.extend(datagram);
            let packet = v6(if extra == 0 { UDP } else { 0 }, &payload);
            ethernet(&vec![0x8100; tags], ETH_IPV6, &packet)
        } else {
            let packet = v4(UDP, 0x4000, &vec![1; usize::from(extra) * 4], &datagram);
            ethernet(&vec![0x8100; tags], ETH_IPV4, &packet)
        };
        prop_assert_eq!(kind(&frame), Kind::Geneve);
        prop_assert_eq!(walked(&frame).end, frame.len());
    }
}

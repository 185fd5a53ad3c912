mod random;

use super::*;

const SOURCE4: [u8; 4] = [192, 0, 2, 1];
const DESTINATION4: [u8; 4] = [192, 0, 2, 2];
const SOURCE6: Address = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const DESTINATION6: Address = [0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2];

/// IPv4's "more fragments".
const MORE: u16 = 0x2000;

fn concat(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

/// Ethernet with these VLAN tags (their EtherTypes), outermost first.
fn ethernet(tags: &[u16], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![2; 12];
    for tag in tags {
        frame.extend(tag.to_be_bytes());
        frame.extend([0, 5]);
    }
    frame.extend(ethertype.to_be_bytes());
    frame.extend(payload);
    frame
}

/// An IPv4 packet; `fragment` is the word of flags and offset, `options` a multiple of four bytes.
fn v4(protocol: u8, fragment: u16, options: &[u8], payload: &[u8]) -> Vec<u8> {
    let header = 20 + options.len();
    let total = u16::try_from(header + payload.len()).unwrap();
    let mut packet = vec![0x40 | u8::try_from(header / 4).unwrap(), 0];
    packet.extend(total.to_be_bytes());
    packet.extend(0x1234_u16.to_be_bytes());
    packet.extend(fragment.to_be_bytes());
    packet.extend([64, protocol, 0, 0]);
    packet.extend(SOURCE4);
    packet.extend(DESTINATION4);
    packet.extend(options);
    packet.extend(payload);
    packet
}

/// An IPv6 packet.
fn v6(next: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(payload.len()).unwrap();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(length.to_be_bytes());
    packet.extend([next, 64]);
    packet.extend(SOURCE6);
    packet.extend(DESTINATION6);
    packet.extend(payload);
    packet
}

/// An options header of IPv6, of `words` times eight bytes.
fn options6(next: u8, words: u8) -> Vec<u8> {
    let mut header = vec![0; usize::from(words) * 8];
    header[0] = next;
    header[1] = words - 1;
    header
}

/// A fragment header of IPv6; `offset` in bytes.
fn fragment6(next: u8, offset: u16, more: bool) -> Vec<u8> {
    let mut header = vec![next, 0];
    header.extend((offset | u16::from(more)).to_be_bytes());
    header.extend(0xdead_beef_u32.to_be_bytes());
    header
}

fn udp(source: u16, destination: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap();
    let mut datagram = Vec::new();
    for field in [source, destination, length, 0] {
        datagram.extend(field.to_be_bytes());
    }
    datagram.extend(payload);
    datagram
}

fn geneve() -> Vec<u8> {
    udp(50_000, GENEVE_PORT, &[0; 30])
}

fn frame4(protocol: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], ETH_IPV4, &v4(protocol, 0, &[], payload))
}

fn frame6(next: u8, payload: &[u8]) -> Vec<u8> {
    ethernet(&[], ETH_IPV6, &v6(next, payload))
}

fn walked(frame: &[u8]) -> Headers {
    walk(frame).unwrap()
}

fn kind(frame: &[u8]) -> Kind {
    classify(frame, &walked(frame))
}

#[test]
fn v4_fields_are_found() {
    let frame = frame4(UDP, &geneve());
    assert_eq!(
        walked(&frame),
        Headers {
            version: Version::V4,
            ip: 14,
            protocol_at: 14 + 9,
            transport: 14 + 20,
            protocol: UDP,
            inner: 14 + 20,
            inner_protocol_at: 14 + 9,
            inner_protocol: UDP,
            end: frame.len(),
            fragment: Fragment::Whole,
            source: mapped(SOURCE4),
            destination: mapped(DESTINATION4),
        }
    );
    assert_eq!(
        addresses(&frame[..]),
        Some((mapped(SOURCE4), mapped(DESTINATION4)))
    );
}

#[test]
fn v6_fields_are_found() {
    let frame = frame6(UDP, &geneve());
    assert_eq!(
        walked(&frame),
        Headers {
            version: Version::V6,
            ip: 14,
            protocol_at: 14 + 6,
            transport: 14 + 40,
            protocol: UDP,
            inner: 14 + 40,
            inner_protocol_at: 14 + 6,
            inner_protocol: UDP,
            end: frame.len(),
            fragment: Fragment::Whole,
            source: SOURCE6,
            destination: DESTINATION6,
        }
    );
    assert_eq!(addresses(&frame[..]), Some((SOURCE6, DESTINATION6)));
}

#[test]
fn v6_with_addresses_of_v4_is_malformed() {
    let good = frame6(UDP, &geneve());
    for at in [14 + 8, 14 + 24] {
        let mut frame = good.clone();
        frame[at..at + 16].copy_from_slice(&mapped([192, 0, 2, 1]));
        assert_eq!(walk(&frame[..]), Err(Stop::Malformed));
    }
}

#[test]
fn up_to_two_vlan_tags_are_stepped_over() {
    let packet = v4(UDP, 0, &[], &geneve());
    for (tags, ip) in [
        (&[][..], 14),
        (&[0x8100], 18),
        (&[0x88a8], 18),
        (&[0x88a8, 0x8100], 22),
        (&[0x8100, 0x8100], 22),
    ] {
        let frame = ethernet(tags, ETH_IPV4, &packet);
        assert_eq!(walked(&frame).ip, ip);
        assert_eq!(kind(&frame), Kind::Geneve);
    }
    let frame = ethernet(&[0x8100; 3], ETH_IPV4, &packet);
    assert_eq!(walk(&frame[..]), Err(Stop::NotIp));
}

#[test]
fn what_is_not_ip_is_not_judged() {
    // ARP, and a frame that ends in its Ethernet header.
    let frame = ethernet(&[], 0x0806, &[0; 28]);
    assert_eq!(walk(&frame[..]), Err(Stop::NotIp));
    assert_eq!(walk(&frame[..13]), Err(Stop::NotIp));
    assert_eq!(addresses(&frame[..]), None);
}

#[test]
fn v4_options_are_stepped_over() {
    // RFC 4303 §3.1.1 [3.1.1-after-ip-header]
    let frame = ethernet(&[], ETH_IPV4, &v4(UDP, 0, &[1; 40], &geneve()));
    assert_eq!(walked(&frame).transport, 14 + 60);
    assert_eq!(kind(&frame), Kind::Geneve);
}

#[test]
fn ethernet_padding_is_not_counted() {
    let mut frame = frame4(ESP, &[0, 0, 1, 0]);
    let end = frame.len();
    frame.resize(60, 0);
    assert_eq!(walked(&frame).end, end);
}

#[test]
fn contradictions_in_v4_are_malformed() {
    let good = frame4(UDP, &geneve());
    let changes: [(usize, u8); 3] = [
        (14, 0x65),     // version 6
        (14, 0x44),     // header shorter than a header
        (14 + 3, 0x13), // total length shorter than the header, with the upper byte zero
    ];
    for (at, value) in changes {
        let mut frame = good.clone();
        frame[at] = value;
        assert_eq!(walk(&frame[..]), Err(Stop::Malformed), "{at} {value}");
        // Whose fault it is can be told all the same.
        assert!(addresses(&frame[..]).is_some());
    }
    let mut frame = frame6(UDP, &geneve());
    frame[14] = 0x40;
    assert_eq!(walk(&frame[..]), Err(Stop::Malformed));
}

#[test]
fn v4_fragments_are_told_apart() {
    let id = 0x1234;
    for (word, wanted) in [
        (0, Fragment::Whole),
        (0x4000, Fragment::Whole), // do not fragment
        (MORE, Fragment::First(id)),
        (0x4000 | MORE, Fragment::First(id)),
        (1, Fragment::Later(id)),
        (MORE | 1, Fragment::Later(id)),
        (0x1fff, Fragment::Later(id)),
    ] {
        let frame = ethernet(&[], ETH_IPV4, &v4(UDP, word, &[], &geneve()));
        assert_eq!(walked(&frame).fragment, wanted, "{word:#x}");
        let wanted = match wanted {
            Fragment::Later(_) => Kind::LaterFragment,
            _ => Kind::Geneve,
        };
        assert_eq!(kind(&frame), wanted, "{word:#x}");
    }
}

#[test]
fn v6_fragments_are_told_apart() {
    // RFC 4303 §3.3.4 [3.3.4-ipv6-fragment-header]
    // RFC 8200 §4.5; offset zero and nothing to come is a whole datagram, RFC 6946.
    let id = 0xdead_beef;
    for (offset, more, fragment, wanted) in [
        (0, false, Fragment::Whole, Kind::Geneve),
        (0, true, Fragment::First(id), Kind::Geneve),
        (8, true, Fragment::Later(id), Kind::LaterFragment),
        (0xfff8, false, Fragment::Later(id), Kind::LaterFragment),
    ] {
        let payload = concat(&[&fragment6(UDP, offset, more), &geneve()]);
        let frame = frame6(44, &payload);
        assert_eq!(walked(&frame).fragment, fragment);
        assert_eq!(walked(&frame).transport, 14 + 40 + 8);
        assert_eq!(kind(&frame), wanted);
    }
}

#[test]
fn the_protocol_of_a_later_fragment_is_what_its_header_says() {
    // What follows is data, and must not be taken for a header.
    let payload = concat(&[&fragment6(60, 8, false), &[UDP; 64]]);
    let headers = walked(&frame6(44, &payload));
    assert_eq!(headers.protocol, 60);
    assert_eq!(headers.transport, 14 + 40 + 8);
}

#[test]
fn a_whole_fragment_header_does_not_hide_a_first_one() {
    // RFC 4303 §3.3.4 [3.3.4-ipv6-fragment-header]
    let payload = concat(&[
        &fragment6(44, 0, true),
        &fragment6(UDP, 0, false),
        &geneve(),
    ]);
    assert_eq!(
        walked(&frame6(44, &payload)).fragment,
        Fragment::First(0xdead_beef)
    );
}

#[test]
fn v6_extension_headers_are_stepped_over() {
    // RFC 4303 §3.1.1 [3.1.1-after-extensions]
    // RFC 8200 §4: hop-by-hop options, routing, destination options.
    let payload = concat(&[
        &options6(43, 1),
        &options6(60, 3),
        &options6(UDP, 2),
        &geneve(),
    ]);
    let frame = frame6(0, &payload);
    let headers = walked(&frame);
    assert_eq!(headers.transport, 14 + 40 + 48);
    assert_eq!(headers.protocol, UDP);
    // The byte that says UDP: the first of the last extension header.
    assert_eq!(headers.protocol_at, 14 + 40 + 32);
    assert_eq!(kind(&frame), Kind::Geneve);
}

#[test]
fn esp_goes_behind_what_routers_read_and_before_options_for_the_receiver() {
    // RFC 4303 §3.1.1 [3.1.1-after-extensions, 3.1.1-destination-options]
    // RFC 8200 §4.1: options before a routing header are for each of its destinations.
    let cases: [(&[u8], usize, u8); 6] = [
        (&[], 0, UDP),
        (&[60], 0, 60),
        (&[0, 60], 1, 60),
        (&[60, 43], 2, UDP),
        (&[0, 60, 43, 60], 3, 60),
        (&[0, 43, 60, 60], 2, 60),
    ];
    for (chain, before, protocol) in cases {
        let mut payload = Vec::new();
        for at in 0..chain.len() {
            payload.extend(options6(chain.get(at + 1).copied().unwrap_or(UDP), 1));
        }
        payload.extend(geneve());
        let frame = frame6(chain.first().copied().unwrap_or(UDP), &payload);
        let headers = walked(&frame);
        assert_eq!(headers.transport, 54 + 8 * chain.len(), "{chain:?}");
        assert_eq!(headers.inner, 54 + 8 * before, "{chain:?}");
        assert_eq!(headers.inner_protocol, protocol, "{chain:?}");
        assert_eq!(frame[headers.inner_protocol_at], protocol, "{chain:?}");
    }
}

#[test]
fn six_extension_headers_are_walked_and_no_seventh() {
    let chain = |count: usize| {
        let mut payload = Vec::new();
        for left in (0..count).rev() {
            payload.extend(options6(if left == 0 { UDP } else { 60 }, 1));
        }
        payload.extend(geneve());
        frame6(60, &payload)
    };
    assert_eq!(kind(&chain(6)), Kind::Geneve);
    assert_eq!(walk(&chain(7)[..]), Err(Stop::Malformed));
}

#[test]
fn headers_longer_than_is_walked_are_malformed() {
    let payload = concat(&[&options6(UDP, 125), &geneve()]);
    assert_eq!(walk(&frame6(60, &payload)[..]), Err(Stop::Malformed));
    let payload = concat(&[&options6(UDP, 120), &geneve()]);
    assert_eq!(kind(&frame6(60, &payload)), Kind::Geneve);
}

#[test]
fn no_next_header_is_other() {
    assert_eq!(kind(&frame6(59, &[])), Kind::Other);
}

#[test]
fn esp_has_its_spi() {
    let payload = concat(&[&0x1001_u32.to_be_bytes(), &[7; 40]]);
    assert_eq!(kind(&frame4(ESP, &payload)), Kind::Esp(0x1001));
    assert_eq!(kind(&frame6(ESP, &payload)), Kind::Esp(0x1001));
    let behind_options = concat(&[&options6(ESP, 1), &payload]);
    assert_eq!(kind(&frame6(60, &behind_options)), Kind::Esp(0x1001));
    // SPI zero is refused by who opens it, with a reason.
    assert_eq!(kind(&frame4(ESP, &[0; 40])), Kind::Esp(0));
}

#[test]
fn esp_fragments_are_esp() {
    let packet = v4(ESP, MORE, &[], &[1; 40]);
    let frame = ethernet(&[], ETH_IPV4, &packet);
    assert_eq!(kind(&frame), Kind::Esp(0x0101_0101));
    assert_eq!(walked(&frame).fragment, Fragment::First(0x1234));
}

#[test]
fn either_port_makes_it_geneve() {
    for (source, destination) in [(50_000, 6081), (6081, 50_000), (6081, 6081)] {
        let datagram = udp(source, destination, &[0; 8]);
        assert_eq!(kind(&frame4(UDP, &datagram)), Kind::Geneve);
        assert_eq!(kind(&frame6(UDP, &datagram)), Kind::Geneve);
    }
    assert_eq!(kind(&frame4(UDP, &udp(53, 5353, &[0; 8]))), Kind::OtherUdp);
    assert_eq!(kind(&frame4(6, &[0; 20])), Kind::Other);
}

#[test]
fn geneve_wins_over_port_4500() {
    // A peer must not get plaintext past by its choice of the other port.
    let datagram = udp(NAT_T_PORT, GENEVE_PORT, &[9; 40]);
    assert_eq!(kind(&frame4(UDP, &datagram)), Kind::Geneve);
}

#[test]
fn esp_in_udp_has_its_spi() {
    // RFC 3948 §2.1. A NAT may have moved either port.
    let payload = concat(&[&0x1001_u32.to_be_bytes(), &[7; 40]]);
    for (source, destination) in [(4500, 4500), (4500, 1024), (1024, 4500)] {
        let datagram = udp(source, destination, &payload);
        assert_eq!(kind(&frame4(UDP, &datagram)), Kind::EspInUdp(0x1001));
        assert_eq!(kind(&frame6(UDP, &datagram)), Kind::EspInUdp(0x1001));
    }
}

#[test]
fn ike_on_port_4500_is_not_esp() {
    // RFC 3948 §2.2: the non-ESP marker.
    let datagram = udp(4500, 4500, &[0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(kind(&frame4(UDP, &datagram)), Kind::OtherUdp);
}

#[test]
fn keepalives_on_port_4500_are_not_esp() {
    // RFC 3948 §2.3: one byte 0xff; Ethernet padding behind it is not payload.
    let mut frame = frame4(UDP, &udp(4500, 4500, &[0xff]));
    frame.resize(60, 0xff);
    assert_eq!(kind(&frame), Kind::NatKeepalive);
    // One byte of another value is nobody's.
    assert_eq!(
        kind(&frame4(UDP, &udp(4500, 4500, &[0xfe]))),
        Kind::OtherUdp
    );
    // Four bytes are an SPI and nothing behind it.
    assert_eq!(
        kind(&frame4(UDP, &udp(4500, 4500, &[1; 4]))),
        Kind::OtherUdp
    );
    assert_eq!(
        kind(&frame4(UDP, &udp(4500, 4500, &[1; 5]))),
        Kind::EspInUdp(0x0101_0101)
    );
}

#[test]
fn cut_off_transport_headers_are_truncated() {
    let udp = frame4(UDP, &geneve());
    let esp = frame6(ESP, &[1; 40]);
    for (frame, transport, needed) in [(udp, 34, 8), (esp, 54, 4)] {
        for length in transport..transport + needed {
            assert_eq!(kind(&frame[..length]), Kind::Truncated, "{length}");
        }
        assert_ne!(kind(&frame[..transport + needed]), Kind::Truncated);
    }
}

#[test]
fn every_cut_before_the_transport_header_is_noticed() {
    let payload = concat(&[
        &options6(43, 1),
        &options6(44, 1),
        &fragment6(UDP, 0, true),
        &geneve(),
    ]);
    let tagged = |ethertype, packet: &[u8]| ethernet(&[0x88a8, 0x8100], ethertype, packet);
    let frames = [
        tagged(ETH_IPV4, &v4(UDP, 0, &[], &geneve())),
        tagged(ETH_IPV6, &v6(0, &payload)),
    ];
    for frame in frames {
        let transport = walked(&frame).transport;
        for length in 0..transport {
            match walk(&frame[..length]) {
                Err(Stop::NotIp) => assert!(length < 22),
                Err(Stop::Malformed) => assert!(length >= 22),
                // The last extension header is there, or so much of it as was read.
                Ok(headers) => {
                    assert_eq!(classify(&frame[..length], &headers), Kind::Truncated);
                }
            }
        }
    }
}

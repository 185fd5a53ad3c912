//! The worker over memory ports: round trips, and every drop under its own counter.
#![expect(clippy::unwrap_used, reason = "helpers of tests")]

mod allocations;
mod common;
mod faults;
mod lives;
mod policies;
mod rfc4303;
mod sizes;

use common::*;
use culvert_packet::reason::DropReason;
use culvert_proto::sa::Action;

/// Offset of the ESP header in an untagged frame.
fn esp_at(kind: Kind) -> usize {
    14 + if kind.v6 { 40 } else { 20 } + if kind.encapsulated { 8 } else { 0 }
}

#[test]
fn what_was_sealed_opens_to_what_was_sent() {
    // RFC 4303 [1-both, 1-integrity-only, 2.1-unicast-lookup, 2.4-padding, 2.4-icv-aligned]
    for kind in Kind::all() {
        let (mut a, _) = worker(kind, false);
        let (mut b, _) = worker(kind, true);
        for (payload, vlans) in [
            (0, 0),
            (1, 0),
            (2, 1),
            (3, 2),
            (64, 0),
            (1399, 0),
            (1400, 0),
        ] {
            let clear = geneve(kind, payload, vlans);
            let sealed = through_outbound(&mut a, &clear)
                .unwrap_or_else(|| panic!("{kind:?} {payload} was not sealed"));
            assert!(sealed.len() >= clear.len() + 8 + 2 + 8, "{kind:?}");
            assert_eq!((sealed.len() - esp_at(kind) - 4 * vlans) % 4, 0);
            if !kind.v6 {
                let ip = 14 + 4 * vlans;
                assert_eq!(checksum(&sealed[ip..ip + 20]), 0, "IP checksum, {kind:?}");
            }
            let opened = through_inbound(&mut b, &sealed)
                .unwrap_or_else(|| panic!("{kind:?} {payload} was not opened"));
            assert_eq!(opened, clear, "{kind:?} {payload}");
        }
    }
}

#[test]
fn the_headers_keep_everything_but_length_protocol_and_checksum() {
    // RFC 4303 [2-protocol-50, 3.3-header-retained]
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let clear = geneve(kind, 100, 0);
    let sealed = through_outbound(&mut a, &clear).unwrap();
    assert_eq!(sealed[..16], clear[..16], "Ethernet, version, DSCP and ECN");
    assert_eq!(
        sealed[18..23],
        clear[18..23],
        "identification, fragment, TTL"
    );
    assert_eq!(sealed[23], 50);
    assert_eq!(sealed[26..34], clear[26..34], "addresses");
}

#[test]
fn sequence_numbers_count_from_one_and_are_the_iv() {
    // RFC 4303 [2.2-increment, 2.2-always-present, 3.3.3-first-is-one, 3.3.3-esn-halves]
    for kind in Kind::all() {
        let (mut a, _) = worker(kind, false);
        for number in 1..=3_u8 {
            let sealed = through_outbound(&mut a, &geneve(kind, 10, 0)).unwrap();
            let esp = &sealed[esp_at(kind)..];
            assert_eq!(esp[..4], SPI_AB.to_be_bytes());
            assert_eq!(esp[4..8], [0, 0, 0, number]);
            if kind.cipher.iv_length() > 0 {
                assert_eq!(esp[8..16], [0, 0, 0, 0, 0, 0, 0, number]);
            }
        }
    }
}

/// Opens `frame` at b and says under which reason it was dropped.
fn dropped(
    b: &mut MemoryWorker,
    handle: &culvert_datapath::worker::Handle,
    frame: &[u8],
) -> DropReason {
    let before: Vec<u64> = DropReason::ALL
        .iter()
        .map(|r| handle.counters().dropped(*r))
        .collect();
    assert_eq!(through_inbound(b, frame), None, "it was let in");
    let rose: Vec<_> = DropReason::ALL
        .iter()
        .zip(before)
        .filter(|(reason, before)| handle.counters().dropped(**reason) != *before)
        .map(|(reason, _)| *reason)
        .collect();
    assert_eq!(rose.len(), 1, "one counter rises, by one packet: {rose:?}");
    rose[0]
}

#[test]
fn every_flipped_bit_behind_the_ip_header_is_refused_and_the_window_stays() {
    // RFC 4303 [3.3.2.2-covered, 3.4.3-needs-integrity, 3.4.3-integrity-discarded, 3.4.3-moves-after]
    // RFC 4303 [3.4.3-same-number, 3.4.4.1-integrity-first, 3.4.4.2-discarded]
    for kind in Kind::all() {
        let (mut a, _) = worker(kind, false);
        let (mut b, handle) = worker(kind, true);
        let sealed = through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap();
        for bit in (esp_at(kind) * 8)..(sealed.len() * 8) {
            let mut damaged = sealed.clone();
            damaged[bit / 8] ^= 1 << (bit % 8);
            let reason = dropped(&mut b, &handle, &damaged);
            let expected: &[DropReason] = match bit / 8 - esp_at(kind) {
                0..4 => &[DropReason::UnknownSpi, DropReason::ReservedSpi],
                4..8 => &[DropReason::AuthenticationFailed, DropReason::TooOld],
                _ => &[DropReason::AuthenticationFailed],
            };
            assert!(expected.contains(&reason), "{kind:?} bit {bit}: {reason:?}");
        }
        assert!(
            through_inbound(&mut b, &sealed).is_some(),
            "the window moved for a forgery"
        );
    }
}

#[test]
fn a_frame_sent_again_is_replayed_and_an_old_one_too_old() {
    // RFC 4303 [3.2.1-synchronization, 3.4.3-anti-replay, 3.4.3-no-duplicate, 3.4.3-window]
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let (mut b, handle) = worker(kind, true);
    let sealed: Vec<_> = (0..100)
        .map(|_| through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap())
        .collect();
    assert!(through_inbound(&mut b, &sealed[0]).is_some());
    assert_eq!(dropped(&mut b, &handle, &sealed[0]), DropReason::Replayed);
    assert!(through_inbound(&mut b, &sealed[99]).is_some());
    assert_eq!(
        dropped(&mut b, &handle, &sealed[99 - 64]),
        DropReason::TooOld
    );
    assert!(through_inbound(&mut b, &sealed[99 - 63]).is_some());
}

#[test]
fn truncated_frames_are_dropped() {
    for kind in Kind::all() {
        let (mut a, _) = worker(kind, false);
        let (mut b, handle) = worker(kind, true);
        let sealed = through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap();
        for length in 14..sealed.len() {
            let reason = dropped(&mut b, &handle, &sealed[..length]);
            assert!(
                matches!(
                    reason,
                    DropReason::Malformed | DropReason::Truncated | DropReason::NotOurs
                ),
                "{kind:?} cut to {length}: {reason:?}"
            );
        }
        // Cut, and the IP header says so too.
        let at = esp_at(kind);
        for length in 0..8 + kind.cipher.iv_length() + 2 + kind.cipher.icv_length() {
            let mut frame = sealed[..at + length].to_vec();
            set_ip_length(&mut frame);
            let reason = dropped(&mut b, &handle, &frame);
            assert!(
                matches!(
                    reason,
                    DropReason::Truncated | DropReason::NotOurs | DropReason::Malformed
                ),
                "{kind:?} shortened to {length}: {reason:?}"
            );
        }
    }
}

fn set_ip_length(frame: &mut [u8]) {
    let length = frame.len();
    if frame[14] >> 4 == 4 {
        frame[16..18].copy_from_slice(&u16::try_from(length - 14).unwrap().to_be_bytes());
    } else {
        frame[18..20].copy_from_slice(&u16::try_from(length - 54).unwrap().to_be_bytes());
    }
}

#[test]
fn reserved_and_unknown_spis_are_dropped() {
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let (mut b, handle) = worker(kind, true);
    let sealed = through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap();
    // RFC 4303 [2.1-unicast-lookup, 3.4.2-no-sa-discarded]
    for (spi, reason) in [
        (0_u32, DropReason::ReservedSpi),
        (255, DropReason::ReservedSpi),
        (256, DropReason::UnknownSpi),
        (SPI_BA, DropReason::UnknownSpi),
    ] {
        let mut frame = sealed.clone();
        frame[34..38].copy_from_slice(&spi.to_be_bytes());
        assert_eq!(dropped(&mut b, &handle, &frame), reason, "SPI {spi:#x}");
    }
}

/// Seals `clear` (payload, pad, pad length, next header: all of it) by hand under a's key.
fn seal_by_hand(kind: Kind, number: u64, clear: &[u8]) -> Vec<u8> {
    let spec = &update(kind, false).add_sas[0];
    let (key, salt) = spec.keymat.bytes().split_last_chunk::<4>().unwrap();
    let aead = culvert_esp::aead::Aead::new(
        culvert_esp::Backend::RustCrypto,
        kind.cipher.algorithm(),
        key,
    )
    .unwrap();
    let iv = number.to_be_bytes();
    let nonce: [u8; 12] = [&salt[..], &iv].concat().try_into().unwrap();
    let mut aad = SPI_AB.to_be_bytes().to_vec();
    aad.extend(if kind.esn { &iv[..] } else { &iv[4..] });
    let mut text = clear.to_vec();
    let icv = aead.seal(nonce, &aad, &mut text).unwrap();
    let mut frame = geneve(kind, 0, 0);
    frame.truncate(34);
    frame[23] = 50;
    frame.extend(SPI_AB.to_be_bytes());
    frame.extend(&iv[4..]);
    frame.extend(iv);
    frame.extend(text);
    frame.extend(icv);
    set_ip_length(&mut frame);
    frame
}

fn datagram(source: u16, destination: u16) -> Vec<u8> {
    let mut datagram = Vec::new();
    datagram.extend(source.to_be_bytes());
    datagram.extend(destination.to_be_bytes());
    datagram.extend([0, 12, 0, 0, 1, 2, 3, 4]);
    datagram
}

#[test]
fn padding_next_header_and_policy_are_checked() {
    let kind = Kind::default();
    let (mut b, handle) = worker(kind, true);
    // RFC 4303 [2.4-pad-inspected, 3.4.4.1-pad-inspected, 2.6-dummy-59]
    let good = datagram(1000, 6081);
    let cases = [
        (
            [&good[..], &[2, 1, 2, 17]].concat(),
            DropReason::BadPad,
            "pad bytes",
        ),
        (
            [&good[..], &[1, 2, 200, 17]].concat(),
            DropReason::BadPad,
            "pad length",
        ),
        (
            [&good[..], &[1, 2, 2, 59]].concat(),
            DropReason::Dummy,
            "dummy",
        ),
        (
            [&good[..], &[1, 2, 2, 6]].concat(),
            DropReason::PolicyMismatch,
            "TCP",
        ),
        (
            [&datagram(1000, 6080)[..], &[1, 2, 2, 17]].concat(),
            DropReason::PolicyMismatch,
            "port",
        ),
        (
            vec![1, 2, 3, 4, 1, 2, 2, 17],
            DropReason::PolicyMismatch,
            "no UDP header",
        ),
    ];
    for (number, (clear, reason, what)) in (1..).zip(cases) {
        let frame = seal_by_hand(kind, number, &clear);
        assert_eq!(dropped(&mut b, &handle, &frame), reason, "{what}");
    }
    // Longer padding than needed is fine (RFC 4303 §2.4), and so is 6081 as the source port.
    for (number, ports) in [(50, (1000, 6081)), (51, (6081, 1000))] {
        let clear = [&datagram(ports.0, ports.1)[..], &[1, 2, 3, 4, 5, 6, 6, 17]].concat();
        assert!(through_inbound(&mut b, &seal_by_hand(kind, number, &clear)).is_some());
    }
}

#[test]
fn another_peers_address_does_not_pass_the_policy() {
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let (mut b, handle) = worker(kind, true);
    let mut sealed = through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap();
    // The source address is not authenticated by ESP; the policy is what holds.
    sealed[29] ^= 0x55;
    assert_eq!(
        dropped(&mut b, &handle, &sealed),
        DropReason::PolicyMismatch
    );
}

#[test]
fn encapsulation_must_be_the_sas() {
    for encapsulated in [false, true] {
        let kind = Kind {
            encapsulated,
            ..Kind::default()
        };
        let other = Kind {
            encapsulated: !encapsulated,
            ..kind
        };
        let (mut a, _) = worker(kind, false);
        let (mut b, handle) = worker(other, true);
        let sealed = through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap();
        assert_eq!(
            dropped(&mut b, &handle, &sealed),
            DropReason::WrongEncapsulation
        );
    }
}

#[test]
fn outbound_drops_have_their_reasons() {
    let kind = Kind::default();
    let mut without_sa = update(kind, false);
    without_sa.add_policies[0].action = Action::Protect {
        outbound: None,
        inbound: Vec::new(),
    };
    let (mut no_sa, no_sa_handle) = worker_with(without_sa);
    let (mut a, handle) = worker(kind, false);
    let clear = geneve(kind, 100, 0);
    let mut later = clear.clone();
    later[20..22].copy_from_slice(&[0, 10]);
    let mut first = clear.clone();
    first[20..22].copy_from_slice(&[0x20, 0]);
    let mut elsewhere = clear.clone();
    elsewhere[33] = 9;
    let mut other_port = clear.clone();
    other_port[36..38].copy_from_slice(&[0, 53]);
    // Seven bytes of UDP, and Ethernet's padding.
    let mut padded_stub = clear[..60].to_vec();
    padded_stub[16..18].copy_from_slice(&27_u16.to_be_bytes());
    let cases = [
        // Not of eight bytes: with it goes what came of its datagram before.
        (first, DropReason::FragmentMalformed),
        // RFC 4303 §3.3.1 [3.3.1-lookup]
        (elsewhere, DropReason::NoPolicy),
        (other_port, DropReason::NotOurs),
        (clear[..80].to_vec(), DropReason::Malformed),
        (padded_stub, DropReason::Malformed),
        (
            geneve(kind, 1500 - 28 - 16 - 18 + 1, 0),
            DropReason::TooLarge,
        ),
    ];
    assert_eq!(through_outbound(&mut a, &later), None);
    for (frame, reason) in cases {
        assert_eq!(through_outbound(&mut a, &frame), None);
        assert!(handle.counters().dropped(reason) > 0, "{reason:?}");
    }
    assert_eq!(handle.counters().dropped(DropReason::FragmentMalformed), 2);
    assert_eq!(through_outbound(&mut no_sa, &clear), None);
    assert_eq!(no_sa_handle.counters().dropped(DropReason::NoSa), 1);
}

#[test]
fn frames_are_never_lost() {
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let (mut b, _) = worker(kind, true);
    for round in 0..1000 {
        let clear = geneve(kind, round % 1400, 0);
        let Some(sealed) = through_outbound(&mut a, &clear) else {
            continue;
        };
        let _ = through_inbound(&mut b, &sealed);
        let _ = through_inbound(&mut b, &sealed);
    }
    assert_eq!(a.parts().2.free(), 256);
    assert_eq!(b.parts().2.free(), 256);
}

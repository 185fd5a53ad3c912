//! What RFC 4303 demands that no other test shows.

use super::*;

#[test]
fn padding_of_any_length_is_taken() {
    // RFC 4303 §2.4 [2.4-padding]: 0 to 255 bytes, as long as the trailer ends a 4-byte word.
    let kind = Kind::default();
    let (mut b, _) = worker(kind, true);
    for pad in (2..=254_u8).step_by(4) {
        let mut clear = datagram(1000, 6081);
        clear.extend(1..=pad);
        clear.extend([pad, 17]);
        let opened = through_inbound(&mut b, &seal_by_hand(kind, u64::from(pad), &clear));
        let opened = opened.unwrap_or_else(|| panic!("{pad} bytes of padding"));
        assert_eq!(opened[34..], datagram(1000, 6081));
    }
}

#[test]
fn a_dummy_may_hold_anything() {
    // RFC 4303 [2.6-dummy-discard, 3.4.4.2-dummy]: its payload need not be well-formed.
    let kind = Kind::default();
    let (mut b, handle) = worker(kind, true);
    for (number, payload) in (1..).zip([&[][..], &[0xa5], &[0xff; 1000]]) {
        let pad = (payload.len() + 2).wrapping_neg() % 4;
        let mut clear = payload.to_vec();
        clear.extend(&[1, 2, 3][..pad]);
        clear.extend([u8::try_from(pad).unwrap(), 59]);
        let frame = seal_by_hand(kind, number, &clear);
        assert_eq!(dropped(&mut b, &handle, &frame), DropReason::Dummy);
        // It is a packet like any other to the window.
        assert_eq!(dropped(&mut b, &handle, &frame), DropReason::Replayed);
    }
}

#[test]
fn a_replay_is_known_before_it_is_deciphered() {
    // RFC 4303 §3.4.3 [3.4.3-first-check]: or its wrong ICV would be seen first.
    let kind = Kind::default();
    let (mut a, _) = worker(kind, false);
    let (mut b, handle) = worker(kind, true);
    let mut sealed = through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap();
    assert!(through_inbound(&mut b, &sealed).is_some());
    *sealed.last_mut().unwrap() ^= 1;
    assert_eq!(dropped(&mut b, &handle, &sealed), DropReason::Replayed);
}

#[test]
fn only_what_is_encrypted_is_hidden() {
    // RFC 4303 §1 [1-both, 1-integrity-only]
    for kind in Kind::all() {
        let (mut a, _) = worker(kind, false);
        let clear = geneve(kind, 100, 0);
        let sealed = through_outbound(&mut a, &clear).unwrap();
        let payload = &clear[if kind.v6 { 54 } else { 34 }..];
        let text = &sealed[esp_at(kind) + 8 + kind.cipher.iv_length()..];
        assert_eq!(text.starts_with(payload), !kind.cipher.encrypts());
        assert!(kind.cipher.encrypts() || kind.cipher.name().contains("gmac"));
    }
}

#[test]
fn each_packet_opens_by_itself() {
    // RFC 4303 §3.2.1 [3.2.1-synchronization]: whatever overtook it or was lost, also if its IV is implicit.
    for kind in Kind::all() {
        let (mut a, _) = worker(kind, false);
        let (mut b, _) = worker(kind, true);
        let clear = geneve(kind, 20, 0);
        let sealed: Vec<_> = (0..10)
            .map(|_| through_outbound(&mut a, &clear).unwrap())
            .collect();
        for number in [9, 4, 0, 7, 3] {
            let opened = through_inbound(&mut b, &sealed[number]);
            assert_eq!(opened.as_ref(), Some(&clear), "{kind:?} {number}");
        }
    }
}

/// `frame`, which is whole, with the fields of the fragment at `offset` in words of eight bytes.
fn as_fragment(kind: Kind, frame: &[u8], number: u8, offset: u16, more: bool) -> Vec<u8> {
    let mut frame = frame.to_vec();
    if kind.v6 {
        let [high, low] = (offset << 3 | u16::from(more)).to_be_bytes();
        let next = std::mem::replace(&mut frame[20], 44);
        frame.splice(54..54, [next, 0, high, low, 0, 0, 0, number]);
        set_ip_length(&mut frame);
    } else {
        frame[18..20].copy_from_slice(&[0, number]);
        frame[20..22].copy_from_slice(&(offset | u16::from(more) << 13).to_be_bytes());
        frame[24..26].fill(0);
        let sum = checksum(&frame[14..34]);
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
    }
    frame
}

#[test]
fn a_fragment_is_never_opened() {
    const KEPT: u64 = culvert_datapath::sizes::reassembly::DATAGRAMS as u64;
    // RFC 4303 §3.4.1 [3.4.1-fragment-discarded]: an offset, or more to come. It waits for the others of its
    // datagram, and is discarded when it has to make room.
    for v6 in [false, true] {
        let kind = Kind {
            v6,
            ..Kind::default()
        };
        let (mut a, _) = worker(kind, false);
        let (mut b, handle) = worker(kind, true);
        let sealed = through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap();
        let forms = [(0, true), (1, true), (1, false)];
        for (number, (offset, more)) in (0..90).zip(forms.into_iter().cycle()) {
            let fragment = as_fragment(kind, &sealed, number, offset, more);
            let out = turn(&mut b, false, &fragment);
            assert_eq!(out, Out::default(), "{kind:?} {offset} {more}");
        }
        let counters = handle.counters();
        assert_eq!(counters.dropped(DropReason::FragmentIncomplete), 90 - KEPT);
        assert_eq!(through_inbound(&mut b, &sealed).map(|_| ()), Some(()));
    }
}

#[test]
fn what_is_a_fragment_still_when_put_together_is_discarded() {
    // RFC 4303 §3.4.1 [3.4.1-fragment-discarded]: IPv6 allows to write fragments of fragments.
    let kind = Kind {
        v6: true,
        ..Kind::default()
    };
    let (mut a, _) = worker(kind, false);
    let (mut b, handle) = worker(kind, true);
    let sealed = through_outbound(&mut a, &geneve(kind, 20, 0)).unwrap();
    let whole = as_fragment(kind, &sealed, 1, 0, true);
    let mut first = whole[..54 + 32].to_vec();
    let mut last = [&whole[..54], &whole[54 + 32..]].concat();
    for frame in [&mut first, &mut last] {
        set_ip_length(frame);
    }
    let first = as_fragment(kind, &first, 2, 0, true);
    let last = as_fragment(kind, &last, 2, 4, false);
    assert_eq!(turn(&mut b, false, &first), Out::default());
    assert_eq!(
        dropped(&mut b, &handle, &last),
        DropReason::FragmentMalformed
    );
}

//! Opening under every cipher: nothing forged or changed is let in nor moves the window, and what was sealed comes
//! out as it was, by [`seal`] or by a sealing of this target's own, which makes trailers that [`seal`] never does.
#![no_main]

use std::net::IpAddr;
use std::sync::atomic::Ordering;

use culvert_esp::aead::Aead;
use culvert_esp::buffer::HeapFrame;
use culvert_esp::open::open;
use culvert_esp::seal::{plan, seal};
use culvert_esp::sequence::Sequence;
use culvert_esp::{Backend, InboundSa, OutboundSa};
use culvert_packet::headers::{Fragment, Headers, Kind, Version, classify, walk};
use culvert_packet::reason::DropReason;
use culvert_proto::sa::{
    Cipher, Direction, Keymat, Lifetime, SaId, SaSpec, Spi, StateRef, UdpEncapsulation,
};
use culvert_state::Words;
use culvert_state::layout::{inbound, outbound};
use libfuzzer_sys::fuzz_target;

const WINDOW: u32 = 64;
const SPI: u32 = 0x1001;
const KEY: u8 = 7;

/// What the input's first bytes choose.
#[derive(Clone, Copy, Debug)]
struct Setup {
    cipher: Cipher,
    esn: bool,
    encapsulated: bool,
    v6: bool,
    tfc: u16,
    /// The highest number received so far, and that of the packet, near it.
    highest: u64,
    number: u64,
}

impl Setup {
    fn read([cipher, flags, distance, tfc]: [u8; 4]) -> Self {
        let esn = flags & 1 != 0;
        let highest = match (flags >> 3 & 3, esn) {
            (0 | 1, _) => 0,
            (2, _) => 1000,
            (_, true) => (3 << 32) - 20,
            (_, false) => u64::from(u32::MAX) - 128,
        };
        Self {
            cipher: Cipher::ALL[usize::from(cipher) % Cipher::ALL.len()],
            esn,
            encapsulated: flags & 2 != 0,
            v6: flags & 4 != 0,
            tfc: u16::from(tfc) * 16,
            highest,
            number: highest.saturating_add_signed(i64::from(distance.cast_signed())),
        }
    }

    fn spec(&self, direction: Direction) -> SaSpec {
        let [source, destination] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        SaSpec {
            id: SaId {
                direction,
                spi: Spi::new(SPI).unwrap(),
                destination,
            },
            source,
            cipher: self.cipher,
            keymat: Keymat::new(vec![KEY; self.cipher.keymat_length()]),
            esn: self.esn,
            replay_window: WINDOW,
            encapsulation: self.encapsulated.then_some(UdpEncapsulation {
                source_port: 4500,
                destination_port: 4500,
                keepalive: 20,
            }),
            tfc: self.tfc,
            lifetime: Lifetime::default(),
            state: StateRef {
                offset: 0,
                words: 0,
            },
        }
    }

    fn inbound(&self) -> InboundSa {
        let words = Words::on_heap(inbound::words(WINDOW));
        words[inbound::HIGHEST].store(self.highest, Ordering::Relaxed);
        InboundSa::new(&self.spec(Direction::In), words, Backend::RustCrypto).unwrap()
    }

    fn outbound(&self, tfc: u16) -> OutboundSa {
        let mut spec = self.spec(Direction::Out);
        spec.tfc = tfc;
        OutboundSa::new(&spec, Words::on_heap(outbound::WORDS), Backend::RustCrypto).unwrap()
    }

    /// Whether the window takes the number.
    fn is_late(&self) -> bool {
        self.number == 0 || self.number + u64::from(WINDOW) <= self.highest
    }

    /// A frame with a packet whose `text` is protected, trailer and all.
    fn sealed(&self, text: &[u8]) -> Vec<u8> {
        let key = vec![KEY; self.cipher.key_length()];
        let aead = Aead::new(Backend::RustCrypto, self.cipher.algorithm(), &key).unwrap();
        let number = self.number.to_be_bytes();
        // An explicit IV may be anything.
        let explicit = self.cipher.iv_length() > 0;
        let iv = if explicit {
            number.map(|byte| !byte)
        } else {
            number
        };
        let mut nonce = [KEY; 12];
        nonce[4..].copy_from_slice(&iv);
        let iv = &iv[..self.cipher.iv_length()];
        let spi = &SPI.to_be_bytes()[..];
        let mut aad = [spi, &number[if self.esn { 0 } else { 4 }..]].concat();
        let mut body = text.to_vec();
        let icv = if self.cipher.encrypts() {
            aead.seal(nonce, &aad, &mut body)
        } else {
            aad.extend([iv, text].concat());
            aead.seal(nonce, &aad, &mut [])
        };
        let icv = &icv.unwrap()[..self.cipher.icv_length()];
        self.frame(&[spi, &number[4..], iv, &body, icv].concat())
    }

    /// A frame with that as its ESP packet.
    fn frame(&self, esp: &[u8]) -> Vec<u8> {
        let mut rest = esp.to_vec();
        if self.encapsulated {
            let length = u16::try_from(8 + esp.len()).unwrap().to_be_bytes();
            let ports = 4500_u16.to_be_bytes();
            rest = [&ports[..], &ports, &length, &[0, 0], esp].concat();
        }
        let protocol = if self.encapsulated { 17 } else { 50 };
        let length = u16::try_from(rest.len()).unwrap();
        let mut frame = vec![2; 12];
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend(length.to_be_bytes());
            frame.extend([protocol, 64]);
            frame.extend([1; 32]);
        } else {
            frame.extend([8, 0, 0x45, 0]);
            frame.extend((length + 20).to_be_bytes());
            frame.extend([0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
        }
        frame.extend(rest);
        frame
    }

    /// Where the ESP header is in what it seals.
    fn esp(&self, headers: &Headers) -> usize {
        headers.transport + if self.encapsulated { 8 } else { 0 }
    }
}

/// Where the UDP header is in a payload that begins with `next`.
fn udp_header(next: u8, payload: &[u8], options: usize) -> Option<usize> {
    match next {
        17 if payload.len() >= 8 => Some(0),
        60 if options > 0 => {
            let length = (usize::from(*payload.get(1)?) + 1) * 8;
            let behind = payload.get(length..)?;
            udp_header(payload[0], behind, options - 1).map(|at| length + at)
        }
        _ => None,
    }
}

/// What should come out of a payload: no TFC padding, no UDP checksum that cannot be right.
fn expected(setup: &Setup, v4: bool, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut expected = payload.to_vec();
    if let Some(udp) = udp_header(next, payload, 4) {
        let length = u16::from_be_bytes([payload[udp + 4], payload[udp + 5]]);
        if length >= 8 {
            expected.truncate(udp + usize::from(length));
        }
        if setup.encapsulated && v4 {
            expected[udp + 6..udp + 8].fill(0);
        }
    }
    expected
}

/// What should come of a protected text: next header and payload.
fn unpadded(text: &[u8]) -> Result<(u8, &[u8]), DropReason> {
    let Some((rest, &[pad, next])) = text.split_last_chunk() else {
        return Err(DropReason::Truncated);
    };
    let payload = rest.len().checked_sub(usize::from(pad));
    let (payload, padding) = rest.split_at(payload.ok_or(DropReason::BadPad)?);
    if !(1..=pad).eq(padding.iter().copied()) {
        return Err(DropReason::BadPad);
    }
    if next == 59 {
        return Err(DropReason::Dummy);
    }
    Ok((next, payload))
}

/// Where the frame ends by its IP header.
fn length(frame: &[u8], headers: &Headers) -> usize {
    let (at, header) = match headers.version {
        Version::V4 => (2, 0),
        Version::V6 => (4, 40),
    };
    let at = headers.ip + at;
    headers.ip + header + usize::from(u16::from_be_bytes([frame[at], frame[at + 1]]))
}

/// The sum of an IPv4 header that its checksum makes 0xffff.
fn sum(header: &[u8]) -> u32 {
    let words = header.as_chunks().0.iter();
    let sum: u32 = words.map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    let sum = (sum >> 16) + (sum & 0xffff);
    (sum >> 16) + (sum & 0xffff)
}

/// Opens a frame that nobody sealed.
fn forged(setup: &Setup, frame: &[u8]) {
    let Ok(headers) = walk(frame) else {
        return;
    };
    let sa = setup.inbound();
    let encapsulated = match classify(frame, &headers) {
        Kind::Esp(_) => false,
        Kind::EspInUdp(_) => true,
        _ => return,
    };
    let opened = open(
        &sa,
        encapsulated,
        &headers,
        &mut HeapFrame::new(0, frame, 0),
    );
    assert!(opened.is_err(), "a forgery was let in");
    assert_eq!(
        sa.highest(),
        setup.highest,
        "the window moved for a forgery"
    );
}

/// Opens a genuine packet with one bit changed, `at` a place behind the SPI.
fn changed(setup: &Setup, headers: &Headers, frame: &[u8], at: usize) {
    let mut frame = HeapFrame::new(0, frame, 0);
    let start = setup.esp(headers) + 4;
    let bits = (headers.end - start) * 8;
    let bit = start * 8 + at % bits;
    frame.bytes_mut()[bit / 8] ^= 1 << (bit % 8);
    let sa = setup.inbound();
    let opened = open(&sa, setup.encapsulated, headers, &mut frame);
    assert!(opened.is_err(), "bit {bit} does not count");
    assert_eq!(
        sa.highest(),
        setup.highest,
        "the window moved for bit {bit}"
    );
}

/// Opens a genuine packet with any trailer.
fn any_trailer(setup: &Setup, text: &[u8]) {
    let frame = setup.sealed(text);
    let headers = walk(&frame[..]).unwrap();
    let sa = setup.inbound();
    let mut memory = HeapFrame::new(0, &frame, 0);
    let opened = open(&sa, setup.encapsulated, &headers, &mut memory);
    if text.len() < 2 || setup.is_late() {
        let reason = if text.len() < 2 {
            DropReason::Truncated
        } else {
            DropReason::TooOld
        };
        assert_eq!(opened, Err(reason));
        assert_eq!(sa.highest(), setup.highest);
        return;
    }
    assert_eq!(sa.highest(), setup.highest.max(setup.number));
    match (unpadded(text), opened) {
        (Ok((next, payload)), Ok(opened)) => {
            let expected = expected(setup, !setup.v6, next, payload);
            assert_eq!(&memory.bytes()[headers.transport..], &expected[..]);
            assert_eq!(
                (opened.length, opened.sequence),
                (expected.len(), setup.number)
            );
            let udp = udp_header(next, payload, 4).map(|at| at + headers.transport);
            assert_eq!(opened.udp, udp);
            assert_eq!(memory.bytes()[headers.protocol_at], next);
            assert_eq!(length(memory.bytes(), &headers), memory.bytes().len());
        }
        (Err(reason), opened) => assert_eq!(opened, Err(reason)),
        (_, Err(reason)) => panic!("{reason:?}"),
    }
    let mut again = HeapFrame::new(0, &frame, 0);
    let replayed = open(&sa, setup.encapsulated, &headers, &mut again);
    assert_eq!(replayed, Err(DropReason::Replayed));
    changed(
        setup,
        &headers,
        &frame,
        text.len() * 31 + usize::from(text[0]),
    );
}

/// Seals a frame and opens it.
fn round_trip(setup: &Setup, frame: &[u8]) {
    const MTU: usize = 1500;
    let Ok(before) = walk(frame) else {
        return;
    };
    if before.fragment != Fragment::Whole || before.end > frame.len() {
        return;
    }
    // What has no whole UDP header is never sealed: with TFC padding behind it, it would seem to have one.
    if before.transport > before.end
        || classify(&frame[..before.end], &before) == Kind::Truncated
    {
        return;
    }
    let out = setup.outbound(setup.tfc);
    let planned = plan(&out, &before, MTU);
    let shortest = plan(&setup.outbound(0), &before, MTU).length;
    assert!(planned.length == shortest || (shortest..=MTU).contains(&planned.length));
    let mut memory = HeapFrame::new(out.front(), frame, planned.length);
    let sequence = Sequence::for_test_vector(setup.number);
    let sealed = seal(&out, sequence, &planned, &before, &mut memory);
    let Some(payload) = frame[..before.end].get(before.inner..) else {
        assert_eq!(sealed, Err(DropReason::Malformed));
        return;
    };
    assert_eq!(sealed, Ok(payload.len()));
    let sealed = memory.bytes().to_vec();
    let headers = walk(&sealed[..]).unwrap();
    assert_eq!(
        (headers.end, headers.end - headers.ip),
        (sealed.len(), planned.length)
    );
    let kind = match setup.encapsulated {
        false => Kind::Esp(SPI),
        true => Kind::EspInUdp(SPI),
    };
    assert_eq!(classify(&sealed[..], &headers), kind);
    let sa = setup.inbound();
    let opened = open(&sa, setup.encapsulated, &headers, &mut memory);
    let next = before.inner_protocol;
    if setup.is_late() || next == 59 {
        let reason = if setup.is_late() {
            DropReason::TooOld
        } else {
            DropReason::Dummy
        };
        assert_eq!(opened, Err(reason));
        return;
    }
    let opened = opened.unwrap();
    let v4 = before.version == Version::V4;
    let mut expected = [&frame[..before.inner], &expected(setup, v4, next, payload)].concat();
    let mut clear = memory.bytes().to_vec();
    assert_eq!(opened.length, clear.len() - before.inner);
    // What has no length of its own, or one that is too long, keeps its TFC padding.
    let tfc = clear.split_off(expected.len());
    assert!(tfc.iter().all(|byte| *byte == 0));
    assert!(tfc.is_empty() || payload.len() + tfc.len() <= usize::from(setup.tfc));
    assert_eq!(length(&clear, &before), before.inner + opened.length);
    if v4 {
        // A checksum that was right is right again, and a wrong one is as wrong.
        let ip = before.ip..before.ip + 20;
        assert_eq!(sum(&clear[ip.clone()]), sum(&expected[ip]));
        expected[before.ip + 10..before.ip + 12]
            .copy_from_slice(&clear[before.ip + 10..before.ip + 12]);
    }
    let at = before.ip + if v4 { 2 } else { 4 };
    expected[at..at + 2].copy_from_slice(&clear[at..at + 2]);
    assert_eq!(clear, expected);
    changed(setup, &headers, &sealed, frame.len() * 31);
}

// What to do, the setup, and a frame or text.
fuzz_target!(|input: &[u8]| {
    let Some(([what, setup @ ..], rest)) = input.split_first_chunk::<5>() else {
        return;
    };
    let setup = Setup::read(*setup);
    match what % 3 {
        _ if rest.len() > 9000 => {}
        0 => forged(&setup, rest),
        1 => any_trailer(&setup, rest),
        _ => round_trip(&setup, rest),
    }
});

//! Whole ESP packets: draft-mcgrew-gcm-test-01 for AES-GCM and AES-GMAC, RFC 7634 for ChaCha20-Poly1305.
//!
//! The vectors have IVs of their own choice, where [`seal`] takes the sequence number (RFC 4106 §3.1 leaves that
//! to the sender). So they are held against the AEADs both ways, and as packets against [`open`](culvert_esp::open).
//! What [`seal`] makes, and what the vectors have no packets for (implicit IVs, for which RFC 8750 has no vectors;
//! GMAC with ESN or longer keys), is held against packets put together here by the RFCs' text, with the vectors'
//! keys and payloads.

use std::sync::atomic::Ordering;

use culvert_esp::buffer::HeapFrame;
use culvert_esp::open::{Opened, open};
use culvert_esp::seal::{plan, seal};
use culvert_esp::sequence::Sequence;
use culvert_esp::{
    Backend, ESP_HEADER, InboundSa, MAX_HEADROOM, MAX_ICV, MAX_IV, MAX_TAILROOM, OutboundSa,
    TRAILER,
};
use culvert_packet::headers::{ESP, walk};
use culvert_packet::reason::DropReason;
use culvert_proto::sa::{
    Algorithm, Cipher, Direction, Keymat, Lifetime, SALT_LENGTH, SaId, SaSpec, Spi, StateRef,
};
use culvert_state::Words;
use culvert_state::layout::{inbound, outbound};

use crate::records::{Record, parse};
use crate::{Case, ciphers, report};

/// Packets in the replay windows.
const WINDOW: u32 = 64;
/// Sequence numbers of more bits are refused: see the replay window's `mark`.
const SEQUENCE_BITS: u32 = 51;
/// Length of the Ethernet header.
const ETHERNET: usize = 14;
/// Length of the IP header.
const IP: usize = 20;

/// An ESP packet, and all that it was made from.
struct Vector {
    name: String,
    algorithm: Algorithm,
    encrypts: bool,
    key: Vec<u8>,
    nonce: [u8; 12],
    spi: u32,
    sequence: u64,
    esn: bool,
    /// What is protected: payload, padding, its length, next header.
    clear: Vec<u8>,
    /// The AAD as the vector spells it out.
    aad: Vec<u8>,
    /// The ESP packet, with the whole ICV.
    packet: Vec<u8>,
}

impl Vector {
    /// The vector of `record`, whose packet has `front` bytes of other headers in front of ESP.
    fn new(record: &Record, number: usize, front: usize) -> Self {
        let kind = record.text("algorithm");
        let key = record.bytes("key");
        let sequence = record.bytes("seq");
        let aad = record.bytes("aad");
        let encrypts = kind != "AES-GMAC-ESP";
        let number_of = |bytes: &[u8]| {
            bytes
                .iter()
                .fold(0, |number, byte| number << 8 | u64::from(*byte))
        };
        Self {
            name: format!("case {number}"),
            algorithm: match (kind, key.len()) {
                ("CHACHA20-POLY1305-ESP", _) => Algorithm::ChaCha20Poly1305,
                (_, 16) => Algorithm::Aes128Gcm,
                (_, 24) => Algorithm::Aes192Gcm,
                _ => Algorithm::Aes256Gcm,
            },
            encrypts,
            key,
            nonce: record.bytes("nonce").try_into().unwrap(),
            spi: number_of(&record.bytes("spi")).try_into().unwrap(),
            sequence: number_of(&sequence),
            esn: sequence.len() == 8,
            clear: if encrypts {
                record.bytes("plaintext")
            } else {
                aad[4 + sequence.len() + MAX_IV..].to_vec()
            },
            aad,
            packet: record.bytes("packet").split_off(front),
        }
    }

    fn iv(&self) -> [u8; MAX_IV] {
        self.nonce[SALT_LENGTH..].try_into().unwrap()
    }

    /// Payload and next header (RFC 4303 §2.4 to §2.6).
    fn payload(&self) -> (&[u8], u8) {
        let (clear, &[pad, next]) = self.clear.split_last_chunk::<TRAILER>().unwrap();
        (&clear[..clear.len() - usize::from(pad)], next)
    }

    /// The vector's own, as a case of the AEAD.
    fn case(&self, cipher: Cipher) -> Case {
        let icv = self.packet.len() - MAX_ICV;
        let clear = if self.encrypts { &self.clear[..] } else { &[] };
        Case {
            name: self.name.clone(),
            key: self.key.clone(),
            nonce: self.nonce,
            aad: self.aad.clone(),
            clear: Some(clear.to_vec()),
            sealed: self.packet[icv - clear.len()..icv].to_vec(),
            icv: self.packet[icv..][..cipher.icv_length()].to_vec(),
        }
    }

    /// The vector's packet, with as much of the ICV as `cipher` has (RFC 4106 §6).
    fn shortened(&self, cipher: Cipher) -> &[u8] {
        &self.packet[..self.packet.len() - MAX_ICV + cipher.icv_length()]
    }

    /// The ESP packet that the RFCs' text makes of what the vector protects, under `cipher`, `number` and `iv`:
    /// RFC 4106 §3 to §5, RFC 4543 §3, RFC 7634 §2, RFC 8750 §4.
    fn compose(
        &self,
        cipher: Cipher,
        backend: Backend,
        number: Number,
        iv: [u8; MAX_IV],
    ) -> Vec<u8> {
        let spi = self.spi().get().to_be_bytes();
        let long = number.sequence.to_be_bytes();
        let explicit = &iv[..cipher.iv_length()];
        let mut packet = [&spi[..], &long[4..], explicit].concat();
        let mut aad = [&spi[..], if number.esn { &long } else { &long[4..] }].concat();
        let mut text = self.clear.clone();
        if !cipher.encrypts() {
            aad.extend(explicit);
            aad.append(&mut text);
            packet.extend(&self.clear);
        }
        let case = Case {
            name: self.name.clone(),
            key: self.key.clone(),
            nonce: [&self.nonce[..SALT_LENGTH], &iv]
                .concat()
                .try_into()
                .unwrap(),
            aad,
            clear: None,
            sealed: Vec::new(),
            icv: vec![0; cipher.icv_length()],
        };
        let (sealed, icv) = case.seal(&case.aead(cipher.algorithm(), backend), &text);
        packet.extend(sealed);
        packet.extend(icv);
        packet
    }

    /// The vector's SPI, or another one for a reserved one.
    fn spi(&self) -> Spi {
        Spi::new(self.spi).unwrap_or(Spi::new(256).unwrap())
    }

    fn spec(&self, direction: Direction, cipher: Cipher, esn: bool) -> SaSpec {
        SaSpec {
            id: SaId {
                direction,
                spi: self.spi(),
                destination: [203, 0, 113, 5].into(),
            },
            source: [203, 0, 113, 153].into(),
            cipher,
            keymat: Keymat::new([&self.key[..], &self.nonce[..SALT_LENGTH]].concat()),
            esn,
            replay_window: WINDOW,
            encapsulation: None,
            tfc: 0,
            lifetime: Lifetime::default(),
            state: StateRef {
                offset: 0,
                words: 0,
            },
        }
    }

    /// The SA that the vector's packets come under, where the one before `number` was the last.
    fn inbound(&self, cipher: Cipher, backend: Backend, number: Number) -> InboundSa {
        let spec = self.spec(Direction::In, cipher, number.esn);
        let words = Words::on_heap(inbound::words(WINDOW));
        words[inbound::HIGHEST].store(number.sequence - 1, Ordering::Relaxed);
        InboundSa::new(&spec, words, backend).unwrap()
    }

    /// Asserts that `packet` opens to the vector's payload.
    fn opens(&self, sa: &InboundSa, number: Number, packet: &[u8]) {
        let name = &self.name;
        let (payload, next) = self.payload();
        let (opened, frame) = receive(sa, packet).unwrap();
        let expected = Opened {
            length: payload.len(),
            udp: None,
            sequence: number.sequence,
        };
        assert_eq!(opened, expected, "{name}");
        assert_eq!(frame, framed(next, payload), "{name}");
        assert_eq!(sa.highest(), number.sequence, "{name}");
    }

    /// Asserts that `packet` does not open with any one bit behind the SPI flipped, and that the window stays
    /// where it is; says how many bits there are.
    fn refuses_flips(&self, sa: &InboundSa, packet: &[u8]) -> usize {
        let before = sa.highest();
        let bits = 4 * 8..packet.len() * 8;
        for bit in bits.clone() {
            let mut packet = packet.to_vec();
            packet[bit / 8] ^= 1 << (bit % 8);
            let opened = receive(sa, &packet).map(|(opened, _)| opened);
            assert!(opened.is_err(), "{}, bit {bit}: {opened:?}", self.name);
            assert_eq!(sa.highest(), before, "{}, bit {bit}", self.name);
        }
        bits.len()
    }
}

/// A sequence number, and whether all of it counts.
#[derive(Clone, Copy)]
struct Number {
    sequence: u64,
    esn: bool,
}

/// An Ethernet frame with `payload` in an IP packet: the addresses of RFC 7634's, and all else that its header says.
fn framed(protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(IP + payload.len()).unwrap();
    let mut ip = vec![0x45, 0];
    ip.extend(length.to_be_bytes());
    ip.extend([0x23, 0x45, 0, 0, 0x40, protocol, 0, 0]);
    ip.extend([203, 0, 113, 153, 203, 0, 113, 5]);
    // RFC 1071.
    let words = ip
        .chunks(2)
        .map(|word| u32::from(word[0]) << 8 | u32::from(word[1]));
    let sum: u32 = words.sum();
    let sum = !u16::try_from((sum & 0xffff) + (sum >> 16)).unwrap();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    [&[2; 12][..], &[0x08, 0x00], &ip, payload].concat()
}

/// Opens an ESP packet that comes in a frame; what came out, and the frame.
fn receive(sa: &InboundSa, packet: &[u8]) -> Result<(Opened, Vec<u8>), DropReason> {
    let mut frame = HeapFrame::new(0, &framed(ESP, packet), 0);
    let headers = walk(frame.bytes()).unwrap();
    let opened = open(sa, false, &headers, &mut frame)?;
    Ok((opened, frame.bytes().to_vec()))
}

/// Seals a payload that goes in a frame; the frame.
fn send(sa: &OutboundSa, number: Number, (payload, next): (&[u8], u8)) -> Vec<u8> {
    let mut frame = HeapFrame::new(MAX_HEADROOM, &framed(next, payload), MAX_TAILROOM);
    let headers = walk(frame.bytes()).unwrap();
    let plan = plan(sa, &headers, 1500);
    let sequence = Sequence::for_test_vector(number.sequence);
    let sealed = seal(sa, sequence, &plan, &headers, &mut frame);
    assert_eq!(sealed, Ok(payload.len()));
    frame.bytes().to_vec()
}

/// The 17 cases of the draft.
fn draft() -> Vec<Vector> {
    let records = parse(include_str!("mcgrew.txt"));
    let vectors = records.iter().zip(1..);
    vectors
        .map(|(record, number)| Vector::new(record, number, 0))
        .collect()
}

/// The two records of RFC 7634: the ESP example and the IKEv2 example.
fn rfc_7634() -> [Record; 2] {
    let records: Result<[Record; 2], _> = parse(include_str!("rfc7634.txt")).try_into();
    records.ok().unwrap()
}

/// How many vectors a test has run.
#[derive(Default)]
struct Counts {
    /// As cases of the AEAD.
    aead: usize,
    /// As packets.
    packets: usize,
    /// As packets, but for their SPI or sequence number, which no SA gets to.
    moved: usize,
    /// With one bit flipped.
    flipped: usize,
}

/// Runs `vector` under `cipher`, which is its own but for the length of the ICV.
fn run(vector: &Vector, cipher: Cipher, backend: Backend, counts: &mut Counts) {
    let sequence = vector.sequence.to_be_bytes();
    let spelled = if vector.esn {
        &sequence
    } else {
        &sequence[4..]
    };
    let spi = vector.spi.to_be_bytes();
    assert!(vector.aad.starts_with(&[&spi, spelled].concat()));
    let front = [&spi[..], &sequence[4..], &vector.iv()].concat();
    assert!(vector.packet.starts_with(&front));

    let case = vector.case(cipher);
    let aead = case.aead(cipher.algorithm(), backend);
    case.agrees(&aead);
    counts.flipped += case.refuses_flips(&aead);
    counts.aead += 1;

    let number = Number {
        sequence: vector.sequence,
        esn: vector.esn,
    };
    let packet = vector.shortened(cipher);
    let reserved = Spi::new(vector.spi).is_err();
    if !reserved && number.sequence >> SEQUENCE_BITS == 0 {
        let sa = vector.inbound(cipher, backend, number);
        counts.flipped += vector.refuses_flips(&sa, packet);
        vector.opens(&sa, number, packet);
        let again = receive(&sa, packet).map(|(opened, _)| opened);
        assert_eq!(again, Err(DropReason::Replayed), "{}", vector.name);
        counts.packets += 1;
        return;
    }
    // No SA has the packet's SPI (RFC 4303 §2.1), or none gets to its sequence number: the high half is cut
    // to what the window takes. Neither is in the ciphertext, so that the packet differs in that and the ICV.
    if !reserved {
        let sa = vector.inbound(cipher, backend, number);
        let opened = receive(&sa, packet).map(|(opened, _)| opened);
        assert_eq!(opened, Err(DropReason::TooOld), "{}", vector.name);
    }
    let number = Number {
        sequence: number.sequence & ((1 << SEQUENCE_BITS) - 1),
        ..number
    };
    let moved = vector.compose(cipher, backend, number, vector.iv());
    let icv = moved.len() - cipher.icv_length();
    assert_eq!(moved[4..icv], packet[4..icv], "{}", vector.name);
    let sa = vector.inbound(cipher, backend, number);
    vector.opens(&sa, number, &moved);
    counts.moved += 1;
}

#[test]
fn draft_mcgrew_gcm_test_01() {
    // RFC 4303 §1 [1-both, 1-integrity-only]
    let vectors = draft();
    assert_eq!(vectors.len(), 17);
    for &backend in Backend::ALL {
        for cipher in ciphers(backend).filter(|cipher| cipher.iv_length() > 0) {
            let mut counts = Counts::default();
            for vector in vectors.iter().filter(|vector| {
                (vector.algorithm, vector.encrypts) == (cipher.algorithm(), cipher.encrypts())
            }) {
                run(vector, cipher, backend, &mut counts);
            }
            let (aead, packets, moved) = match (cipher.algorithm(), cipher.encrypts()) {
                (Algorithm::Aes128Gcm, true) => (11, 4, 7),
                (Algorithm::Aes192Gcm, true) => (1, 1, 0),
                (Algorithm::Aes256Gcm, true) => (4, 1, 3),
                (Algorithm::Aes128Gcm, false) => (1, 1, 0),
                // Of these it has none.
                _ => continue,
            };
            show("draft-mcgrew-gcm-test-01", cipher, backend, &counts);
            let got = (counts.aead, counts.packets, counts.moved);
            assert_eq!(got, (aead, packets, moved), "{cipher}");
        }
    }
}

fn show(set: &str, cipher: Cipher, backend: Backend, counts: &Counts) {
    let counts = [
        (counts.aead, "sealed and opened by the AEAD"),
        (counts.packets, "opened as packets"),
        (
            counts.moved,
            "with another SPI or high half of the sequence number",
        ),
        (counts.flipped, "bits flipped"),
    ];
    report(set, cipher, backend, &counts);
}

#[test]
fn rfc_7634_appendix_a() {
    // RFC 4303 §1 [1-both]
    let cipher = Cipher::ChaCha20Poly1305;
    let [esp, _] = rfc_7634();
    let vector = Vector::new(&esp, 1, IP);
    assert_eq!(vector.payload(), (&esp.bytes("source")[..], 4));
    // The packet is the RFC's from its IP header on.
    let frame = framed(ESP, &vector.packet);
    assert_eq!(frame[ETHERNET..], esp.bytes("packet"));
    for &backend in Backend::ALL {
        let mut counts = Counts::default();
        run(&vector, cipher, backend, &mut counts);
        show("RFC 7634 appendix A", cipher, backend, &counts);
        assert_eq!((counts.aead, counts.packets), (1, 1));
    }
}

#[test]
fn rfc_7634_appendix_b() {
    // An IKE message is not Culvert's to make, but the AEAD is the same.
    let cipher = Cipher::ChaCha20Poly1305;
    let [_, ike] = rfc_7634();
    let nonce: [u8; 12] = ike.bytes("nonce").try_into().unwrap();
    let aad = ike.bytes("aad");
    let message = ike.bytes("message");
    let front = [&aad[..], &nonce[SALT_LENGTH..]].concat();
    assert!(message.starts_with(&front));
    let icv = message.len() - MAX_ICV;
    let case = Case {
        name: "appendix B".to_owned(),
        key: ike.bytes("key"),
        nonce,
        aad,
        clear: Some(ike.bytes("plaintext")),
        sealed: message[front.len()..icv].to_vec(),
        icv: message[icv..].to_vec(),
    };
    for &backend in Backend::ALL {
        let aead = case.aead(cipher.algorithm(), backend);
        case.agrees(&aead);
        let flipped = case.refuses_flips(&aead);
        let counts = [(1, "good"), (flipped, "bits of ICVs flipped")];
        report("RFC 7634 appendix B", cipher, backend, &counts);
    }
}

#[test]
fn what_seal_makes_is_what_the_rfcs_say() {
    // RFC 4303 [1-both, 1-integrity-only, 2.2-always-present, 2.3-alignment, 2.4-pad-bytes, 3.3.2.2-covered]
    let mut vectors = draft();
    vectors.push(Vector::new(&rfc_7634()[0], 18, IP));
    for &backend in Backend::ALL {
        for cipher in ciphers(backend) {
            let (mut packets, mut flipped) = (0, 0);
            for vector in vectors
                .iter()
                .filter(|vector| vector.algorithm == cipher.algorithm())
            {
                for number in [
                    (1, false),
                    (0xffff_ffff, false),
                    (1, true),
                    (0x7_6543_0000_0000, true),
                ]
                .map(|(sequence, esn)| Number { sequence, esn })
                {
                    let iv = number.sequence.to_be_bytes();
                    let composed = vector.compose(cipher, backend, number, iv);
                    if let Some(name) = cipher.name().strip_suffix("iiv") {
                        // RFC 8750 §4: with the IV left out, all else is as if it were the sequence number.
                        let explicit = Cipher::from_name(name).unwrap();
                        let mut long = vector.compose(explicit, backend, number, iv);
                        let left_out = long.drain(ESP_HEADER..ESP_HEADER + MAX_IV);
                        assert_eq!(left_out.as_slice(), iv);
                        drop(left_out);
                        assert_eq!(composed, long);
                    }

                    let spec = vector.spec(Direction::Out, cipher, number.esn);
                    let words = Words::on_heap(outbound::WORDS);
                    let sa = OutboundSa::new(&spec, words, backend).unwrap();
                    let sealed = send(&sa, number, vector.payload());
                    assert_eq!(sealed, framed(ESP, &composed), "{cipher}, {}", vector.name);

                    let sa = vector.inbound(cipher, backend, number);
                    flipped += vector.refuses_flips(&sa, &composed);
                    vector.opens(&sa, number, &composed);
                    packets += 1;
                }
            }
            let counts = [
                (packets, "sealed and opened as packets"),
                (flipped, "bits flipped"),
            ];
            report("By the RFCs' text", cipher, backend, &counts);
            assert!(packets >= 4, "{cipher}: {packets} packets");
        }
    }
}

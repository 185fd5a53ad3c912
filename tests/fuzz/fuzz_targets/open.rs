//! Opening arbitrary frames under a known SA: no panic, nothing let in, and the window stays. A frame that
//! begins with 0 is sealed first, under a number that the input gives, so that what comes after authentication
//! is reached, too.
#![no_main]

use std::cell::RefCell;
use std::net::IpAddr;

use culvert_esp::aead::Aead;
use culvert_esp::buffer::HeapFrame;
use culvert_esp::open::open;
use culvert_esp::sa::Selector;
use culvert_esp::{Backend, InboundSa};
use culvert_packet::headers::{Kind, classify, walk};
use culvert_proto::sa::{Cipher, Direction, Keymat, SaId, SaSpec, Spi, StateRef};
use culvert_state::Words;
use culvert_state::layout::inbound;
use libfuzzer_sys::fuzz_target;

const WINDOW: u32 = 64;
const SPI: u32 = 0x1001;

fn sa() -> InboundSa {
    let [source, destination] = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
    let spec = SaSpec {
        id: SaId {
            direction: Direction::In,
            spi: Spi::new(SPI).unwrap(),
            destination,
        },
        source,
        cipher: Cipher::Aes128Gcm16,
        keymat: Keymat::new(vec![7; 20]),
        esn: true,
        replay_window: WINDOW,
        encapsulation: None,
        state: StateRef {
            offset: 0,
            words: 0,
        },
    };
    let words = Words::on_heap(inbound::words(WINDOW));
    let selector = Selector::new(source, destination);
    InboundSa::new(&spec, selector, words, Backend::RustCrypto).unwrap()
}

/// `text` as the clear part of an ESP packet with that sequence number.
fn sealed(sequence: u8, text: &[u8]) -> Vec<u8> {
    let aead = Aead::new(Backend::RustCrypto, Cipher::Aes128Gcm16, &[7; 16]).unwrap();
    let iv = u64::from(sequence).to_be_bytes();
    let mut nonce = [7; 12];
    nonce[4..].copy_from_slice(&iv);
    let aad = [&SPI.to_be_bytes()[..], &iv].concat();
    let mut body = text.to_vec();
    let icv = aead.seal(nonce, &aad, &mut body).unwrap();
    let length = u16::try_from(20 + 16 + body.len() + 16).unwrap_or(u16::MAX);
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0]);
    frame.extend(length.to_be_bytes());
    frame.extend([0, 0, 0, 0, 64, 50, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2]);
    frame.extend(SPI.to_be_bytes());
    frame.extend(&iv[4..]);
    frame.extend(iv);
    frame.extend(body);
    frame.extend(icv);
    frame
}

fuzz_target!(|input: &[u8]| {
    thread_local! {
        static SA: RefCell<Option<InboundSa>> = const { RefCell::new(None) };
    }
    // A fresh SA for what authenticates; one for all for what does not.
    let (frame, genuine) = match input {
        [0, sequence, text @ ..] if text.len() < 9000 => (sealed(*sequence, text), true),
        _ => (input.to_vec(), false),
    };
    let Ok(headers) = walk(&frame[..]) else {
        return;
    };
    let encapsulated = match classify(&frame[..], &headers) {
        Kind::Esp(_) => false,
        Kind::EspInUdp(_) => true,
        _ => return,
    };
    let mut memory = HeapFrame::new(0, &frame, 0);
    if genuine {
        let sa = sa();
        if let Ok(length) = open(&sa, encapsulated, &headers, &mut memory) {
            assert_eq!(&memory.bytes()[34..], &input[2..2 + length]);
        }
    } else {
        SA.with_borrow_mut(|kept| {
            let sa = kept.get_or_insert_with(sa);
            let result = open(sa, encapsulated, &headers, &mut memory);
            assert!(result.is_err(), "a forgery was let in");
            assert_eq!(sa.highest(), 0, "the window moved for a forgery");
        });
    }
});

//! What the benchmarks share: SAs and frames.

pub mod clocks;

use std::net::IpAddr;

use culvert_esp::aead::Aead;
use culvert_esp::buffer::{Frame, HeapFrame};
use culvert_esp::{Backend, InboundSa, MAX_HEADROOM, MAX_TAILROOM, OutboundSa, TRAILER};
use culvert_packet::headers::{self, Headers};
use culvert_proto::sa::{Cipher, Direction, Keymat, Lifetime, SaId, SaSpec, Spi, StateRef};
use culvert_state::Words;
use culvert_state::layout::{inbound, outbound};

/// Replay window of the inbound SAs, in packets.
pub const WINDOW: u32 = 1024;

/// Source and destination of every packet.
pub const ADDRESSES: [[u8; 4]; 2] = [[192, 0, 2, 1], [192, 0, 2, 2]];

fn spec(cipher: Cipher, direction: Direction) -> SaSpec {
    let [source, destination] = ADDRESSES.map(IpAddr::from);
    SaSpec {
        id: SaId {
            direction,
            spi: Spi::new(0x1001).expect("not reserved"),
            destination,
        },
        source,
        cipher,
        keymat: Keymat::new(vec![0x5a; cipher.keymat_length()]),
        esn: true,
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

/// The SA that packets are sealed under, and as its peer has it.
#[must_use]
pub fn specs(cipher: Cipher) -> [SaSpec; 2] {
    [Direction::Out, Direction::In].map(|direction| spec(cipher, direction))
}

/// The cipher alone, under the SAs' key.
#[must_use]
pub fn aead(cipher: Cipher, backend: Backend) -> Aead {
    let key = vec![0x5a; cipher.key_length()];
    Aead::new(backend, cipher.algorithm(), &key).expect("a good key")
}

/// A nonce for the cipher alone, stored as the ESP core stores it: how it was stored decides how fast it is loaded.
#[inline]
#[must_use]
pub fn nonce(number: u64) -> [u8; 12] {
    let [nonce @ .., _, _, _, _] = (u128::from(number.to_be()) << 32).to_le_bytes();
    nonce
}

/// Length of the text that the cipher sees for a UDP datagram of `size` bytes.
#[must_use]
pub fn text_length(size: usize) -> usize {
    (size + TRAILER).next_multiple_of(4)
}

/// An outbound SA on fresh state.
#[must_use]
pub fn outbound_sa(cipher: Cipher, backend: Backend) -> OutboundSa {
    let words = Words::on_heap(outbound::WORDS);
    OutboundSa::new(&spec(cipher, Direction::Out), words, backend).expect("a good SA")
}

/// The inbound SA of the same key, and its state, which is fresh.
#[must_use]
pub fn inbound_sa(cipher: Cipher, backend: Backend) -> (InboundSa, Words) {
    let words = Words::on_heap(inbound::words(WINDOW));
    let spec = spec(cipher, Direction::In);
    let sa = InboundSa::new(&spec, words.clone(), backend).expect("a good SA");
    (sa, words)
}

/// A Geneve packet whose UDP datagram has `size` bytes, and its headers.
#[must_use]
pub fn geneve(size: usize) -> (Vec<u8>, Headers) {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    let total = u16::try_from(20 + size).expect("an IP packet");
    let udp = u16::try_from(size).expect("an IP packet");
    frame.extend([0x45, 0]);
    frame.extend(total.to_be_bytes());
    frame.extend([0, 1, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(ADDRESSES.concat());
    frame.extend([0xc0, 0, 0x17, 0xc1]);
    frame.extend(udp.to_be_bytes());
    // No UDP checksum; Geneve with Ethernet in it.
    frame.extend([0, 0, 0, 0, 0x65, 0x58, 0, 0, 77, 0]);
    frame.resize(34 + size, 0x42);
    let headers = headers::walk(&frame[..]).expect("a good packet");
    (frame, headers)
}

/// The frame in memory with the room that sealing needs.
#[must_use]
pub fn with_room(frame: &[u8]) -> HeapFrame {
    HeapFrame::new(MAX_HEADROOM, frame, MAX_TAILROOM)
}

/// Makes a frame that was sealed or opened what it was before, without touching the payload's memory when
/// `frame` gives only the headers.
pub fn restore(into: &mut HeapFrame, start: usize, length: usize, frame: &[u8]) {
    into.chunk()[start..start + frame.len()].copy_from_slice(frame);
    into.set_bounds(start..start + length);
}

/// Calls `work`. Callgrind is told to count what happens in here alone, and not how packets are made ready.
#[inline(never)]
pub fn counted(work: &mut dyn FnMut()) {
    work();
}

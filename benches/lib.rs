//! What the benchmarks share: SAs and frames.

use std::net::IpAddr;

use culvert_esp::buffer::{Frame, HeapFrame};
use culvert_esp::{Backend, InboundSa, MAX_HEADROOM, MAX_TAILROOM, OutboundSa};
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

/// Clocks that something takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// The least of many: undisturbed.
    pub best: u64,
    /// Half of the times it took no more.
    pub median: u64,
}

impl Clocks {
    /// Of many measurements.
    ///
    /// # Panics
    /// There is no measurement.
    #[must_use]
    pub fn of(mut samples: Vec<u64>) -> Self {
        samples.sort_unstable();
        Self {
            best: samples[0],
            median: samples[samples.len() / 2],
        }
    }
}

/// The time stamp counter, after all that was before is done.
#[cfg(target_arch = "x86_64")]
#[inline]
#[must_use]
pub fn clocks() -> u64 {
    use std::arch::x86_64::{__rdtscp, _mm_lfence};
    let mut core = 0;
    // SAFETY: every 64-bit CPU has it, and it writes nothing but that number.
    let clocks = unsafe { __rdtscp(&raw mut core) };
    // SAFETY: as above; what comes behind does not start before.
    unsafe { _mm_lfence() };
    clocks
}

/// Nanoseconds, where no counter of clocks is known.
#[cfg(not(target_arch = "x86_64"))]
#[inline]
#[must_use]
pub fn clocks() -> u64 {
    use std::sync::LazyLock;
    use std::time::Instant;
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    u64::try_from(START.elapsed().as_nanos()).unwrap_or(u64::MAX)
}

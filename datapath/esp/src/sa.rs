//! Compiled SAs: an [`SaSpec`] checked once and turned into what a packet needs.

use std::sync::atomic::Ordering;

use culvert_packet::headers::{Address, mapped};
use culvert_packet::reason::DropReason;
use culvert_proto::sa::{
    Cipher, Direction, REPLAY_WINDOW, SALT_LENGTH, SaId, SaSpec, UdpEncapsulation,
};
use culvert_state::layout::{both, inbound, outbound};
use culvert_state::{Words, handover};

use crate::aead::{Aead, Backend};
use crate::replay::ReplayWindow;
use crate::seal;
use crate::sequence::{self, Lease};
use crate::usage::{Budget, Counts};

/// Why an SA is refused; the text says which, what and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SaError {
    /// Keying material of a wrong length.
    #[error(
        "{id} refused: keying material of {got} bytes; {cipher} takes {want} (key and 4-byte salt)"
    )]
    Keymat {
        /// Which SA.
        id: SaId,
        /// Which cipher.
        cipher: Cipher,
        /// Bytes given.
        got: usize,
        /// Bytes wanted.
        want: usize,
    },
    /// A replay window out of range.
    #[error("{id} refused: replay window {got}; set replay_window to 32 to 4096 packets")]
    Window {
        /// Which SA.
        id: SaId,
        /// Packets given.
        got: u32,
    },
    /// Source and destination of different IP versions.
    #[error("{id} refused: source {source_address} is of another IP version than the destination")]
    Family {
        /// Which SA.
        id: SaId,
        /// The source.
        source_address: std::net::IpAddr,
    },
    /// Used for the other direction.
    #[error("{id} refused: it is not for this direction")]
    Direction {
        /// Which SA.
        id: SaId,
    },
    /// State words of a wrong length.
    #[error(
        "{id} refused: its state has {got} words, not {want}; key manager and datapath differ in release"
    )]
    State {
        /// Which SA.
        id: SaId,
        /// Words given.
        got: usize,
        /// Words wanted.
        want: usize,
    },
}

/// What both directions share.
#[derive(Debug)]
pub(crate) struct Common {
    pub(crate) aead: Aead,
    salt: [u8; SALT_LENGTH],
    pub(crate) spi: u32,
    esn: bool,
    /// What the cipher says of itself, so that no packet has to ask for it.
    pub(crate) iv_length: usize,
    pub(crate) icv_length: usize,
    pub(crate) encrypts: bool,
    source: Address,
    destination: Address,
    hard: Budget,
    pub(crate) state: Words,
}

/// Associated data of a packet: SPI and sequence number, 12 bytes with ESN, 8 without.
pub(crate) struct Aad {
    bytes: [u8; 16],
    length: usize,
}

impl Aad {
    #[inline]
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Common {
    fn new(spec: &SaSpec, state: Words, backend: Backend) -> Result<Self, SaError> {
        let id = spec.id;
        if spec.source.is_ipv4() != id.destination.is_ipv4() {
            return Err(SaError::Family {
                id,
                source_address: spec.source,
            });
        }
        let keymat = spec.keymat.bytes();
        let wrong = || SaError::Keymat {
            id,
            cipher: spec.cipher,
            got: keymat.len(),
            want: spec.cipher.keymat_length(),
        };
        let (key, salt) = keymat.split_last_chunk().ok_or_else(wrong)?;
        Ok(Self {
            aead: Aead::new(backend, spec.cipher.algorithm(), key).map_err(|_| wrong())?,
            salt: *salt,
            spi: id.spi.get(),
            esn: spec.esn,
            iv_length: spec.cipher.iv_length(),
            icv_length: spec.cipher.icv_length(),
            encrypts: spec.cipher.encrypts(),
            source: address(spec.source),
            destination: address(id.destination),
            hard: Budget {
                packets: spec.lifetime.hard.packets.unwrap_or(u64::MAX),
                bytes: spec.lifetime.hard.bytes.unwrap_or(u64::MAX),
            },
            state,
        })
    }

    /// RFC 4106 §4, RFC 7634 §2: nonce = salt ‖ IV. RFC 8750 §4: an implicit IV is the sequence number.
    #[inline]
    pub(crate) fn nonce(&self, iv: [u8; 8]) -> [u8; 12] {
        // Put together as a number: the AEADs read eight bytes at once, which do not come fast from memory that was
        // written four by four.
        let nonce = u128::from(u64::from_le_bytes(iv)) << (8 * SALT_LENGTH)
            | u128::from(u32::from_le_bytes(self.salt));
        let [nonce @ .., _, _, _, _] = nonce.to_le_bytes();
        nonce
    }

    // RFC 4303 [3.3.2.2-covered, 3.3.3-esn-halves]
    /// RFC 4106 §5, RFC 7634 §2.1: AAD = SPI ‖ sequence number, of 64 bits with ESN.
    #[inline]
    pub(crate) fn aad(&self, sequence: u64) -> Aad {
        // Put together as a number, as the nonce is.
        let (number, length) = if self.esn {
            (sequence.to_be(), 12)
        } else {
            (sequence.to_be() >> 32, 8)
        };
        let bytes = u128::from(number) << 32 | u128::from(self.spi.to_be());
        Aad {
            bytes: bytes.to_le_bytes(),
            length,
        }
    }

    // RFC 4303 [1-integrity-only, 3.3.2.2-covered]
    /// Calls `work` with all that AES-GMAC authenticates (RFC 4543 §3.3: SPI, sequence number, IV and the whole
    /// payload in clear) and what comes behind it. `packet` has the ESP header at `esp` and the ICV at `icv`; it
    /// is the same afterwards. With ESN, the SPI is moved away for that time to make room for the high half
    /// of the number, so that the payload need not be copied.
    #[inline]
    pub(crate) fn authenticated<R>(
        &self,
        packet: &mut [u8],
        esp: usize,
        icv: usize,
        sequence: u64,
        work: impl FnOnce(&Aead, &[u8], &mut [u8]) -> R,
    ) -> R {
        let aad = self.aad(sequence);
        let aad = aad.bytes();
        // Never 0: an IP header comes before ESP.
        let start = esp + crate::ESP_HEADER - aad.len();
        let mut saved = [0; 12];
        let saved = &mut saved[..aad.len()];
        saved.copy_from_slice(&packet[start..esp + crate::ESP_HEADER]);
        packet[start..esp + crate::ESP_HEADER].copy_from_slice(aad);
        let (before, behind) = packet.split_at_mut(icv);
        let result = work(&self.aead, &before[start..], behind);
        packet[start..esp + crate::ESP_HEADER].copy_from_slice(saved);
        result
    }

    /// Whether it is between these addresses.
    #[inline]
    fn is_between(&self, source: &Address, destination: &Address) -> bool {
        self.source == *source && self.destination == *destination
    }

    /// What may still go under it. `now` is noted if this is its first use.
    #[inline]
    fn budget(&self, now: u64) -> Budget {
        let read = |at: usize| self.state[at].load(Ordering::Relaxed);
        if read(both::FIRST_USE) == 0 {
            self.state[both::FIRST_USE].store(now.max(1), Ordering::Relaxed);
        }
        if read(both::STATE) == both::EXPIRED {
            return Budget::default();
        }
        Budget {
            packets: self.hard.packets.saturating_sub(read(both::PACKETS)),
            bytes: self.hard.bytes.saturating_sub(read(both::BYTES)),
        }
    }

    #[inline]
    fn count(&self, packets: u64, bytes: u64) {
        self.state[both::PACKETS].fetch_add(packets, Ordering::Relaxed);
        self.state[both::BYTES].fetch_add(bytes, Ordering::Relaxed);
    }
}

impl Drop for Common {
    fn drop(&mut self) {
        // The AEADs zeroise themselves.
        zeroize::Zeroize::zeroize(&mut self.salt);
    }
}

fn direction(spec: &SaSpec, wanted: Direction) -> Result<(), SaError> {
    if spec.id.direction == wanted {
        Ok(())
    } else {
        Err(SaError::Direction { id: spec.id })
    }
}

/// An SA that packets are sealed under.
#[derive(Debug)]
pub struct OutboundSa {
    pub(crate) common: Common,
    pub(crate) encapsulation: Option<UdpEncapsulation>,
    pub(crate) tfc: usize,
    front: usize,
    last: u64,
}

impl OutboundSa {
    /// Compiles `spec`; `state` says where its sequence stands.
    ///
    /// # Errors
    /// What is wrong with the SA.
    pub fn new(spec: &SaSpec, state: Words, backend: Backend) -> Result<Self, SaError> {
        direction(spec, Direction::Out)?;
        if state.len() != outbound::WORDS {
            return Err(SaError::State {
                id: spec.id,
                got: state.len(),
                want: outbound::WORDS,
            });
        }
        Ok(Self {
            common: Common::new(spec, state, backend)?,
            encapsulation: spec.encapsulation,
            tfc: usize::from(spec.tfc),
            front: front(spec.cipher, spec.encapsulation.is_some()),
            last: sequence::last(spec.esn),
        })
    }

    /// Whether it is between these addresses.
    #[inline]
    #[must_use]
    pub fn is_between(&self, source: &Address, destination: &Address) -> bool {
        self.common.is_between(source, destination)
    }

    /// What may still go under it. `now`, in milliseconds, is noted if this is its first use.
    #[inline]
    #[must_use]
    pub fn budget(&self, now: u64) -> Budget {
        self.common.budget(now)
    }

    /// Leases `count` sequence numbers.
    #[inline]
    pub fn lease(&self, count: u32) -> Lease {
        Lease::new(&self.common.state[outbound::LEASED], count, self.last)
    }

    /// The highest number leased.
    #[must_use]
    pub fn leased(&self) -> u64 {
        handover::leased(&self.common.state).min(self.last)
    }

    /// Why a lease is empty.
    #[cold]
    #[must_use]
    pub fn without_numbers(&self) -> DropReason {
        if handover::is_fenced(&self.common.state) {
            DropReason::HandedOver
        } else {
            DropReason::SequenceExhausted
        }
    }

    /// Adds to the SA's totals.
    #[inline]
    pub fn count(&self, packets: u64, bytes: u64) {
        self.common.count(packets, bytes);
    }

    /// How many bytes a packet grows by in front.
    #[inline]
    #[must_use]
    pub fn front(&self) -> usize {
        self.front
    }

    /// How many bytes a packet grows by at most; with TFC padding, at most if it has no room for that.
    #[inline]
    #[must_use]
    pub fn most_growth(&self) -> usize {
        self.front + seal::MOST_PADDING + crate::TRAILER + self.common.icv_length
    }

    /// From now on, sends to that UDP port: the peer behind NAT is there.
    #[inline]
    pub fn follow(&self, port: u16) {
        if self
            .encapsulation
            .is_some_and(|ports| self.destination_port(ports) != port)
        {
            self.common.state[outbound::PORT].store(u64::from(port), Ordering::Relaxed);
        }
    }

    /// The UDP port that `ports` or, since, the peer's moves say.
    #[expect(clippy::cast_possible_truncation, reason = "only ports are stored")]
    pub(crate) fn destination_port(&self, ports: UdpEncapsulation) -> u16 {
        match self.common.state[outbound::PORT].load(Ordering::Relaxed) {
            0 => ports.destination_port,
            moved => moved as u16,
        }
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> &Words {
        &self.common.state
    }
}

// RFC 4303 §2.3 [2.3-alignment]: of ESP, 8 bytes and an IV of 8 or none; so the next layer begins at a multiple of 8.
/// Bytes between the headers that stay and what is protected.
fn front(cipher: Cipher, encapsulated: bool) -> usize {
    let udp = if encapsulated { crate::UDP_HEADER } else { 0 };
    udp + crate::ESP_HEADER + cipher.iv_length()
}

/// An IP address as packets are compared with it.
#[must_use]
pub fn address(ip: std::net::IpAddr) -> Address {
    match ip {
        std::net::IpAddr::V4(v4) => mapped(v4.octets()),
        std::net::IpAddr::V6(v6) => v6.octets(),
    }
}

/// An SA that packets are opened under.
#[derive(Debug)]
pub struct InboundSa {
    pub(crate) common: Common,
    pub(crate) encapsulation: Option<UdpEncapsulation>,
    pub(crate) window: ReplayWindow,
}

impl InboundSa {
    /// Compiles `spec`; `state` is its replay window.
    ///
    /// # Errors
    /// What is wrong with the SA.
    pub fn new(spec: &SaSpec, state: Words, backend: Backend) -> Result<Self, SaError> {
        direction(spec, Direction::In)?;
        if !REPLAY_WINDOW.contains(&spec.replay_window) {
            return Err(SaError::Window {
                id: spec.id,
                got: spec.replay_window,
            });
        }
        let window = ReplayWindow::new(state.clone(), spec.replay_window, spec.esn).ok_or(
            SaError::State {
                id: spec.id,
                got: state.len(),
                want: inbound::words(spec.replay_window),
            },
        )?;
        Ok(Self {
            common: Common::new(spec, state, backend)?,
            encapsulation: spec.encapsulation,
            window,
        })
    }

    /// What may still come under it. `now`, in milliseconds, is noted if this is its first use.
    #[inline]
    #[must_use]
    pub fn budget(&self, now: u64) -> Budget {
        self.common.budget(now)
    }

    /// Whether it is between these addresses.
    #[inline]
    #[must_use]
    pub fn is_between(&self, source: &Address, destination: &Address) -> bool {
        self.common.is_between(source, destination)
    }

    /// The highest sequence number authenticated.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.window.highest()
    }

    /// Adds to the SA's totals.
    #[inline]
    pub fn count(&self, counts: &Counts) {
        if counts.packets > 0 {
            self.common.count(counts.packets, counts.bytes);
        }
        let rare = [
            (inbound::AUTHENTICATED, counts.authenticated),
            (inbound::REPLAYED, counts.replayed),
            (inbound::LATE, counts.late),
            (inbound::FAILED, counts.failed),
        ];
        for (at, count) in rare {
            if count > 0 {
                self.common.state[at].fetch_add(count, Ordering::Relaxed);
            }
        }
    }

    /// Notes where a packet came from that came in UDP, if it is the newest: what was held back on the way says nothing
    /// of where the peer is. Says whether it is. (RFC 7296 §2.23; only what authenticated may say so.)
    #[inline]
    pub fn sent_from(&self, sequence: u64, source: &Address, port: u16) -> bool {
        let Some(ports) = self.encapsulation else {
            return false;
        };
        if sequence < self.highest() {
            return false;
        }
        let state = &self.common.state;
        let known = match state[inbound::PORT].load(Ordering::Relaxed) {
            0 => (u64::from(ports.source_port), self.common.source),
            moved => (moved, self.moved_to()),
        };
        if known != (u64::from(port), *source) {
            let [high, low] = [&source[..8], &source[8..]].map(|half| {
                let mut word = [0; 8];
                word.copy_from_slice(half);
                u64::from_be_bytes(word)
            });
            state[inbound::ADDRESS].store(high, Ordering::Relaxed);
            state[inbound::ADDRESS + 1].store(low, Ordering::Relaxed);
            state[inbound::PORT].store(u64::from(port), Ordering::Release);
        }
        true
    }

    /// The address that goes with the port that a peer has moved to.
    fn moved_to(&self) -> Address {
        let mut address = [0; 16];
        for (at, half) in address.chunks_exact_mut(8).enumerate() {
            let word = self.common.state[inbound::ADDRESS + at].load(Ordering::Relaxed);
            half.copy_from_slice(&word.to_be_bytes());
        }
        address
    }

    /// Its state.
    #[must_use]
    pub fn state(&self) -> &Words {
        &self.common.state
    }
}

//! Compiled SAs: an [`SaSpec`] checked once and turned into what a packet needs.

use std::sync::atomic::Ordering;

use culvert_packet::headers::{Address, mapped};
use culvert_proto::sa::{Direction, REPLAY_WINDOW, SALT_LENGTH, SaId, SaSpec, UdpEncapsulation};
use culvert_state::Words;
use culvert_state::layout::{inbound, outbound};

use crate::aead::{Aead, Backend};
use crate::replay::ReplayWindow;
use crate::sequence::{self, Lease};

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
        cipher: culvert_proto::sa::Cipher,
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
}

/// Associated data of a packet: SPI and sequence number, 12 bytes with ESN, 8 without.
pub(crate) struct Aad {
    bytes: [u8; 12],
    length: usize,
}

impl Aad {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

impl Common {
    fn new(spec: &SaSpec, backend: Backend) -> Result<Self, SaError> {
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
            aead: Aead::new(backend, spec.cipher, key).map_err(|_| wrong())?,
            salt: *salt,
            spi: id.spi.get(),
            esn: spec.esn,
        })
    }

    /// RFC 4106 §4, RFC 7634 §2: nonce = salt ‖ IV.
    #[inline]
    pub(crate) fn nonce(&self, iv: [u8; 8]) -> [u8; 12] {
        let mut nonce = [0; 12];
        nonce[..SALT_LENGTH].copy_from_slice(&self.salt);
        nonce[SALT_LENGTH..].copy_from_slice(&iv);
        nonce
    }

    /// RFC 4106 §5, RFC 7634 §2.1: AAD = SPI ‖ sequence number, of 64 bits with ESN.
    #[inline]
    pub(crate) fn aad(&self, sequence: u64) -> Aad {
        let mut bytes = [0; 12];
        bytes[..4].copy_from_slice(&self.spi.to_be_bytes());
        let sequence = sequence.to_be_bytes();
        if self.esn {
            bytes[4..].copy_from_slice(&sequence);
            Aad { bytes, length: 12 }
        } else {
            bytes[4..8].copy_from_slice(&sequence[4..]);
            Aad { bytes, length: 8 }
        }
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
    last: u64,
    state: Words,
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
            common: Common::new(spec, backend)?,
            encapsulation: spec.encapsulation,
            last: sequence::last(spec.esn),
            state,
        })
    }

    /// Leases `count` sequence numbers.
    #[inline]
    pub fn lease(&self, count: u32) -> Lease {
        Lease::new(&self.state[outbound::LEASED], count, self.last)
    }

    /// The highest number leased.
    #[must_use]
    pub fn leased(&self) -> u64 {
        self.state[outbound::LEASED]
            .load(Ordering::Relaxed)
            .min(self.last)
    }

    /// Adds to the SA's totals.
    #[inline]
    pub fn count(&self, packets: u64, bytes: u64) {
        self.state[outbound::PACKETS].fetch_add(packets, Ordering::Relaxed);
        self.state[outbound::BYTES].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Packets and bytes so far.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (
            self.state[outbound::PACKETS].load(Ordering::Relaxed),
            self.state[outbound::BYTES].load(Ordering::Relaxed),
        )
    }

    /// How many bytes a packet grows by in front.
    #[must_use]
    pub fn front(&self) -> usize {
        front(self.encapsulation)
    }
}

/// Bytes between the IP header and the ciphertext.
pub(crate) fn front(encapsulation: Option<UdpEncapsulation>) -> usize {
    crate::ESP_HEADER
        + crate::IV
        + match encapsulation {
            Some(_) => crate::UDP_HEADER,
            None => 0,
        }
}

/// What may come out of an inbound SA: the selector of the policy that it serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Selector {
    /// The peer's address.
    pub remote: Address,
    /// This host's address.
    pub local: Address,
}

impl Selector {
    /// The selector of Geneve from `remote` to `local`.
    #[must_use]
    pub fn new(remote: std::net::IpAddr, local: std::net::IpAddr) -> Self {
        Self {
            remote: address(remote),
            local: address(local),
        }
    }
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
    pub(crate) encapsulated: bool,
    pub(crate) window: ReplayWindow,
    pub(crate) selector: Selector,
    state: Words,
}

impl InboundSa {
    /// Compiles `spec`, of which packets of `selector` may come; `state` is its replay window.
    ///
    /// # Errors
    /// What is wrong with the SA.
    pub fn new(
        spec: &SaSpec,
        selector: Selector,
        state: Words,
        backend: Backend,
    ) -> Result<Self, SaError> {
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
            common: Common::new(spec, backend)?,
            encapsulated: spec.encapsulation.is_some(),
            window,
            selector,
            state,
        })
    }

    /// What may come out of it.
    #[must_use]
    pub fn selector(&self) -> Selector {
        self.selector
    }

    /// The highest sequence number authenticated.
    #[must_use]
    pub fn highest(&self) -> u64 {
        self.window.highest()
    }

    /// Adds to the SA's totals.
    #[inline]
    pub fn count(&self, packets: u64, bytes: u64) {
        self.state[inbound::PACKETS].fetch_add(packets, Ordering::Relaxed);
        self.state[inbound::BYTES].fetch_add(bytes, Ordering::Relaxed);
    }

    /// Packets and bytes so far.
    #[must_use]
    pub fn totals(&self) -> (u64, u64) {
        (
            self.state[inbound::PACKETS].load(Ordering::Relaxed),
            self.state[inbound::BYTES].load(Ordering::Relaxed),
        )
    }
}

//! Records of the SAD and the SPD as the key manager pushes them (RFC 4301 §4.4).

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// Security Parameters Index, 256 and above (RFC 4303 §2.1: 0 is for local use, 1–255 are reserved).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Spi(u32);

impl Spi {
    /// # Errors
    /// The reserved values 0 to 255.
    pub fn new(value: u32) -> Result<Self, ReservedSpi> {
        if value < 256 {
            Err(ReservedSpi(value))
        } else {
            Ok(Self(value))
        }
    }

    /// The number, in host byte order.
    #[must_use]
    pub const fn get(self) -> u32 {
        self.0
    }
}

/// An SPI from the reserved range.
#[derive(Debug, thiserror::Error)]
#[error("SPI {0:#x} is reserved (RFC 4303 section 2.1); use 0x100 to 0xffffffff")]
pub struct ReservedSpi(pub u32);

impl TryFrom<u32> for Spi {
    type Error = ReservedSpi;
    fn try_from(value: u32) -> Result<Self, ReservedSpi> {
        Self::new(value)
    }
}

impl From<Spi> for u32 {
    fn from(spi: Spi) -> Self {
        spi.0
    }
}

impl fmt::Display for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#010x}", self.0)
    }
}

impl fmt::Debug for Spi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Direction of an SA, seen from this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// We open what arrives under it.
    In,
    /// We seal what leaves under it.
    Out,
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::In => "in",
            Self::Out => "out",
        })
    }
}

/// What names an SA: SPI and destination address, as in the SAD of RFC 4301.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SaId {
    /// Direction.
    pub direction: Direction,
    /// SPI.
    pub spi: Spi,
    /// Destination address.
    pub destination: IpAddr,
}

impl fmt::Display for SaId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "SA {} {} to {}",
            self.spi, self.direction, self.destination
        )
    }
}

/// Ciphers, under the names that strongSwan's proposals use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Cipher {
    /// AES-GCM, 128-bit key, 16-byte ICV (RFC 4106).
    #[serde(rename = "aes128gcm16")]
    Aes128Gcm16,
    /// AES-GCM, 256-bit key, 16-byte ICV (RFC 4106).
    #[serde(rename = "aes256gcm16")]
    Aes256Gcm16,
    /// ChaCha20-Poly1305 (RFC 7634).
    #[serde(rename = "chacha20poly1305")]
    ChaCha20Poly1305,
}

impl Cipher {
    /// Every cipher.
    pub const ALL: [Self; 3] = [Self::Aes128Gcm16, Self::Aes256Gcm16, Self::ChaCha20Poly1305];

    /// The name in configurations and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm16 => "aes128gcm16",
            Self::Aes256Gcm16 => "aes256gcm16",
            Self::ChaCha20Poly1305 => "chacha20poly1305",
        }
    }

    /// The cipher of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|cipher| cipher.name() == name)
    }

    /// Length of the cipher's key in bytes, without the salt.
    #[must_use]
    pub const fn key_length(self) -> usize {
        match self {
            Self::Aes128Gcm16 => 16,
            Self::Aes256Gcm16 | Self::ChaCha20Poly1305 => 32,
        }
    }

    /// Length of keying material in bytes: key, then the 4-byte salt (RFC 4106 §8.1, RFC 7634 §2).
    #[must_use]
    pub const fn keymat_length(self) -> usize {
        self.key_length() + SALT_LENGTH
    }
}

impl fmt::Display for Cipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Length of the salt at the end of the keying material, in bytes.
pub const SALT_LENGTH: usize = 4;

/// Keying material: key ‖ salt. Zeroised when dropped, never shown.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, Zeroize, ZeroizeOnDrop)]
pub struct Keymat(Vec<u8>);

impl Keymat {
    /// Takes over the bytes: key ‖ salt.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes: key ‖ salt.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Keymat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Keymat(…)")
    }
}

/// Smallest and largest replay window in packets.
pub const REPLAY_WINDOW: std::ops::RangeInclusive<u32> = 32..=4096;

/// Ports of UDP encapsulation (RFC 3948), seen in the direction of the SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpEncapsulation {
    /// Source port, usually 4500.
    pub source_port: u16,
    /// Destination port, usually 4500.
    pub destination_port: u16,
}

/// Where an SA's state stands in the shared region: an offset in 8-byte words and a length in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct StateRef {
    /// First word.
    pub offset: u32,
    /// Number of words.
    pub words: u32,
}

/// One SA, complete.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SaSpec {
    /// Direction, SPI, destination.
    pub id: SaId,
    /// Source address.
    pub source: IpAddr,
    /// Cipher.
    pub cipher: Cipher,
    /// Key and salt.
    pub keymat: Keymat,
    /// Extended (64-bit) sequence numbers, RFC 4303 §2.2.1.
    pub esn: bool,
    /// Size of the replay window in packets, within [`REPLAY_WINDOW`]; inbound only.
    pub replay_window: u32,
    /// UDP encapsulation, if any.
    pub encapsulation: Option<UdpEncapsulation>,
    /// Where its sequence number or window lives.
    pub state: StateRef,
}

/// One policy: Geneve between two addresses is protected.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySpec {
    /// Address of this host.
    pub local: IpAddr,
    /// Address of the peer.
    pub remote: IpAddr,
    /// SA that outbound packets are sealed under; `None`: they are dropped as `no_sa`.
    pub outbound: Option<Spi>,
    /// SAs that inbound packets may come under.
    pub inbound: Vec<Spi>,
}

impl PolicySpec {
    /// What names the policy.
    #[must_use]
    pub fn id(&self) -> PolicyId {
        PolicyId {
            local: self.local,
            remote: self.remote,
        }
    }
}

/// What names a policy: its selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyId {
    /// Address of this host.
    pub local: IpAddr,
    /// Address of the peer.
    pub remote: IpAddr,
}

//! Records of the SAD and the SPD as the key manager pushes them (RFC 4301 §4.4).

use std::fmt;
use std::net::IpAddr;

use serde::{Deserialize, Serialize};
use zeroize::{Zeroize, ZeroizeOnDrop};

pub use crate::cipher::{Algorithm, Cipher, SALT_LENGTH};
pub use crate::policy::{Action, Geneve, Mode, Place, PolicySpec, Selector, VniRange};

/// Security Parameters Index, 256 and above (RFC 4303 §2.1: 0 is for local use, 1–255 are reserved).
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Spi(u32);

impl Spi {
    // RFC 4303 §2.1 [2.1-no-spi-zero]
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

// RFC 4303 [3.4.3-window-32, 3.4.3-window-larger, A2-width]
/// Smallest and largest replay window in packets.
pub const REPLAY_WINDOW: std::ops::RangeInclusive<u32> = 32..=4096;

/// Ports of UDP encapsulation (RFC 3948), seen in the direction of the SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UdpEncapsulation {
    /// Source port, usually 4500.
    pub source_port: u16,
    /// Destination port, usually 4500.
    pub destination_port: u16,
    /// Seconds without a packet after which a keepalive is sent, outbound (RFC 3948 §4); 0: never.
    pub keepalive: u16,
}

/// How much an SA may be used, and how long: what is reached first counts. `None`: no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Bytes sealed or opened.
    pub bytes: Option<u64>,
    /// Packets sealed or opened.
    pub packets: Option<u64>,
    /// Seconds since the SA was added.
    pub seconds: Option<u64>,
    /// Seconds since its first packet.
    pub seconds_in_use: Option<u64>,
}

impl Limits {
    /// No limits.
    pub const NONE: Self = Self {
        bytes: None,
        packets: None,
        seconds: None,
        seconds_in_use: None,
    };
}

/// Lifetimes of an SA (RFC 4301 §4.4.2.1): at `soft` it asks to be replaced, at `hard` it stops.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lifetime {
    /// Raises an event.
    pub soft: Limits,
    /// Raises an event, and nothing goes under the SA any more.
    pub hard: Limits,
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
    /// Traffic flow confidentiality (RFC 4303 §2.7): payloads are padded to this many bytes, as far as the
    /// wire's MTU allows; 0: they are not. Outbound only.
    pub tfc: u16,
    /// Lifetimes.
    pub lifetime: Lifetime,
    /// Where its sequence number or window lives.
    pub state: StateRef,
}

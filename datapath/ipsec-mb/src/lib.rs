//! AES-GCM and ChaCha20-Poly1305 of Intel's multi-buffer library (`intel-ipsec-mb.h`, Debian's libipsec-mb-dev), one packet a
//! call: what VPP and DPDK use. Without the library at build time, this crate has the same interface and no key.

#[cfg(found)]
mod library;

#[cfg(not(found))]
#[path = "absent.rs"]
mod library;

pub use library::{Key, has_avx512, unfit};

/// Whether the library was there when this was built.
pub const FOUND: bool = cfg!(found);

/// Length of a tag in bytes.
pub const TAG: usize = 16;

/// The ciphers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cipher {
    /// AES-GCM, 128-bit key.
    Aes128Gcm,
    /// AES-GCM, 192-bit key.
    Aes192Gcm,
    /// AES-GCM, 256-bit key.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

impl Cipher {
    /// Length of the key in bytes.
    #[must_use]
    pub const fn key_length(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes192Gcm => 24,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }
}

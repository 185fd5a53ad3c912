//! The ciphers: one table gives names, lengths and what is done with them.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Length of the salt at the end of the keying material, in bytes.
pub const SALT_LENGTH: usize = 4;

/// The AEAD under a cipher.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Algorithm {
    /// AES-GCM, 128-bit key.
    Aes128Gcm,
    /// AES-GCM, 192-bit key.
    Aes192Gcm,
    /// AES-GCM, 256-bit key.
    Aes256Gcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

impl Algorithm {
    /// Every AEAD.
    pub const ALL: [Self; 4] = [
        Self::Aes128Gcm,
        Self::Aes192Gcm,
        Self::Aes256Gcm,
        Self::ChaCha20Poly1305,
    ];

    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Aes128Gcm => "AES-128-GCM",
            Self::Aes192Gcm => "AES-192-GCM",
            Self::Aes256Gcm => "AES-256-GCM",
            Self::ChaCha20Poly1305 => "ChaCha20-Poly1305",
        }
    }

    /// Length of the key in bytes, without the salt.
    #[must_use]
    pub const fn key_length(self) -> usize {
        match self {
            Self::Aes128Gcm => 16,
            Self::Aes192Gcm => 24,
            Self::Aes256Gcm | Self::ChaCha20Poly1305 => 32,
        }
    }
}

macro_rules! ciphers {
    ($($variant:ident, $name:literal, $algorithm:ident, $icv:literal, $iv:literal, $encrypts:literal, $source:literal;)*) => {
        /// Ciphers, under the names that strongSwan's proposals use; `iiv` behind the name: the IV is implicit.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum Cipher {
            $(#[doc = $source] #[serde(rename = $name)] $variant,)*
        }

        impl Cipher {
            /// Every cipher.
            pub const ALL: [Self; [$(Self::$variant),*].len()] = [$(Self::$variant,)*];

            /// The name in configurations and reports.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The AEAD.
            #[must_use]
            pub const fn algorithm(self) -> Algorithm {
                match self { $(Self::$variant => Algorithm::$algorithm,)* }
            }

            /// Length of the ICV in bytes.
            #[must_use]
            pub const fn icv_length(self) -> usize {
                match self { $(Self::$variant => $icv,)* }
            }

            /// Length of the IV that stands in the packet, in bytes: 0 for an implicit one, which is the
            /// sequence number (RFC 8750).
            #[must_use]
            pub const fn iv_length(self) -> usize {
                match self { $(Self::$variant => $iv,)* }
            }

            /// Whether the payload is encrypted; if not, it is authenticated only (RFC 4543).
            #[must_use]
            pub const fn encrypts(self) -> bool {
                match self { $(Self::$variant => $encrypts,)* }
            }
        }
    };
}

ciphers! {
    // RFC 4303 [3.2-one-service, 3.2-not-both-null, 5-not-both-null, 3.4.3-needs-integrity]: none without integrity.
    // variant, name, AEAD, bytes of ICV, bytes of explicit IV, encrypts, source
    Aes128Gcm16, "aes128gcm16", Aes128Gcm, 16, 8, true, "RFC 4106";
    Aes192Gcm16, "aes192gcm16", Aes192Gcm, 16, 8, true, "RFC 4106";
    Aes256Gcm16, "aes256gcm16", Aes256Gcm, 16, 8, true, "RFC 4106";
    ChaCha20Poly1305, "chacha20poly1305", ChaCha20Poly1305, 16, 8, true, "RFC 7634";
    Aes128Gcm12, "aes128gcm12", Aes128Gcm, 12, 8, true, "RFC 4106";
    Aes192Gcm12, "aes192gcm12", Aes192Gcm, 12, 8, true, "RFC 4106";
    Aes256Gcm12, "aes256gcm12", Aes256Gcm, 12, 8, true, "RFC 4106";
    Aes128Gcm8, "aes128gcm8", Aes128Gcm, 8, 8, true, "RFC 4106";
    Aes192Gcm8, "aes192gcm8", Aes192Gcm, 8, 8, true, "RFC 4106";
    Aes256Gcm8, "aes256gcm8", Aes256Gcm, 8, 8, true, "RFC 4106";
    // RFC 4303 §1 [1-integrity-only-offered]
    Aes128Gmac, "aes128gmac", Aes128Gcm, 16, 8, false, "RFC 4543";
    Aes192Gmac, "aes192gmac", Aes192Gcm, 16, 8, false, "RFC 4543";
    Aes256Gmac, "aes256gmac", Aes256Gcm, 16, 8, false, "RFC 4543";
    Aes128Gcm16Iiv, "aes128gcm16iiv", Aes128Gcm, 16, 0, true, "RFC 8750";
    Aes192Gcm16Iiv, "aes192gcm16iiv", Aes192Gcm, 16, 0, true, "RFC 8750";
    Aes256Gcm16Iiv, "aes256gcm16iiv", Aes256Gcm, 16, 0, true, "RFC 8750";
    ChaCha20Poly1305Iiv, "chacha20poly1305iiv", ChaCha20Poly1305, 16, 0, true, "RFC 8750";
}

/// What others call what Culvert does not serve: it is left to kernel IPsec.
const OTHERS: [&str; 11] = [
    "ccm", "cbc", "ctr", "sha1", "sha2", "sha256", "sha384", "sha512", "camellia", "3des", "null",
];

impl Cipher {
    /// The three that IKE daemons negotiate nearly always.
    pub const COMMON: [Self; 3] = [Self::Aes128Gcm16, Self::Aes256Gcm16, Self::ChaCha20Poly1305];

    /// The cipher of that name.
    ///
    /// # Errors
    /// Culvert does not serve it, or nobody does; the text says which, and what there is.
    pub fn from_name(name: &str) -> Result<Self, UnknownCipher> {
        Self::ALL
            .into_iter()
            .find(|cipher| cipher.name() == name)
            .ok_or_else(|| UnknownCipher(name.to_owned()))
    }

    /// Length of the cipher's key in bytes, without the salt.
    #[must_use]
    pub const fn key_length(self) -> usize {
        self.algorithm().key_length()
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

/// A name that is no cipher of Culvert's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownCipher(String);

impl std::error::Error for UnknownCipher {}

impl fmt::Display for UnknownCipher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name) = self;
        if OTHERS.iter().any(|part| name.contains(part)) {
            write!(
                f,
                "cipher \"{name}\" is not served by Culvert, which has AEADs only: leave it to kernel IPsec, or \
                 use one of "
            )?;
        } else {
            write!(f, "cipher \"{name}\" is not known; there are ")?;
        }
        f.write_str(&Cipher::ALL.map(Cipher::name).join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_the_lengths() {
        // RFC 4303 §1 [1-integrity-only-offered]: by name, as any other.
        for cipher in Cipher::ALL {
            let name = cipher.name();
            assert_eq!(Cipher::from_name(name), Ok(cipher));
            let bits = cipher.key_length() * 8;
            assert!(name.contains(&bits.to_string()) || name.starts_with("chacha"));
            let icv = format!("gcm{}", cipher.icv_length());
            assert!(name.contains(&icv) || name.contains("gmac") || name.starts_with("chacha"));
            assert_eq!(cipher.iv_length() == 0, name.ends_with("iiv"));
            assert_eq!(cipher.encrypts(), !name.contains("gmac"));
        }
    }

    #[test]
    fn what_the_kernel_has_is_left_to_it() {
        // RFC 4303 [3.2-not-both-null, 5-not-both-null]
        for name in ["aes128ccm16", "aes256-sha256", "null", "aes128ctr"] {
            let text = Cipher::from_name(name).unwrap_err().to_string();
            assert!(text.contains("kernel IPsec"), "{text}");
        }
        let text = Cipher::from_name("rot13").unwrap_err().to_string();
        assert!(
            text.contains("is not known; there are aes128gcm16"),
            "{text}"
        );
    }
}

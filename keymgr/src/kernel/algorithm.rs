//! What the kernel calls the algorithms.

use std::fmt;

use culvert_proto::sa::{self, Cipher};

use crate::keys::fingerprint_of;
use culvert_state::region::Fingerprint;

/// Algorithms of an SA, under the kernel's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Algorithm {
    /// One for both.
    Aead {
        /// Its name.
        name: String,
        /// Length of the ICV in bits.
        icv_bits: u32,
    },
    /// One to encrypt, one to authenticate.
    Separate {
        /// Name of what encrypts.
        encryption: String,
        /// Name of what authenticates.
        integrity: String,
        /// Length of the ICV in bits.
        icv_bits: u32,
    },
}

impl Algorithm {
    /// What the kernel calls a cipher of Culvert's; `None`: it does not have it.
    #[must_use]
    pub fn of(cipher: Cipher) -> Option<Self> {
        // Linux has no implicit IVs.
        if cipher.iv_length() == 0 {
            return None;
        }
        let name = match (cipher.algorithm(), cipher.encrypts()) {
            (sa::Algorithm::ChaCha20Poly1305, _) => "rfc7539esp(chacha20,poly1305)",
            (_, true) => "rfc4106(gcm(aes))",
            (_, false) => "rfc4543(gcm(aes))",
        };
        Some(aead(name, cipher.icv_length()))
    }

    /// The algorithms of IKEv2 transform IDs (IANA, "Transform Type 1" and "Transform Type 3").
    ///
    /// # Errors
    /// The kernel does not have them, or not together.
    pub(super) fn of_transforms(encryption: u16, integrity: u16) -> Result<Self, String> {
        // What charon says with an AEAD.
        let integrity = (integrity != 0 && integrity != 1024).then_some(integrity);
        if let Some(aead) = aead_of(encryption)? {
            return match integrity {
                None => Ok(aead),
                Some(_) => Err(format!("{aead} with another integrity algorithm")),
            };
        }
        let encryption = match encryption {
            3 => "cbc(des3_ede)",
            11 => "ecb(cipher_null)",
            12 => "cbc(aes)",
            13 => "rfc3686(ctr(aes))",
            23 => "cbc(camellia)",
            other => return Err(format!("the kernel has no encryption transform {other}")),
        };
        let (integrity, icv_bits) = match integrity {
            Some(2) => ("hmac(sha1)", 96),
            Some(5) => ("xcbc(aes)", 96),
            Some(8) => ("cmac(aes)", 96),
            Some(12) => ("hmac(sha256)", 128),
            Some(13) => ("hmac(sha384)", 192),
            Some(14) => ("hmac(sha512)", 256),
            Some(other) => return Err(format!("the kernel has no integrity transform {other}")),
            // RFC 4303 §3.2: confidentiality only is nothing to be had.
            None => return Err(format!("{encryption} without integrity is not served")),
        };
        Ok(Self::Separate {
            encryption: encryption.to_owned(),
            integrity: integrity.to_owned(),
            icv_bits,
        })
    }

    /// What stands for its keys: the same as for an SA of Culvert's with this cipher and key.
    pub(super) fn fingerprint(&self, key: &[u8], integrity_key: &[u8]) -> Fingerprint {
        let known = Cipher::ALL.into_iter().find(|cipher| {
            cipher.keymat_length() == key.len() && Self::of(*cipher).as_ref() == Some(self)
        });
        match known {
            Some(cipher) => fingerprint_of(cipher.name(), &[key]),
            None => fingerprint_of(&self.to_string(), &[key, integrity_key]),
        }
    }
}

fn aead(name: &str, icv_bytes: usize) -> Algorithm {
    Algorithm::Aead {
        name: name.to_owned(),
        icv_bits: u32::try_from(icv_bytes * 8).unwrap_or_default(),
    }
}

/// The AEAD of a transform, if it is one.
fn aead_of(transform: u16) -> Result<Option<Algorithm>, String> {
    let (name, icv_bytes) = match transform {
        14 => ("rfc4309(ccm(aes))", 8),
        15 => ("rfc4309(ccm(aes))", 12),
        16 => ("rfc4309(ccm(aes))", 16),
        18 => ("rfc4106(gcm(aes))", 8),
        19 => ("rfc4106(gcm(aes))", 12),
        20 => ("rfc4106(gcm(aes))", 16),
        21 => ("rfc4543(gcm(aes))", 16),
        28 => ("rfc7539esp(chacha20,poly1305)", 16),
        29..=31 => return Err("the kernel has no implicit IVs".to_owned()),
        _ => return Ok(None),
    };
    Ok(Some(aead(name, icv_bytes)))
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Aead { name, icv_bits } => write!(f, "{name} {icv_bits}"),
            Self::Separate {
                encryption,
                integrity,
                icv_bits,
            } => write!(f, "{encryption} {integrity} {icv_bits}"),
        }
    }
}

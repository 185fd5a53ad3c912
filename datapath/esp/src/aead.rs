//! The ciphers behind one type: aws-lc-rs (default: the faster by far) and RustCrypto (portable, and the
//! oracle that the default is held against).

use std::fmt;

use culvert_proto::sa::Cipher;

use crate::ICV;

/// Which implementation of the ciphers to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// AWS-LC through aws-lc-rs.
    #[cfg(feature = "aws-lc")]
    AwsLc,
    /// aes-gcm and chacha20poly1305 of RustCrypto.
    RustCrypto,
}

impl Backend {
    /// The backends of this build, the default first.
    pub const ALL: &'static [Self] = &[
        #[cfg(feature = "aws-lc")]
        Self::AwsLc,
        Self::RustCrypto,
    ];

    /// The name in settings and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            #[cfg(feature = "aws-lc")]
            Self::AwsLc => "aws-lc-rs",
            Self::RustCrypto => "rustcrypto",
        }
    }

    /// The backend of that name, if this build has it.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL
            .iter()
            .copied()
            .find(|backend| backend.name() == name)
    }
}

impl Default for Backend {
    fn default() -> Self {
        Self::ALL[0]
    }
}

/// The AEAD refused: a wrong ICV when opening; when sealing, a length beyond the cipher's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A key, expanded once, in one of the backends. Its memory is zeroised when dropped.
pub struct Aead(Inner);

// A boxed context would cost a cache line and a miss per packet; an `Aead` lives in an SA, on the heap.
enum Inner {
    #[cfg(feature = "aws-lc")]
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    Aes128(aes_gcm::Aes128Gcm),
    Aes256(aes_gcm::Aes256Gcm),
    ChaCha(chacha20poly1305::ChaCha20Poly1305),
}

impl Aead {
    /// Expands `key`.
    ///
    /// # Errors
    /// [`Refused`] for a key whose length is not the cipher's.
    pub fn new(backend: Backend, cipher: Cipher, key: &[u8]) -> Result<Self, Refused> {
        match backend {
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc => {
                use aws_lc_rs::aead;
                let algorithm = match cipher {
                    Cipher::Aes128Gcm16 => &aead::AES_128_GCM,
                    Cipher::Aes256Gcm16 => &aead::AES_256_GCM,
                    Cipher::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
                };
                let key = aead::UnboundKey::new(algorithm, key).map_err(|_| Refused)?;
                Ok(Self(Inner::AwsLc(aead::LessSafeKey::new(key))))
            }
            Backend::RustCrypto => {
                use aes_gcm::KeyInit;
                Ok(Self(match cipher {
                    Cipher::Aes128Gcm16 => {
                        Inner::Aes128(aes_gcm::Aes128Gcm::new_from_slice(key).map_err(|_| Refused)?)
                    }
                    Cipher::Aes256Gcm16 => {
                        Inner::Aes256(aes_gcm::Aes256Gcm::new_from_slice(key).map_err(|_| Refused)?)
                    }
                    Cipher::ChaCha20Poly1305 => Inner::ChaCha(
                        chacha20poly1305::ChaCha20Poly1305::new_from_slice(key)
                            .map_err(|_| Refused)?,
                    ),
                }))
            }
        }
    }

    /// Encrypts `text` in place and returns the ICV over it and `aad`.
    ///
    /// # Errors
    /// [`Refused`] if the cipher cannot take the length.
    #[inline]
    pub fn seal(&self, nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> Result<[u8; ICV], Refused> {
        match &self.0 {
            #[cfg(feature = "aws-lc")]
            Inner::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let icv = key
                    .seal_in_place_separate_tag(nonce, Aad::from(aad), text)
                    .map_err(|_| Refused)?;
                icv.as_ref().try_into().map_err(|_| Refused)
            }
            Inner::Aes128(key) => portable_seal(key, nonce, aad, text),
            Inner::Aes256(key) => portable_seal(key, nonce, aad, text),
            Inner::ChaCha(key) => portable_seal(key, nonce, aad, text),
        }
    }

    /// Verifies and decrypts in place `text`, which ends with the ICV; the clear text is what comes
    /// before it.
    ///
    /// # Errors
    /// [`Refused`] if the ICV is not that of the text and `aad`; what `text` holds then is not to be used.
    #[inline]
    pub fn open(&self, nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> Result<(), Refused> {
        match &self.0 {
            #[cfg(feature = "aws-lc")]
            Inner::AwsLc(key) => {
                use aws_lc_rs::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(aad), text)
                    .map(|_| ())
                    .map_err(|_| Refused)
            }
            Inner::Aes128(key) => portable_open(key, nonce, aad, text),
            Inner::Aes256(key) => portable_open(key, nonce, aad, text),
            Inner::ChaCha(key) => portable_open(key, nonce, aad, text),
        }
    }
}

impl fmt::Debug for Aead {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Aead(…)")
    }
}

fn portable_seal<K>(
    key: &K,
    nonce: [u8; 12],
    aad: &[u8],
    text: &mut [u8],
) -> Result<[u8; ICV], Refused>
where
    K: aes_gcm::aead::AeadInOut<
            NonceSize = aes_gcm::aead::consts::U12,
            TagSize = aes_gcm::aead::consts::U16,
        >,
{
    key.encrypt_inout_detached(&nonce.into(), aad, text.into())
        .map(Into::into)
        .map_err(|_| Refused)
}

fn portable_open<K>(key: &K, nonce: [u8; 12], aad: &[u8], text: &mut [u8]) -> Result<(), Refused>
where
    K: aes_gcm::aead::AeadInOut<
            NonceSize = aes_gcm::aead::consts::U12,
            TagSize = aes_gcm::aead::consts::U16,
        >,
{
    let (text, icv) = text.split_last_chunk_mut::<ICV>().ok_or(Refused)?;
    key.decrypt_inout_detached(&nonce.into(), aad, text.into(), &(*icv).into())
        .map_err(|_| Refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_key_of_another_length_is_refused() {
        for &backend in Backend::ALL {
            for cipher in Cipher::ALL {
                for length in [0, cipher.key_length() - 1, cipher.key_length() + 1] {
                    assert!(Aead::new(backend, cipher, &vec![0; length]).is_err());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_backend_seals_the_same_and_opens_the_others(
            key in any::<[u8; 32]>(), nonce in any::<[u8; 12]>(), aad in any::<[u8; 12]>(),
            text in proptest::collection::vec(any::<u8>(), 0..2000), flip in any::<prop::sample::Index>(),
        ) {
            for cipher in Cipher::ALL {
                let key = &key[..cipher.key_length()];
                let mut sealed: Vec<Vec<u8>> = Vec::new();
                for &backend in Backend::ALL {
                    let aead = Aead::new(backend, cipher, key).unwrap();
                    let mut bytes = text.clone();
                    let icv = aead.seal(nonce, &aad, &mut bytes).unwrap();
                    bytes.extend(icv);
                    sealed.push(bytes);
                }
                prop_assert!(sealed.iter().all(|bytes| *bytes == sealed[0]));
                for &backend in Backend::ALL {
                    let aead = Aead::new(backend, cipher, key).unwrap();
                    let mut bytes = sealed[0].clone();
                    aead.open(nonce, &aad, &mut bytes).unwrap();
                    prop_assert_eq!(&bytes[..text.len()], &text[..]);
                    let mut bytes = sealed[0].clone();
                    let at = flip.index(bytes.len());
                    bytes[at] ^= 1;
                    prop_assert_eq!(aead.open(nonce, &aad, &mut bytes), Err(Refused));
                }
            }
        }
    }
}

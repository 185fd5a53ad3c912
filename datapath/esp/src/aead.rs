//! The ciphers behind one type: Intel's multi-buffer library and aws-lc-rs, which are fast, RustCrypto's, which are portable
//! and the oracle that the others are held against, and ring, to compare. [`backend`] says which of them is used.

use std::fmt;

use culvert_proto::sa::Algorithm;
use subtle::ConstantTimeEq;

use crate::MAX_ICV;

pub mod backend;

pub use backend::{Backend, Choice, ChoiceError};

/// The AEAD refused: a wrong ICV when opening; when sealing, a length beyond the cipher's limits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refused;

/// A key, expanded once, in one of the backends. Its memory is zeroised when dropped (not so ring's).
pub struct Aead(Inner);

// A boxed context would cost a cache line and a miss per packet; an `Aead` lives in an SA, on the heap. The multi-buffer library's
// is boxed all the same: moved, a kilobyte of expanded key would leave copies that nobody zeroises.
enum Inner {
    // RFC 4303 §1 [1-both, 1-integrity-only]: each of them is both in one; AES-GCM of no text is AES-GMAC.
    #[cfg(feature = "aws-lc")]
    AwsLc(aws_lc_rs::aead::LessSafeKey),
    #[cfg(feature = "ipsec-mb")]
    IpsecMb(culvert_ipsec_mb::Key),
    #[cfg(feature = "ring")]
    Ring(ring::aead::LessSafeKey),
    Aes128(aes_gcm::Aes128Gcm),
    Aes192(aes_gcm::AesGcm<aes_gcm::aes::Aes192, aes_gcm::aead::consts::U12>),
    Aes256(aes_gcm::Aes256Gcm),
    ChaCha(chacha20poly1305::ChaCha20Poly1305),
}

impl Aead {
    /// Expands `key`.
    ///
    /// # Errors
    /// [`Refused`] for a key whose length is not the cipher's, and for what the backend does not
    /// [serve](Backend::serves).
    pub fn new(backend: Backend, algorithm: Algorithm, key: &[u8]) -> Result<Self, Refused> {
        match backend {
            #[cfg(feature = "aws-lc")]
            Backend::AwsLc => {
                use aws_lc_rs::aead;
                let algorithm = match algorithm {
                    Algorithm::Aes128Gcm => &aead::AES_128_GCM,
                    Algorithm::Aes192Gcm => &aead::AES_192_GCM,
                    Algorithm::Aes256Gcm => &aead::AES_256_GCM,
                    Algorithm::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
                };
                let key = aead::UnboundKey::new(algorithm, key).map_err(|_| Refused)?;
                Ok(Self(Inner::AwsLc(aead::LessSafeKey::new(key))))
            }
            #[cfg(feature = "ipsec-mb")]
            Backend::IpsecMb => {
                use culvert_ipsec_mb::{Cipher, Key};
                let cipher = match algorithm {
                    Algorithm::Aes128Gcm => Cipher::Aes128Gcm,
                    Algorithm::Aes192Gcm => Cipher::Aes192Gcm,
                    Algorithm::Aes256Gcm => Cipher::Aes256Gcm,
                    Algorithm::ChaCha20Poly1305 => Cipher::ChaCha20Poly1305,
                };
                let key = Key::new(cipher, key).ok_or(Refused)?;
                Ok(Self(Inner::IpsecMb(key)))
            }
            #[cfg(feature = "ring")]
            Backend::Ring => {
                use ring::aead;
                let algorithm = match algorithm {
                    Algorithm::Aes128Gcm => &aead::AES_128_GCM,
                    Algorithm::Aes192Gcm => return Err(Refused),
                    Algorithm::Aes256Gcm => &aead::AES_256_GCM,
                    Algorithm::ChaCha20Poly1305 => &aead::CHACHA20_POLY1305,
                };
                let key = aead::UnboundKey::new(algorithm, key).map_err(|_| Refused)?;
                Ok(Self(Inner::Ring(aead::LessSafeKey::new(key))))
            }
            Backend::RustCrypto => {
                use aes_gcm::KeyInit;
                fn make<K: KeyInit>(key: &[u8]) -> Result<K, Refused> {
                    K::new_from_slice(key).map_err(|_| Refused)
                }
                Ok(Self(match algorithm {
                    Algorithm::Aes128Gcm => Inner::Aes128(make(key)?),
                    Algorithm::Aes192Gcm => Inner::Aes192(make(key)?),
                    Algorithm::Aes256Gcm => Inner::Aes256(make(key)?),
                    Algorithm::ChaCha20Poly1305 => Inner::ChaCha(make(key)?),
                }))
            }
        }
    }

    /// Encrypts `text` in place and returns the ICV over it and `aad`.
    ///
    /// # Errors
    /// [`Refused`] if the cipher cannot take the length.
    #[inline]
    pub fn seal(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        text: &mut [u8],
    ) -> Result<[u8; MAX_ICV], Refused> {
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
            #[cfg(feature = "ipsec-mb")]
            Inner::IpsecMb(key) => key.seal(&nonce, aad, text).ok_or(Refused),
            #[cfg(feature = "ring")]
            Inner::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                let icv = key
                    .seal_in_place_separate_tag(nonce, Aad::from(aad), text)
                    .map_err(|_| Refused)?;
                icv.as_ref().try_into().map_err(|_| Refused)
            }
            Inner::Aes128(key) => portable_seal(key, nonce, aad, text),
            Inner::Aes192(key) => portable_seal(key, nonce, aad, text),
            Inner::Aes256(key) => portable_seal(key, nonce, aad, text),
            Inner::ChaCha(key) => portable_seal(key, nonce, aad, text),
        }
    }

    // RFC 4303 §3.4.4.1 [3.4.4.1-integrity-first]: it returns after both, and tells what came of both.
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
            #[cfg(feature = "ipsec-mb")]
            Inner::IpsecMb(key) => {
                let (text, icv) = text.split_last_chunk_mut::<MAX_ICV>().ok_or(Refused)?;
                if key.open(&nonce, aad, text, icv) {
                    Ok(())
                } else {
                    Err(Refused)
                }
            }
            #[cfg(feature = "ring")]
            Inner::Ring(key) => {
                use ring::aead::{Aad, Nonce};
                let nonce = Nonce::assume_unique_for_key(nonce);
                key.open_in_place(nonce, Aad::from(aad), text)
                    .map(|_| ())
                    .map_err(|_| Refused)
            }
            Inner::Aes128(key) => portable_open(key, nonce, aad, text),
            Inner::Aes192(key) => portable_open(key, nonce, aad, text),
            Inner::Aes256(key) => portable_open(key, nonce, aad, text),
            Inner::ChaCha(key) => portable_open(key, nonce, aad, text),
        }
    }

    // RFC 4303 §3.4.4.1 [3.4.4.1-integrity-first]: what is refused is ciphertext again.
    /// As [`Aead::open`] for AES-GCM with an ICV of fewer bytes than the backends check: `text` is without it.
    /// It takes three passes instead of one; sealing costs nothing more.
    ///
    /// # Errors
    /// [`Refused`] if `icv` is not how that of the text begins; then the text is as it was.
    pub fn open_shortened(
        &self,
        nonce: [u8; 12],
        aad: &[u8],
        text: &mut [u8],
        icv: &[u8],
    ) -> Result<(), Refused> {
        // GCM encrypts by exclusive or with a stream that only key and nonce make: sealing the ciphertext gives
        // the clear text, and sealing that again the ciphertext, with its ICV.
        self.seal(nonce, aad, text)?;
        let whole = self.seal(nonce, aad, text)?;
        let begins = whole.get(..icv.len()).ok_or(Refused)?;
        if !bool::from(begins.ct_eq(icv)) {
            return Err(Refused);
        }
        self.seal(nonce, aad, text).map(|_| ())
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
) -> Result<[u8; MAX_ICV], Refused>
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
    let (text, icv) = text.split_last_chunk_mut::<MAX_ICV>().ok_or(Refused)?;
    key.decrypt_inout_detached(&nonce.into(), aad, text.into(), &(*icv).into())
        .map_err(|_| Refused)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::collection::vec;
    use proptest::prelude::*;

    #[test]
    fn a_key_of_another_length_is_refused() {
        for &backend in Backend::ALL {
            for algorithm in Algorithm::ALL {
                for length in [0, algorithm.key_length() - 1, algorithm.key_length() + 1] {
                    assert!(Aead::new(backend, algorithm, &vec![0; length]).is_err());
                }
            }
        }
    }

    proptest! {
        #[test]
        fn every_backend_seals_the_same_and_opens_the_others(
            key in any::<[u8; 32]>(), nonce in any::<[u8; 12]>(),
            // All of AES-GMAC's packet is associated data; its text is empty.
            aad in prop_oneof![vec(any::<u8>(), 12), vec(any::<u8>(), 0..2000)],
            text in prop_oneof![Just(Vec::new()), vec(any::<u8>(), 0..2000)],
            flip in any::<prop::sample::Index>(),
        ) {
            for algorithm in Algorithm::ALL {
                let backends = Backend::ALL.iter().filter(|backend| backend.serves(algorithm));
                let key = &key[..algorithm.key_length()];
                let mut sealed: Vec<Vec<u8>> = Vec::new();
                for &backend in backends.clone() {
                    let aead = Aead::new(backend, algorithm, key).unwrap();
                    let mut bytes = text.clone();
                    let icv = aead.seal(nonce, &aad, &mut bytes).unwrap();
                    bytes.extend(icv);
                    sealed.push(bytes);
                }
                prop_assert!(sealed.iter().all(|bytes| *bytes == sealed[0]));
                for &backend in backends.clone() {
                    let aead = Aead::new(backend, algorithm, key).unwrap();
                    let mut bytes = sealed[0].clone();
                    aead.open(nonce, &aad, &mut bytes).unwrap();
                    prop_assert_eq!(&bytes[..text.len()], &text[..]);
                    let mut bytes = sealed[0].clone();
                    let at = flip.index(bytes.len());
                    bytes[at] ^= 1;
                    // RFC 4303 [1-both, 3.4.4.2-discarded]
                    prop_assert_eq!(aead.open(nonce, &aad, &mut bytes), Err(Refused));
                }
            }
        }

        #[test]
        fn a_shortened_icv_is_checked_in_full(
            key in any::<[u8; 32]>(), nonce in any::<[u8; 12]>(), aad in any::<[u8; 12]>(),
            text in vec(any::<u8>(), 0..500), flip in any::<prop::sample::Index>(),
            length in prop::sample::select(vec![8_usize, 12]),
        ) {
            for &backend in Backend::ALL {
                let aead = Aead::new(backend, Algorithm::Aes256Gcm, &key).unwrap();
                let mut sealed = text.clone();
                let icv = aead.seal(nonce, &aad, &mut sealed).unwrap();
                let mut damaged = [&sealed[..], &icv[..length]].concat();
                let at = flip.index(damaged.len());
                damaged[at] ^= 1;
                let (body, end) = damaged.split_at_mut(sealed.len());
                let before = body.to_vec();
                // RFC 4303 [3.4.4.1-integrity-first, 3.4.4.2-discarded]
                prop_assert_eq!(aead.open_shortened(nonce, &aad, body, end), Err(Refused));
                prop_assert_eq!(body, &before[..]);
                aead.open_shortened(nonce, &aad, &mut sealed, &icv[..length]).unwrap();
                prop_assert_eq!(&sealed, &text);
            }
        }
    }
}

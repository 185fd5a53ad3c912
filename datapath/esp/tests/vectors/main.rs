//! Vectors that others have published, good and bad, through every backend.
//!
//! * [`wycheproof`]: that project's sets of AES-GCM, ChaCha20-Poly1305 and AES-GMAC;
//! * [`cavp`]: samples of NIST's sets, and those of RFC 8439;
//! * [`esp_packets`]: whole ESP packets, from draft-mcgrew-gcm-test-01 and RFC 7634.
//!
//! Each says how many it has run, in lines like `Wycheproof: aes128gcm16 by aws-lc-rs: 40 good, 27 bad`.
#![expect(clippy::unwrap_used, reason = "a test's helpers")]

mod cavp;
mod esp_packets;
mod records;
mod wycheproof;

use std::fmt::Display;
use std::io::Write;

use culvert_esp::aead::{Aead, Refused};
use culvert_esp::{Backend, MAX_ICV};
use culvert_proto::sa::{Algorithm, Cipher};

/// One vector of an AEAD.
struct Case {
    /// Which one, for the message of a failed assertion.
    name: String,
    key: Vec<u8>,
    nonce: [u8; 12],
    aad: Vec<u8>,
    /// What is sealed; `None` if the vector does not say, as it must be refused.
    clear: Option<Vec<u8>>,
    sealed: Vec<u8>,
    /// The ICV; shorter than [`MAX_ICV`], it is the beginning of one.
    icv: Vec<u8>,
}

impl Case {
    fn aead(&self, algorithm: Algorithm, backend: Backend) -> Aead {
        Aead::new(backend, algorithm, &self.key).unwrap()
    }

    /// Seals `clear` as the case says.
    fn seal(&self, aead: &Aead, clear: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let mut text = clear.to_vec();
        let icv = aead.seal(self.nonce, &self.aad, &mut text).unwrap();
        (text, icv[..self.icv.len()].to_vec())
    }

    /// Opens `sealed` and `icv` as the case says.
    fn open(&self, aead: &Aead, sealed: &[u8], icv: &[u8]) -> Result<Vec<u8>, Refused> {
        if icv.len() == MAX_ICV {
            let mut text = [sealed, icv].concat();
            aead.open(self.nonce, &self.aad, &mut text)?;
            text.truncate(sealed.len());
            Ok(text)
        } else {
            let mut text = sealed.to_vec();
            aead.open_shortened(self.nonce, &self.aad, &mut text, icv)?;
            Ok(text)
        }
    }

    /// Asserts that sealing and opening give what the case says, byte for byte.
    fn agrees(&self, aead: &Aead) {
        let name = &self.name;
        let clear = self.clear.as_deref().unwrap();
        let sealed = (self.sealed.clone(), self.icv.clone());
        assert_eq!(self.seal(aead, clear), sealed, "{name}: sealing");
        let opened = self.open(aead, &self.sealed, &self.icv);
        assert_eq!(opened.as_deref(), Ok(clear), "{name}: opening");
    }

    /// Asserts that the case does not open.
    fn is_refused(&self, aead: &Aead) {
        let opened = self.open(aead, &self.sealed, &self.icv);
        assert_eq!(opened, Err(Refused), "{}", self.name);
    }

    /// Asserts that the case, a good one, does not open with any one bit of its ICV flipped; says how many.
    fn refuses_flips(&self, aead: &Aead) -> usize {
        for bit in 0..self.icv.len() * 8 {
            let mut icv = self.icv.clone();
            icv[bit / 8] ^= 1 << (bit % 8);
            let opened = self.open(aead, &self.sealed, &icv);
            assert_eq!(opened, Err(Refused), "{}, bit {bit}", self.name);
        }
        self.icv.len() * 8
    }
}

/// The ciphers that `backend` has.
fn ciphers(backend: Backend) -> impl Iterator<Item = Cipher> {
    Cipher::ALL
        .into_iter()
        .filter(move |cipher| backend.serves(cipher.algorithm()))
}

/// Says how many vectors of `set` were run under `cipher` in `backend`. Not by `println!`, which is shown of
/// tests that fail only.
fn report(set: &str, cipher: impl Display, backend: Backend, counts: &[(usize, &str)]) {
    let counts: Vec<String> = counts
        .iter()
        .map(|(count, what)| format!("{count} {what}"))
        .collect();
    let line = format!(
        "{set}: {cipher} by {}: {}\n",
        backend.name(),
        counts.join(", ")
    );
    std::io::stdout().write_all(line.as_bytes()).unwrap();
}

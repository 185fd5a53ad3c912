//! In the place of the library: no key can be made.

use crate::{Cipher, TAG};

/// Why there are no keys.
#[must_use]
pub fn unfit() -> Option<&'static str> {
    Some("libipsec-mb was not there when this was built")
}

/// It does not.
#[must_use]
pub fn has_avx512() -> bool {
    false
}

/// There is none.
#[derive(Debug)]
pub enum Key {}

impl Key {
    /// None.
    #[must_use]
    pub fn new(_: Cipher, _: &[u8]) -> Option<Self> {
        None
    }

    /// Not called, as there is no key.
    pub fn seal(&self, _: &[u8; 12], _: &[u8], _: &mut [u8]) -> Option<[u8; TAG]> {
        match *self {}
    }

    /// Not called, as there is no key.
    pub fn open(&self, _: &[u8; 12], _: &[u8], _: &mut [u8], _: &[u8; TAG]) -> bool {
        match *self {}
    }
}

//! The library, by the functions that `shim.c` finds for this CPU.
#![expect(unsafe_code, reason = "the functions are C")]

use std::arch::x86_64::{__m128i, _mm_set_epi64x};
use std::ffi::c_int;
use std::fmt;
use std::mem::MaybeUninit;
use std::ptr::NonNull;
use std::sync::OnceLock;

use subtle::ConstantTimeEq;
use zeroize::{Zeroize, Zeroizing};

use crate::{Cipher, TAG};

/// Longest text and associated data: far below the limits of the ciphers, beyond which the library does nothing and tells
/// nobody but its error number.
const LONGEST: usize = 1 << 30;

/// `gcm_key_data`: round keys and powers of the hash key. The shim asserts that it fits.
#[repr(C, align(64))]
struct GcmKey([u8; 1024]);

/// `gcm_context_data`: what a call works with. The shim asserts that it fits.
#[repr(C, align(64))]
struct Context([u8; 128]);

type Expand = unsafe extern "C" fn(*const u8, *mut GcmKey);
type Crypt = unsafe extern "C" fn(
    key: *const GcmKey,
    context: *mut Context,
    output: *mut u8,
    input: *const u8,
    length: u64,
    nonce: *const u8,
    aad: *const u8,
    aad_length: u64,
    tag: *mut u8,
    tag_length: u64,
);

/// As in the shim.
#[derive(Clone, Copy)]
#[repr(C)]
struct Gcm {
    expand: Expand,
    seal: Crypt,
    open: Crypt,
}

/// As in the shim.
#[repr(C)]
struct Library {
    gcm128: Gcm,
    gcm192: Gcm,
    gcm256: Gcm,
    avx512: bool,
}

/// `IMB_MGR`, which only C looks into.
#[repr(C)]
struct Opaque([u8; 0]);

unsafe extern "C" {
    fn culvert_ipsec_mb_load(library: *mut MaybeUninit<Library>) -> c_int;
    fn culvert_ipsec_mb_manager() -> *mut Opaque;
    fn culvert_ipsec_mb_chacha20_poly1305(
        manager: *mut Opaque,
        open: bool,
        key: *const u8,
        nonce: *const u8,
        aad: *const u8,
        aad_length: u64,
        text: *mut u8,
        length: u64,
        tag: *mut u8,
    ) -> bool;
    fn free_mb_mgr(manager: *mut Opaque);
}

fn library() -> Result<&'static Library, &'static str> {
    static LIBRARY: OnceLock<Result<Library, &'static str>> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            let mut library = MaybeUninit::uninit();
            // SAFETY: it writes a `Library` and keeps no pointer; OnceLock lets one thread do this once.
            match unsafe { culvert_ipsec_mb_load(&raw mut library) } {
                // SAFETY: it says that it has filled all of it, with functions of these types.
                0 => Ok(unsafe { library.assume_init() }),
                1 => Err("libipsec-mb is of another release than what this was built with"),
                2 => Err("no memory for libipsec-mb"),
                3 => Err("this CPU lacks AES-NI or PCLMULQDQ"),
                _ => Err("libipsec-mb fails its own tests on this CPU"),
            }
        })
        .as_ref()
        .map_err(|problem| *problem)
}

/// Why no key can be made in this process; `None` if keys can be made.
#[must_use]
pub fn unfit() -> Option<&'static str> {
    library().err()
}

/// Whether the library uses AVX-512 with IFMA and VAES here, without which its ChaCha20-Poly1305 is not fast.
#[must_use]
pub fn has_avx512() -> bool {
    library().is_ok_and(|library| library.avx512)
}

/// A manager, of one thread: ChaCha20-Poly1305 goes through its queue of jobs.
struct Manager(NonNull<Opaque>);

thread_local! {
    // It takes a tenth of a millisecond to make, once for each thread.
    static MANAGER: Option<Manager> = {
        // SAFETY: it takes nothing; what it returns is ours.
        NonNull::new(unsafe { culvert_ipsec_mb_manager() }).map(Manager)
    };
}

impl Drop for Manager {
    fn drop(&mut self) {
        // SAFETY: it was made by `alloc_mb_mgr`, and nobody has it any more.
        unsafe { free_mb_mgr(self.0.as_ptr()) };
    }
}

/// A key, expanded. Its memory is zeroised when dropped.
pub struct Key(Inner);

enum Inner {
    Gcm {
        seal: Crypt,
        open: Crypt,
        key: Box<GcmKey>,
    },
    ChaCha(Box<Zeroizing<[u8; 32]>>),
}

impl Key {
    /// Expands `key`; `None` if it has not the cipher's length, or [`unfit`] says why not.
    #[must_use]
    pub fn new(cipher: Cipher, key: &[u8]) -> Option<Self> {
        let library = library().ok()?;
        if key.len() != cipher.key_length() {
            return None;
        }
        let gcm = match cipher {
            Cipher::Aes128Gcm => &library.gcm128,
            Cipher::Aes192Gcm => &library.gcm192,
            Cipher::Aes256Gcm => &library.gcm256,
            Cipher::ChaCha20Poly1305 => {
                let mut own = Box::new(Zeroizing::new([0; 32]));
                own.copy_from_slice(key);
                return Some(Self(Inner::ChaCha(own)));
            }
        };
        let mut expanded = Box::new(GcmKey([0; 1024]));
        // SAFETY: the function reads as many bytes as the cipher's key has, which was looked at, and writes one
        // `gcm_key_data`, which fits.
        unsafe { (gcm.expand)(key.as_ptr(), &raw mut *expanded) };
        Some(Self(Inner::Gcm {
            seal: gcm.seal,
            open: gcm.open,
            key: expanded,
        }))
    }

    /// Encrypts `text` in place and returns the tag over it and `aad`; `None` if they are longer than 1 GiB.
    #[inline]
    #[must_use]
    pub fn seal(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8]) -> Option<[u8; TAG]> {
        match &self.0 {
            Inner::Gcm { seal, key, .. } => gcm(*seal, key, nonce, aad, text),
            Inner::ChaCha(key) => chacha(false, key, nonce, aad, text),
        }
    }

    /// Decrypts `text` in place, and says whether `tag` is that of what it was and `aad`. If not, what `text` holds is not to be
    /// used.
    #[inline]
    #[must_use]
    pub fn open(&self, nonce: &[u8; 12], aad: &[u8], text: &mut [u8], tag: &[u8; TAG]) -> bool {
        let right = match &self.0 {
            Inner::Gcm { open, key, .. } => gcm(*open, key, nonce, aad, text),
            Inner::ChaCha(key) => chacha(true, key, nonce, aad, text),
        };
        right.is_some_and(|right| is_same(&right, tag))
    }
}

/// Compares in constant time, as numbers: byte by byte it takes as long as a third of a short packet.
#[inline]
fn is_same(one: &[u8; TAG], other: &[u8; TAG]) -> bool {
    let number = |tag: &[u8; TAG]| u128::from_ne_bytes(*tag);
    number(one).ct_eq(&number(other)).into()
}

/// A nonce, or associated data, in one store. The library reads each by a load of 16 bytes; a CPU hands that what was stored a
/// moment ago only if one store has all of it, and else waits for 40 clocks, which is a third of a short packet.
struct Vector(__m128i);

impl Vector {
    /// Salt and IV, or SPI and 64-bit sequence number, read by halves as the ESP core stores them: 8 bytes and 4.
    #[inline]
    fn of_12(bytes: &[u8; 12]) -> Self {
        let [low @ .., a, b, c, d] = *bytes;
        Self::of(
            u64::from_le_bytes(low),
            u64::from(u32::from_le_bytes([a, b, c, d])),
        )
    }

    /// SPI and 32-bit sequence number.
    #[inline]
    fn of_8(bytes: &[u8; 8]) -> Self {
        Self::of(u64::from_le_bytes(*bytes), 0)
    }

    #[inline]
    fn start(&self) -> *const u8 {
        (&raw const self.0).cast()
    }

    #[inline]
    fn of(low: u64, high: u64) -> Self {
        // SAFETY: every x86-64 CPU has SSE2.
        Self(unsafe { _mm_set_epi64x(high.cast_signed(), low.cast_signed()) })
    }
}

#[inline]
fn gcm(
    crypt: Crypt,
    key: &GcmKey,
    nonce: &[u8; 12],
    aad: &[u8],
    text: &mut [u8],
) -> Option<[u8; TAG]> {
    if text.len().max(aad.len()) > LONGEST {
        return None;
    }
    let nonce = Vector::of_12(nonce);
    let short;
    let start = if let Ok(aad) = aad.try_into() {
        short = Vector::of_12(aad);
        short.start()
    } else if let Ok(aad) = aad.try_into() {
        short = Vector::of_8(aad);
        short.start()
    } else {
        aad.as_ptr()
    };
    let mut context = MaybeUninit::uninit();
    let mut tag = [0; TAG];
    let at = text.as_mut_ptr();
    // SAFETY: `key` was filled by this cipher's `expand`, and is only read; the context is written before it is read; text,
    // nonce, AAD and tag are memory of the lengths given that nobody else has. Output and input may be the same. Nothing is
    // kept after the call, so several threads may be in it.
    unsafe {
        crypt(
            key,
            context.as_mut_ptr(),
            at,
            at,
            text.len() as u64,
            nonce.start(),
            start,
            aad.len() as u64,
            tag.as_mut_ptr(),
            TAG as u64,
        );
    }
    Some(tag)
}

#[inline]
fn chacha(
    open: bool,
    key: &[u8; 32],
    nonce: &[u8; 12],
    aad: &[u8],
    text: &mut [u8],
) -> Option<[u8; TAG]> {
    if text.len().max(aad.len()) > LONGEST {
        return None;
    }
    let nonce = Vector::of_12(nonce);
    let mut tag = [0; TAG];
    let done = MANAGER.with(|manager| {
        let manager = manager.as_ref()?;
        // SAFETY: the manager is this thread's, and the call does not come back here. Key, nonce, AAD, text and tag are memory
        // of the lengths given, and the text and the tag are nobody else's. The job is over with the call, and what the
        // manager keeps of it is overwritten by the next before it is read.
        let done = unsafe {
            culvert_ipsec_mb_chacha20_poly1305(
                manager.0.as_ptr(),
                open,
                key.as_ptr(),
                nonce.start(),
                aad.as_ptr(),
                aad.len() as u64,
                text.as_mut_ptr(),
                text.len() as u64,
                tag.as_mut_ptr(),
            )
        };
        Some(done)
    });
    (done == Some(true)).then_some(tag)
}

impl Drop for GcmKey {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// NIST's example of AES-256-GCM without text (test case 13), and RFC 8439 §2.8.2's tag.
    #[test]
    fn tags_are_those_of_the_standards() {
        let key = Key::new(Cipher::Aes256Gcm, &[0; 32]).unwrap();
        let tag = key.seal(&[0; 12], &[], &mut []).unwrap();
        assert_eq!(&tag[..4], [0x53, 0x0f, 0x8a, 0xfb]);

        let key: Vec<u8> = (0x80..0xa0).collect();
        let key = Key::new(Cipher::ChaCha20Poly1305, &key).unwrap();
        let mut text =
            b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the \
            future, sunscreen would be it."
                .to_vec();
        let clear = text.clone();
        let nonce = [7, 0, 0, 0, 0x40, 0x41, 0x42, 0x43, 0x44, 0x45, 0x46, 0x47];
        let aad = [
            0x50, 0x51, 0x52, 0x53, 0xc0, 0xc1, 0xc2, 0xc3, 0xc4, 0xc5, 0xc6, 0xc7,
        ];
        let tag = key.seal(&nonce, &aad, &mut text).unwrap();
        assert_eq!(tag[..4], [0x1a, 0xe1, 0x0b, 0x59]);
        assert!(key.open(&nonce, &aad, &mut text, &tag));
        assert_eq!(text, clear);
    }

    #[test]
    fn several_threads_share_a_key() {
        for cipher in [Cipher::Aes256Gcm, Cipher::ChaCha20Poly1305] {
            let key = Key::new(cipher, &[7; 32]).unwrap();
            let expected = key.seal(&[1; 12], &[2; 8], &mut [3; 1400]).unwrap();
            std::thread::scope(|scope| {
                for _ in 0..4 {
                    scope.spawn(|| {
                        for _ in 0..10_000 {
                            let mut text = [3; 1400];
                            let tag = key.seal(&[1; 12], &[2; 8], &mut text).unwrap();
                            assert_eq!(tag, expected);
                            assert!(key.open(&[1; 12], &[2; 8], &mut text, &tag));
                            assert_eq!(text, [3; 1400]);
                        }
                    });
                }
            });
        }
    }
}

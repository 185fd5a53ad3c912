//! An SA's share of the state: a slice of atomic words, in the shared region or on the heap.
#![expect(
    unsafe_code,
    reason = "a slice of atomics in memory shared between processes"
)]

use std::any::Any;
use std::fmt;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// A slice of 64-bit atomic words whose memory lives as long as this does.
///
/// Several threads and processes may hold the same words: nothing is ever read or written but by
/// atomic operations.
#[derive(Clone)]
pub struct Words {
    start: NonNull<AtomicU64>,
    length: usize,
    _owner: Arc<dyn Any + Send + Sync>,
}

// SAFETY: a `&[AtomicU64]` may be sent and shared; the owner, which is Send + Sync, keeps it alive.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    /// Fresh words of zero on the heap, for tests and for `culvert pcap`: they end with the process.
    #[must_use]
    pub fn on_heap(length: usize) -> Self {
        let words: Arc<Box<[AtomicU64]>> =
            Arc::new((0..length).map(|_| AtomicU64::new(0)).collect());
        let start = NonNull::from(&words[..]).cast();
        Self {
            start,
            length,
            _owner: words,
        }
    }

    /// Words in memory that `owner` keeps mapped.
    ///
    /// # Safety
    /// `start` must be aligned, point at `length` words that stay mapped, readable and writable while
    /// `owner` lives, and are accessed by atomic operations only.
    #[must_use]
    pub unsafe fn in_memory(
        start: NonNull<AtomicU64>,
        length: usize,
        owner: Arc<dyn Any + Send + Sync>,
    ) -> Self {
        Self {
            start,
            length,
            _owner: owner,
        }
    }
}

impl Deref for Words {
    type Target = [AtomicU64];

    #[inline]
    fn deref(&self) -> &[AtomicU64] {
        // SAFETY: by the contract of the constructors, valid for as long as the owner, which `self`
        // holds, lives.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.length) }
    }
}

impl fmt::Debug for Words {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Words({})", self.length)
    }
}

//! Arbitrary bytes as the body of a control message: no panic, no memory beyond a multiple of their number, and
//! what is understood is the same after it was sent on.
#![no_main]

use std::alloc::{GlobalAlloc, Layout, System};
use std::fmt::Debug;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use culvert_bridge::wire::{self, Wire};
use culvert_proto::channel::{decode, encode};
use culvert_proto::message::{DatapathReply, DatapathRequest, KeymgrReply, KeymgrRequest};
use libfuzzer_sys::fuzz_target;
use serde::{Serialize, de::DeserializeOwned};

/// Bytes that a message may take up in memory for each that it has on the wire: an empty text is one byte there,
/// three words here, and a list that grows is there twice for a moment.
const GROWTH: usize = 128;
/// Bytes that lists may take up before they have elements, whatever length they claim: serde's limit of 1 MiB,
/// for lists within lists.
const CLAIMED: usize = 4 << 20;

/// Counts what is allocated, and the most that there ever was.
struct Counting;

static NOW: AtomicUsize = AtomicUsize::new(0);
static MOST: AtomicUsize = AtomicUsize::new(0);

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's allocator does it all. What is reallocated goes through these two as well.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let now = NOW.fetch_add(layout.size(), Relaxed) + layout.size();
        MOST.fetch_max(now, Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        NOW.fetch_sub(layout.size(), Relaxed);
        // SAFETY: as the caller says.
        unsafe { System.dealloc(start, layout) }
    }
}

fn check<T: Serialize + DeserializeOwned + Debug>(body: &[u8]) {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let message = decode::<T>(body);
    let most = MOST.load(Relaxed) - before;
    assert!(most <= CLAIMED + GROWTH * body.len(), "{most} bytes taken");
    let Ok(message) = message else {
        return;
    };
    let sent = encode(&message).unwrap();
    let (length, again) = sent.split_first_chunk().unwrap();
    assert_eq!(u32::from_le_bytes(*length) as usize, again.len());
    assert!(again.len() <= body.len());
    let same = decode::<T>(again).unwrap();
    assert_eq!(format!("{message:?}"), format!("{same:?}"));
    // Keys are not in the texts.
    assert_eq!(encode(&same).unwrap(), sent);
}

/// The same for what charon's plugin and the key manager say to each other, where what is understood has one form only.
fn check_bridge<T: Wire>(body: &[u8]) {
    let before = NOW.load(Relaxed);
    MOST.store(before, Relaxed);
    let message = wire::decode::<T>(body);
    let most = MOST.load(Relaxed) - before;
    assert!(most <= CLAIMED + GROWTH * body.len(), "{most} bytes taken");
    if let Some(message) = message {
        let mut sent = Vec::new();
        message.write(&mut sent);
        assert_eq!(sent, body);
    }
}

fuzz_target!(|input: &[u8]| {
    let Some((kind, body)) = input.split_first() else {
        return;
    };
    match kind % 7 {
        0 => check::<DatapathRequest>(body),
        1 => check::<DatapathReply>(body),
        2 => check::<KeymgrRequest>(body),
        3 => check::<KeymgrReply>(body),
        4 => check_bridge::<culvert_bridge::Request>(body),
        5 => check_bridge::<culvert_bridge::Reply>(body),
        _ => check_bridge::<culvert_bridge::Event>(body),
    }
});

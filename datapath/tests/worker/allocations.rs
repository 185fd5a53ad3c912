//! The worker's loop allocates nothing: a counting allocator watches it.
#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use super::common::*;

thread_local! {
    static BYTES: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is left to the system's allocator; counting touches a thread-local integer only.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        BYTES.with(|bytes| bytes.set(bytes.get() + layout.size() as u64));
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn no_byte_is_allocated_per_packet() {
    for kind in Kind::all() {
        let (mut a, _) = worker(kind, false);
        let (mut b, _) = worker(kind, true);
        let clear = geneve(kind, 1300, 0);
        let mut allocated = 0;
        for round in 0..20 {
            let (_, host, pool) = a.parts();
            for _ in 0..64 {
                let mut frame = pool.take().unwrap();
                frame.write(&clear).unwrap();
                host.arriving.push_back(frame);
            }
            let before = BYTES.get();
            a.turn();
            let sealing = BYTES.get() - before;
            // A worker owns its pool; here the frames change hands by copy.
            let sealed: Vec<_> = a.parts().0[0].sent.drain(..).collect();
            for frame in sealed {
                let (wire, _, pool) = b.parts();
                let mut copy = pool.take().unwrap();
                copy.write(frame.bytes()).unwrap();
                wire[0].arriving.push_back(copy);
                a.parts().2.give(frame);
            }
            let before = BYTES.get();
            b.turn();
            let opening = BYTES.get() - before;
            let (_, host, _) = b.parts();
            let opened: Vec<_> = host.sent.drain(..).collect();
            assert_eq!(opened.len(), 64);
            for frame in opened {
                b.parts().2.give(frame);
            }
            // The memory ports' queues grow in the first rounds.
            if round >= 2 {
                allocated += sealing + opening;
            }
        }
        assert_eq!(allocated, 0, "{kind:?}");
    }
}

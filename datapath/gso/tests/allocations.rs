//! Nothing allocates per packet: cutting never does, and joining does not for batches of the announced length.

#![expect(unsafe_code, reason = "an allocator is an unsafe trait")]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use culvert_gso::{Coalescer, Superpacket};

use common::batch::EVERYTHING;
use common::{Dice, Shape};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

// SAFETY: all is left to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as it is asked of this one.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: as it is asked of this one.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// How often `work` allocates.
fn allocations(work: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn it_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(vec![1]))), 1);
}

#[test]
fn nothing_allocates() {
    let mut to = vec![0; 65535];
    for seed in 0..200 {
        let shape = Shape::random(&mut Dice(seed), true);
        let (header, bytes) = shape.superpacket();
        let cutting = allocations(|| {
            let packet = Superpacket::new(&header, &bytes).unwrap();
            for segment in packet.segments(1200).iter() {
                segment.write_into(&mut to).unwrap();
            }
        });
        assert_eq!(cutting, 0);
        let frames = shape.segments();
        let mut first = frames[0].clone();
        let mut coalescer = Coalescer::new(EVERYTHING, frames.len());
        let joining = allocations(|| {
            for _ in 0..2 {
                coalescer.coalesce(&frames);
                for group in coalescer.groups() {
                    coalescer.prepare(group, &mut first);
                    coalescer.rest(group).for_each(drop);
                }
            }
        });
        assert_eq!(joining, 0);
    }
}

//! The same by io_uring: all of a batch in one system call, on a ring that is told all that makes it faster.

use std::fs::File;
use std::os::fd::AsRawFd;

use io_uring::squeue::Entry;
use io_uring::types::Fixed;
use io_uring::{IoUring, opcode};

use super::memory::Memory;

/// A ring with the TAP as its one registered file.
pub(crate) struct Ring {
    ring: IoUring,
}

impl Ring {
    pub(crate) fn new(tap: &File, entries: u32) -> Self {
        let ring = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(entries)
            .expect("io_uring");
        let submitter = ring.submitter();
        submitter.register_files(&[tap.as_raw_fd()]).expect("files");
        Self { ring }
    }

    /// As [`Ring::new`], with `memory` as its registered buffer.
    pub(crate) fn with_buffer(tap: &File, entries: u32, memory: &mut Memory) -> Self {
        let this = Self::new(tap, entries);
        let all = memory.all();
        let vector = libc::iovec {
            iov_base: all.as_mut_ptr().cast(),
            iov_len: all.len(),
        };
        // SAFETY: the memory lives as long as the process, and is read by nobody while a batch is on its way.
        unsafe { this.ring.submitter().register_buffers(&[vector]) }.expect("buffers");
        this
    }

    /// Reads a packet to each of the first `count` buffers.
    pub(crate) fn read(&mut self, memory: &mut Memory, count: usize, length: usize) {
        let entry = |number: usize| {
            let buffer = memory.buffer(number);
            opcode::Read::new(Fixed(0), buffer.as_mut_ptr(), buffer.len() as u32).build()
        };
        self.batch((0..count).map(entry), length);
    }

    /// The same to the registered buffer, which is `memory`.
    pub(crate) fn read_fixed(&mut self, memory: &mut Memory, count: usize, length: usize) {
        let entry = |number: usize| {
            let buffer = memory.buffer(number);
            opcode::ReadFixed::new(Fixed(0), buffer.as_mut_ptr(), buffer.len() as u32, 0).build()
        };
        self.batch((0..count).map(entry), length);
    }

    /// Writes the packet of `parts`, `count` times.
    pub(crate) fn write(&mut self, parts: &[libc::iovec], count: usize, length: usize) {
        let entry = |_| opcode::Writev::new(Fixed(0), parts.as_ptr(), parts.len() as u32).build();
        self.batch((0..count).map(entry), length);
    }

    /// All of it, to its end. Whatever the entries point at is borrowed by who calls this.
    fn batch(&mut self, entries: impl ExactSizeIterator<Item = Entry>, length: usize) {
        let count = entries.len();
        let mut queue = self.ring.submission();
        for entry in entries {
            // SAFETY: what it points at is borrowed until all of them are completed, below.
            unsafe { queue.push(&entry) }.expect("room in the ring");
        }
        drop(queue);
        self.ring.submit_and_wait(count).expect("to submit");
        let mut done = 0;
        for completion in self.ring.completion() {
            assert_eq!(completion.result(), length as i32);
            done += 1;
        }
        assert_eq!(done, count);
    }
}

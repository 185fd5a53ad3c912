//! Frames and the pool that they come from: memory in chunks of one size, each owned by exactly one
//! [`Frame`], or by the kernel.
//!
//! A packet that is longer than a chunk comes and goes in several, but is worked on in one piece: for that a pool may have
//! long frames, too, which the kernel never sees ([`Pool::add_long`]).
//!
//! A [`Frame`] is neither `Copy` nor `Clone`, so it is in one ring only; whoever is done with it
//! gives it back to the [`Pool`]. The memory lives as long as the process: a worker's frames are
//! needed until it ends, and nothing can dangle.
#![expect(
    unsafe_code,
    reason = "frames are slices of memory that the kernel writes too"
)]

use std::ops::Range;
use std::ptr::NonNull;

use culvert_esp::{MAX_TAILROOM, buffer};
use culvert_gso::coalesce::Packet;

/// Size of a chunk that the kernel shares, in bytes: a page, the largest that AF_XDP takes without huge
/// pages.
pub const CHUNK: u32 = 4096;

/// Where a received packet starts in its chunk: the user's headroom and the kernel's
/// `XDP_PACKET_HEADROOM` of 256 bytes.
pub const HEADROOM: usize = USER_HEADROOM + 256;

/// Headroom asked of the kernel: enough for the headers to move forward when sealing.
pub const USER_HEADROOM: usize = 32;
const _: () = assert!(USER_HEADROOM >= culvert_esp::MAX_HEADROOM);

/// Longest packet that a chunk takes behind [`HEADROOM`], in bytes.
pub const PIECE: usize = CHUNK as usize - HEADROOM;

/// Size of a long frame in bytes: for the packets of every Ethernet NIC whose MTU is not "no limit".
pub const LONG: u32 = 16_384;

/// A packet in a chunk of memory that is its alone.
#[must_use = "a frame that is dropped is a chunk lost: give it back to the pool"]
#[derive(Debug)]
pub struct Frame {
    chunk: NonNull<u8>,
    size: u32,
    index: u32,
    start: u32,
    end: u32,
    authenticated: bool,
}

// SAFETY: the chunk is this frame's alone (see `Pool`), wherever the frame goes.
unsafe impl Send for Frame {}

impl Frame {
    /// The packet.
    #[inline]
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: the chunk is `size` bytes of live memory owned by this frame.
        let chunk = unsafe { std::slice::from_raw_parts(self.chunk.as_ptr(), self.size as usize) };
        &chunk[self.start as usize..self.end as usize]
    }

    /// Length of the packet in bytes.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        (self.end - self.start) as usize
    }

    /// Whether there is no packet in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// Number of the chunk in its pool.
    #[inline]
    #[must_use]
    pub fn index(&self) -> u32 {
        self.index
    }

    /// Offset of the packet in its chunk.
    #[inline]
    #[must_use]
    pub fn start(&self) -> usize {
        self.start as usize
    }

    /// Notes whether the packet is one that was authenticated.
    #[inline]
    pub fn set_authenticated(&mut self, authenticated: bool) {
        self.authenticated = authenticated;
    }

    /// Moves the packet to `start` in its chunk; false, and nothing done, if it does not fit there.
    pub fn move_to(&mut self, start: usize) -> bool {
        let bounds = buffer::Frame::bounds(self);
        let end = start + bounds.len();
        if end > self.size as usize {
            return false;
        }
        buffer::Frame::chunk(self).copy_within(bounds, start);
        buffer::Frame::set_bounds(self, start..end);
        true
    }

    /// Whether the packet can be sealed here: there is room for what comes behind it.
    #[inline]
    #[must_use]
    pub fn has_tailroom(&self) -> bool {
        self.end as usize + MAX_TAILROOM <= self.size as usize
    }

    /// Bytes from the packet's start to the end of its memory.
    #[inline]
    #[must_use]
    pub fn room(&self) -> usize {
        (self.size - self.start) as usize
    }

    /// Puts `bytes` behind the packet.
    ///
    /// # Errors
    /// They do not fit, and nothing is done.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        let bounds = buffer::Frame::bounds(self);
        let end = bounds.end + bytes.len();
        let room = buffer::Frame::chunk(self).get_mut(bounds.end..end);
        room.ok_or(TooLong(end - bounds.start))?
            .copy_from_slice(bytes);
        buffer::Frame::set_bounds(self, bounds.start..end);
        Ok(())
    }

    /// Makes the frame a copy of `bytes`.
    ///
    /// # Errors
    /// `bytes` do not fit behind the headroom.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), TooLong> {
        let bounds = HEADROOM..HEADROOM + bytes.len();
        if bounds.end > self.size as usize {
            return Err(TooLong(bytes.len()));
        }
        buffer::Frame::chunk(self)[bounds.clone()].copy_from_slice(bytes);
        buffer::Frame::set_bounds(self, bounds);
        Ok(())
    }
}

/// A packet that does not fit a chunk.
#[derive(Debug, thiserror::Error)]
#[error("a packet of {0} bytes does not fit a frame")]
pub struct TooLong(pub usize);

impl AsRef<[u8]> for Frame {
    #[inline]
    fn as_ref(&self) -> &[u8] {
        self.bytes()
    }
}

impl Packet for Frame {
    #[inline]
    fn authenticated(&self) -> bool {
        self.authenticated
    }
}

impl buffer::Frame for Frame {
    #[inline]
    fn chunk(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.chunk.as_ptr(), self.size as usize) }
    }

    #[inline]
    fn bounds(&self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "bounded by the chunk")]
    fn set_bounds(&mut self, bounds: Range<usize>) {
        let end = bounds.end.min(self.size as usize);
        self.start = bounds.start.min(end) as u32;
        self.end = end as u32;
    }
}

/// The frames of one worker: a free list over memory in chunks of one size, and one of long frames, which may be empty for
/// ever.
#[derive(Debug)]
pub struct Pool {
    base: NonNull<u8>,
    count: u32,
    chunk: u32,
    free: Vec<Frame>,
    /// Size of the long frames; 0 if there are none.
    long: u32,
    free_long: Vec<Frame>,
}

// SAFETY: the pool owns its memory, and its frames are Send.
unsafe impl Send for Pool {}

impl Pool {
    /// A pool of `frames` frames with chunks of `chunk` bytes on the heap, for ports that the kernel does
    /// not share. Its memory is never freed.
    #[must_use]
    pub fn on_heap(frames: u32, chunk: u32) -> Self {
        let memory = vec![0_u8; frames as usize * chunk as usize].leak();
        // SAFETY: leaked, so live for ever, and nobody else has it.
        unsafe { Self::in_memory(NonNull::from(memory).cast(), frames, chunk) }
    }

    /// A pool over `frames` chunks of `chunk` bytes from `base`.
    ///
    /// # Safety
    /// `base` points at `frames * chunk` bytes that are readable and writable until the process ends, and
    /// that nobody accesses but frames of this pool, and the kernel those that were lent to it.
    #[must_use]
    pub unsafe fn in_memory(base: NonNull<u8>, frames: u32, chunk: u32) -> Self {
        let mut pool = Self {
            base,
            count: frames,
            chunk,
            free: Vec::with_capacity(frames as usize),
            long: 0,
            free_long: Vec::new(),
        };
        // From the last to the first, so that they are taken in the order of memory.
        for index in (0..frames).rev() {
            // SAFETY: every chunk gets one frame, here.
            let frame = unsafe { pool.reclaim(index, HEADROOM, 0) };
            pool.free.extend(frame);
        }
        pool
    }

    /// Adds `frames` long frames of `size` bytes, on the heap, which is never freed.
    ///
    /// # Panics
    /// There are some, or they are no longer than a chunk.
    pub fn add_long(&mut self, frames: u32, size: u32) {
        assert!(
            self.long == 0 && size > self.chunk,
            "long frames are added once, and are long"
        );
        let memory = vec![0_u8; frames as usize * size as usize].leak();
        let base = NonNull::from(memory).cast::<u8>();
        self.long = size;
        self.free_long = (0..frames)
            .rev()
            .map(|number| Frame {
                // SAFETY: within the memory that was just leaked, of which every frame gets its own part, here.
                chunk: unsafe { base.add(number as usize * size as usize) },
                size,
                // Behind the chunks: nothing that the kernel says can mean it.
                index: self.count + number,
                start: 0,
                end: 0,
                authenticated: false,
            })
            .collect();
    }

    /// Takes a free frame of one chunk. What its packet is, is not said.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        self.free.pop()
    }

    /// Takes a free long frame.
    pub fn take_long(&mut self) -> Option<Frame> {
        self.free_long.pop()
    }

    /// Takes a free frame in which a packet of `length` bytes can be sealed: of one chunk if that will do, else a long one if
    /// this pool has any.
    #[inline]
    pub fn take_for(&mut self, length: usize) -> Option<Frame> {
        if self.long == 0 || HEADROOM + length + MAX_TAILROOM <= self.chunk as usize {
            self.take()
        } else {
            self.take_long()
        }
    }

    /// The packet of a frame in a long one, if there is one free; else the frame as it is.
    pub fn lengthen(&mut self, frame: Frame) -> Frame {
        if self.is_long(&frame) {
            return frame;
        }
        let Some(mut long) = self.take_long() else {
            return frame;
        };
        if long.write(frame.bytes()).is_err() {
            self.give(long);
            return frame;
        }
        self.give(frame);
        long
    }

    /// Whether a frame is a long one.
    #[inline]
    #[must_use]
    pub fn is_long(&self, frame: &Frame) -> bool {
        frame.size != self.chunk
    }

    /// Gives a frame back.
    #[inline]
    pub fn give(&mut self, frame: Frame) {
        if self.is_long(&frame) {
            self.free_long.push(frame);
        } else {
            debug_assert!(self.free.len() < self.count as usize);
            self.free.push(frame);
        }
    }

    /// Bytes of a chunk.
    #[must_use]
    pub fn chunk(&self) -> usize {
        self.chunk as usize
    }

    /// Bytes of its longest frames.
    #[must_use]
    pub fn longest(&self) -> usize {
        self.chunk.max(self.long) as usize
    }

    /// How many long frames are free.
    #[must_use]
    pub fn free_long(&self) -> usize {
        self.free_long.len()
    }

    /// How many frames are free.
    #[must_use]
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Lends the chunk of a frame that is not long to the kernel; [`Pool::reclaim`] makes a frame of it again.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "the frame ends here")]
    pub fn lend(&self, frame: Frame) -> u32 {
        debug_assert!(!self.is_long(&frame));
        frame.index
    }

    /// The frame of a chunk that the kernel is done with: `length` bytes from `offset` in the chunk.
    /// `None` if there is no such chunk or the packet is not within it.
    ///
    /// # Safety
    /// The chunk was lent, and the kernel has given it back since.
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "bounded by the chunk")]
    pub unsafe fn reclaim(&self, index: u32, offset: usize, length: usize) -> Option<Frame> {
        if index >= self.count || offset + length > self.chunk as usize {
            return None;
        }
        // SAFETY: within the pool's memory, as just checked.
        let chunk = unsafe { self.base.add(index as usize * self.chunk as usize) };
        Some(Frame {
            chunk,
            size: self.chunk,
            index,
            start: offset as u32,
            end: (offset + length) as u32,
            authenticated: false,
        })
    }
}

#[cfg(test)]
mod tests;

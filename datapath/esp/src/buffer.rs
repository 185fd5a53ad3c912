//! Memory of a frame: a chunk, of which a part is the frame, with room before and behind it.

use std::ops::Range;

/// A frame in a chunk of memory. The headers move into the room before it, the trailer grows into the
/// room behind it.
pub trait Frame {
    /// The whole chunk.
    fn chunk(&mut self) -> &mut [u8];

    /// Which part of the chunk is the frame.
    fn bounds(&self) -> Range<usize>;

    /// Says which part of the chunk is the frame from now on. Bounds outside the chunk, or that end
    /// before they start, are an error in the caller; implementations keep memory safe all the same.
    fn set_bounds(&mut self, bounds: Range<usize>);
}

/// A frame on the heap, for tests and tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeapFrame {
    chunk: Vec<u8>,
    bounds: Range<usize>,
}

impl HeapFrame {
    /// Copies `bytes` with `headroom` bytes before and `tailroom` bytes behind them.
    #[must_use]
    pub fn new(headroom: usize, bytes: &[u8], tailroom: usize) -> Self {
        let mut chunk = vec![0; headroom + bytes.len() + tailroom];
        chunk[headroom..headroom + bytes.len()].copy_from_slice(bytes);
        Self {
            chunk,
            bounds: headroom..headroom + bytes.len(),
        }
    }

    /// The frame.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.chunk[self.bounds.clone()]
    }

    /// The frame, to be changed.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.chunk[self.bounds.clone()]
    }
}

impl Frame for HeapFrame {
    fn chunk(&mut self) -> &mut [u8] {
        &mut self.chunk
    }

    fn bounds(&self) -> Range<usize> {
        self.bounds.clone()
    }

    fn set_bounds(&mut self, bounds: Range<usize>) {
        self.bounds = bounds;
    }
}

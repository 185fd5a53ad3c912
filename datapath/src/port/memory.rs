//! A port in memory: a test or a benchmark puts frames in at one side and takes them out at the other.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;

use super::Port;
use crate::frame::{Frame, Pool};

/// Two queues of frames.
#[derive(Debug, Default)]
pub struct MemoryPort {
    /// What [`Port::receive`] will give.
    pub arriving: VecDeque<Frame>,
    /// What was sent.
    pub sent: VecDeque<Frame>,
    queued: Vec<Frame>,
    capacity: Option<usize>,
}

impl MemoryPort {
    /// A port that sends at most `capacity` frames a flush.
    #[must_use]
    pub fn with_capacity(capacity: usize) -> Self {
        Self {
            capacity: Some(capacity),
            ..Self::default()
        }
    }
}

impl Port for MemoryPort {
    fn receive(&mut self, _pool: &mut Pool, batch: &mut Vec<Frame>, most: usize) -> usize {
        let count = most.min(self.arriving.len());
        batch.extend(self.arriving.drain(..count));
        count
    }

    fn queue(&mut self, frame: Frame, _pool: &mut Pool) -> Result<(), Frame> {
        if self
            .capacity
            .is_some_and(|capacity| self.queued.len() >= capacity)
        {
            return Err(frame);
        }
        self.queued.push(frame);
        Ok(())
    }

    fn flush(&mut self, _pool: &mut Pool) {
        self.sent.extend(self.queued.drain(..));
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

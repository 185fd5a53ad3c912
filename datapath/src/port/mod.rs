//! Ports: where frames come from and go to. [`xsk`] is AF_XDP, [`tap`] a TAP with superpackets, [`host`] whichever of the two
//! the host port is; [`memory`] and [`pcap`] run the same workers without a kernel, for tests, benchmarks and `culvert pcap`.

pub mod host;
pub mod memory;
pub mod pcap;
mod pieces;
pub mod tap;
pub mod xsk;

use std::os::fd::BorrowedFd;

use crate::frame::{Frame, Pool};

/// One end of a worker: a batch in, frames out, one flush.
pub trait Port {
    /// Appends received frames to `batch`, at most `most`; also reclaims frames that were sent and keeps the
    /// kernel supplied with free ones, both from `pool`. Returns how many were received.
    fn receive(&mut self, pool: &mut Pool, batch: &mut Vec<Frame>, most: usize) -> usize;

    /// Queues a frame for sending. What that needs other frames for, comes from `pool`.
    ///
    /// # Errors
    /// The frame, if the queue is full or `pool` has too few.
    fn queue(&mut self, frame: Frame, pool: &mut Pool) -> Result<(), Frame>;

    /// Sends what is queued. Frames that were sent go back to `pool`, now or at a later call.
    fn flush(&mut self, pool: &mut Pool);

    /// Whether it has something received that [`Port::receive`] has not given yet, which poll(2) does not know of.
    fn is_pending(&self) -> bool {
        false
    }

    /// What poll(2) can wait for until there is something to receive; `None` for a port that never waits.
    fn descriptor(&self) -> Option<BorrowedFd<'_>>;

    /// Packets that the port itself lost, by reason.
    fn losses(&self) -> Losses {
        Losses::default()
    }
}

/// Packets lost at a port since it was opened, by the kernel's count or the port's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// No free frame, or the RX ring was full.
    pub receive: u64,
    /// Descriptors that the kernel refused to send, or packets that it did not take.
    pub send: u64,
    /// Superpackets that contradict themselves, and segments that are too long for a frame.
    pub refused: u64,
    /// Packets that are longer than the longest frame.
    pub too_long: u64,
}

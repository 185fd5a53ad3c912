//! The host port's queue of one worker, of whichever kind the host port is.

use std::os::fd::BorrowedFd;

use super::tap::TapPort;
use super::xsk::XskPort;
use super::{Losses, Port};
use crate::frame::{Frame, Pool};

/// One or the other.
pub enum HostPort {
    /// The inner end of a veth pair, by AF_XDP.
    Veth(XskPort),
    /// A TAP.
    Tap(TapPort),
}

impl Port for HostPort {
    #[inline]
    fn receive(&mut self, pool: &mut Pool, batch: &mut Vec<Frame>, most: usize) -> usize {
        match self {
            Self::Veth(port) => port.receive(pool, batch, most),
            Self::Tap(port) => port.receive(pool, batch, most),
        }
    }

    #[inline]
    fn queue(&mut self, frame: Frame, pool: &mut Pool) -> Result<(), Frame> {
        match self {
            Self::Veth(port) => port.queue(frame, pool),
            Self::Tap(port) => port.queue(frame, pool),
        }
    }

    #[inline]
    fn flush(&mut self, pool: &mut Pool) {
        match self {
            Self::Veth(port) => port.flush(pool),
            Self::Tap(port) => port.flush(pool),
        }
    }

    fn is_pending(&self) -> bool {
        match self {
            Self::Veth(port) => port.is_pending(),
            Self::Tap(port) => port.is_pending(),
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Self::Veth(port) => port.descriptor(),
            Self::Tap(port) => port.descriptor(),
        }
    }

    fn losses(&self) -> Losses {
        match self {
            Self::Veth(port) => port.losses(),
            Self::Tap(port) => port.losses(),
        }
    }
}

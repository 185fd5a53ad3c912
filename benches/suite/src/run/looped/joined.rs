//! A wire in memory: two ports, of which one receives what the other has sent. Nothing is copied: a frame goes over to the other
//! worker's pool, and an empty one of that pool comes back for it, so that both pools stay as large as they were.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use culvert_datapath::frame::{Frame, Pool};
use culvert_datapath::port::Port;
use nix::sys::eventfd::{EfdFlags, EventFd};

/// One direction. Its locks are taken once a batch.
#[derive(Debug)]
struct Lane {
    frames: Mutex<VecDeque<Frame>>,
    /// What comes back for them.
    empty: Mutex<Empty>,
    /// Wakes a receiver that sleeps; rung no more than once until it was answered.
    bell: EventFd,
    rung: AtomicBool,
}

#[derive(Debug, Default)]
struct Empty {
    frames: Vec<Frame>,
    /// The sender has none, and may sleep until it has.
    wanted: bool,
}

impl Lane {
    fn new() -> nix::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            frames: Mutex::default(),
            empty: Mutex::default(),
            bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            rung: AtomicBool::new(false),
        }))
    }

    /// Under the lock of the frames, as the answer is: a bell that is answered while it is rung would stay unheard.
    fn ring(&self, _locked: &MutexGuard<'_, VecDeque<Frame>>) {
        if !self.rung.swap(true, Ordering::Relaxed) {
            let _ = self.bell.write(1);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One end of the wire.
#[derive(Debug)]
pub(super) struct JoinedPort {
    out: Arc<Lane>,
    into: Arc<Lane>,
    queued: Vec<Frame>,
}

impl JoinedPort {
    /// Both ends.
    pub(super) fn pair() -> nix::Result<[Self; 2]> {
        let (there, back) = (Lane::new()?, Lane::new()?);
        let end = |out: &Arc<Lane>, into: &Arc<Lane>| Self {
            out: Arc::clone(out),
            into: Arc::clone(into),
            queued: Vec::new(),
        };
        Ok([end(&there, &back), end(&back, &there)])
    }
}

impl Port for JoinedPort {
    fn receive(&mut self, pool: &mut Pool, batch: &mut Vec<Frame>, most: usize) -> usize {
        let mut empty = lock(&self.out.empty);
        for frame in empty.frames.drain(..) {
            pool.give(frame);
        }
        empty.wanted = pool.free() == 0;
        drop(empty);
        let mut frames = lock(&self.into.frames);
        if frames.is_empty() {
            // Who sends after that, rings again.
            if self.into.rung.swap(false, Ordering::Relaxed) {
                let _ = self.into.bell.read();
            }
            return 0;
        }
        let mut empty = lock(&self.into.empty);
        let mut count = 0;
        while count < most && !frames.is_empty() {
            // Without an empty one to be had, it waits. Under load one way, no more than acknowledgements come back, so that
            // never both pools are empty.
            let Some(free) = pool.take() else { break };
            empty.frames.push(free);
            batch.extend(frames.pop_front());
            count += 1;
        }
        let wanted = count > 0 && std::mem::take(&mut empty.wanted);
        drop(empty);
        drop(frames);
        if wanted {
            self.out.ring(&lock(&self.out.frames));
        }
        count
    }

    fn queue(&mut self, frame: Frame, _pool: &mut Pool) -> Result<(), Frame> {
        self.queued.push(frame);
        Ok(())
    }

    fn flush(&mut self, _pool: &mut Pool) {
        if self.queued.is_empty() {
            return;
        }
        let mut frames = lock(&self.out.frames);
        frames.extend(self.queued.drain(..));
        self.out.ring(&frames);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.into.bell.as_fd())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_goes_over_and_an_empty_one_comes_back() {
        let mut pools = [Pool::on_heap(2, 1024), Pool::on_heap(2, 1024)];
        let [mut a, mut b] = JoinedPort::pair().unwrap();
        let mut batch = Vec::new();
        for _ in 0..5 {
            for text in [b"one", b"two"] {
                let mut frame = pools[0].take().unwrap();
                frame.write(text).unwrap();
                a.queue(frame, &mut pools[0]).unwrap();
            }
            assert_eq!(b.receive(&mut pools[1], &mut batch, 8), 0, "not sent yet");
            a.flush(&mut pools[0]);
            assert_eq!(b.receive(&mut pools[1], &mut batch, 1), 1);
            assert_eq!(b.receive(&mut pools[1], &mut batch, 8), 1);
            assert_eq!([batch[0].bytes(), batch[1].bytes()], [b"one", b"two"]);
            assert_eq!(pools[0].free() + pools[1].free(), 0);
            assert_eq!(b.receive(&mut pools[1], &mut batch, 8), 0);
            batch.drain(..).for_each(|frame| pools[1].give(frame));
            assert_eq!(a.receive(&mut pools[0], &mut batch, 8), 0);
            assert_eq!([pools[0].free(), pools[1].free()], [2, 2]);
        }
    }
}

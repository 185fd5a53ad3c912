//! Says in the SA state region that every worker is at work, so that the key manager sees when one hangs, or the
//! process is stopped or dead, without asking anybody.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use culvert_state::Region;

use crate::worker::{Pulse, now};

/// How often it is said.
const PERIOD: Duration = Duration::from_millis(20);

/// Milliseconds for which a worker may not have been seen: two of its longest sleeps.
const PATIENCE: u64 = 100;

/// The region that it is said in: one lock that nobody holds for long, whatever the control socket is doing.
#[derive(Debug, Default)]
pub struct Heart(Mutex<Option<Arc<Region>>>);

impl Heart {
    /// From now on, in this region.
    pub fn set(&self, region: Arc<Region>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(region);
    }

    /// Says it, if every worker was seen shortly before `now`.
    pub fn beat(&self, workers: &[Pulse], now: u64) {
        let at_work = |worker: &Pulse| now.saturating_sub(worker.seen()) <= PATIENCE;
        if !workers.iter().all(at_work) {
            return;
        }
        if let Some(region) = &*self.0.lock().unwrap_or_else(PoisonError::into_inner) {
            region.beat(now);
        }
    }
}

/// Whether every worker was seen within `patience`.
#[must_use]
pub fn alive(workers: &[Pulse], patience: Duration) -> bool {
    let now = now();
    let seen =
        |worker: &Pulse| Duration::from_millis(now.saturating_sub(worker.seen())) <= patience;
    workers.iter().all(seen)
}

/// Says it for ever.
pub fn run(heart: &Heart, workers: &[Pulse]) {
    loop {
        heart.beat(workers, now());
        std::thread::sleep(PERIOD);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Pool;
    use crate::port::memory::MemoryPort;
    use crate::worker::{Mtu, Worker};
    use std::time::Instant;

    #[test]
    fn it_beats_while_every_worker_runs_and_in_the_region_that_came_last() {
        let directory = tempfile::tempdir().unwrap();
        let regions = ["one", "other"].map(|name| {
            let (region, _) = Region::open_or_create(&directory.path().join(name)).unwrap();
            Arc::new(region)
        });
        let heart = Heart::default();
        let mtu = Mtu {
            wire: 1500,
            host: 1500,
        };
        let (mut workers, handles): (Vec<_>, Vec<_>) = (0..2)
            .map(|_| {
                let (wire, pool) = (vec![MemoryPort::default()], Pool::on_heap(8, 2048));
                Worker::new(wire, MemoryPort::default(), mtu, pool).unwrap()
            })
            .unzip();
        let pulses: Vec<_> = handles.iter().map(crate::worker::Handle::pulse).collect();
        let beat = || {
            heart.beat(&pulses, now());
            regions.each_ref().map(|region| region.last_beat())
        };
        let beats_within = |patience: Duration, region: usize| {
            let (begun, before) = (Instant::now(), beat()[region]);
            while begun.elapsed() < patience {
                if beat()[region] > before {
                    return true;
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            false
        };
        let long = Duration::from_secs(20);
        std::thread::scope(|scope| {
            let mut worker = workers.pop().unwrap();
            scope.spawn(move || worker.run());
            assert!(!beats_within(Duration::from_millis(50), 0), "no region");
            heart.set(Arc::clone(&regions[0]));
            assert!(!beats_within(Duration::from_millis(150), 0), "one only");
            let mut worker = workers.pop().unwrap();
            scope.spawn(move || worker.run());
            // Idle as they are, they wake up often enough.
            assert!((0..20).all(|_| beats_within(long, 0)));
            let sleeps = handles[0]
                .counters()
                .sleeps
                .load(std::sync::atomic::Ordering::Relaxed);
            assert!(sleeps < 1000, "{sleeps} sleeps");
            heart.set(Arc::clone(&regions[1]));
            let left = regions[0].last_beat();
            assert!(beats_within(long, 1));
            assert_eq!(beat()[0], left);
            handles[0].stop();
            std::thread::sleep(Duration::from_millis(2 * PATIENCE));
            assert!(
                !beats_within(Duration::from_millis(100), 1),
                "one has ended"
            );
            handles[1].stop();
        });
    }
}

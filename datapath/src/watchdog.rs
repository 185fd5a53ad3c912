//! Telling the service manager, which is systemd, how it goes: once that we are ready, and again and again that we are
//! alive, or it kills us and starts us anew. Where there is none, nothing happens.

use std::sync::{Mutex, TryLockError};
use std::time::{Duration, Instant};

use log::{error, warn};
use sd_notify::NotifyState;

/// Tells the service manager.
pub(crate) fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("service manager: {error}");
    }
}

/// How often the service manager is to hear that we are alive: twice in the time that it waits. `None`: nobody waits.
#[must_use]
pub fn interval() -> Option<Duration> {
    sd_notify::watchdog_enabled().map(|limit| limit / 2)
}

/// Says in every [`interval`] that we are alive, if `alive` says so, for ever. `alive` may take half of the interval.
/// Returns if nobody waits for it.
pub fn run(alive: impl Fn() -> bool) {
    let Some(interval) = interval() else { return };
    loop {
        let next = Instant::now() + interval;
        if alive() {
            tell(&[NotifyState::Watchdog]);
        } else {
            error!("something hangs: the service manager does not hear that all is well");
        }
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
}

/// Whether `lock` can be had within `patience`. One whose holder has panicked can be had.
pub fn is_free<T>(lock: &Mutex<T>, patience: Duration) -> bool {
    let until = Instant::now() + patience;
    while matches!(lock.try_lock(), Err(TryLockError::WouldBlock)) {
        if Instant::now() >= until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_that_is_held_is_waited_for_but_not_for_ever() {
        let lock = Mutex::new(());
        let held = lock.lock().unwrap();
        assert!(!is_free(&lock, Duration::from_millis(5)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| is_free(&lock, Duration::from_secs(60)));
            std::thread::sleep(Duration::from_millis(5));
            drop(held);
            assert!(waiting.join().unwrap());
        });
        assert!(is_free(&lock, Duration::ZERO));
    }

    #[test]
    fn without_a_service_manager_nothing_happens() {
        run(|| panic!("nobody asks"));
        tell(&[NotifyState::Ready]);
    }
}

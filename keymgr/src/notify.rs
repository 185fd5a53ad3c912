//! Telling the service manager, which is systemd, how it goes. Where there is none, nothing happens.

use std::time::{Duration, Instant};

use log::warn;
use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!("service manager: {error}");
    }
}

/// Others may be started that need us.
pub(crate) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// We end, as we were told.
pub(crate) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Says again and again that we are alive, and the state of things when it has changed.
pub(crate) struct Reporter {
    told: String,
    /// Half of the time after which we are taken for dead. `None`: nobody waits.
    interval: Option<Duration>,
    next: Instant,
}

impl Reporter {
    pub(crate) fn new() -> Self {
        Self {
            told: String::new(),
            interval: sd_notify::watchdog_enabled().map(|limit| limit / 2),
            next: Instant::now(),
        }
    }

    /// To be called more often than twice in the time of the watchdog.
    pub(crate) fn report(&mut self, summary: impl FnOnce() -> String) {
        if std::env::var_os("NOTIFY_SOCKET").is_none() {
            return;
        }
        let line = summary();
        if line != self.told {
            tell(&[NotifyState::Status(&line)]);
            self.told = line;
        }
        let now = Instant::now();
        if let Some(interval) = self.interval
            && now >= self.next
        {
            tell(&[NotifyState::Watchdog]);
            self.next = now + interval;
        }
    }
}

//! How far an SA is: what goes on when somebody else takes it over.

use std::time::{SystemTime, UNIX_EPOCH};

use culvert_proto::sa::Direction;
use netlink_packet_xfrm::{Lifetime, ReplayEsn};

use super::window::{self, Window};

/// Numbers that an outbound SA may have used between a look at it and its end: a second of what a fast host sends.
const OUTBOUND_MARGIN: u64 = 1 << 20;
/// Numbers that an inbound SA may have received between a look at it and its end.
const INBOUND_MARGIN: u64 = 4096;

/// Sequence numbers of an SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Numbers {
    /// Outbound: the last number that was used; 0: none was.
    Sent(u64),
    /// Inbound: what was received.
    Received(Window),
}

/// How far an SA is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Its sequence numbers.
    pub numbers: Numbers,
    /// Packets so far.
    pub packets: u64,
    /// Bytes so far. The kernel counts whole IP packets.
    pub bytes: u64,
    /// Seconds since it was added.
    pub added: u64,
    /// Seconds since its first packet; `None`: there was none.
    pub first_use: Option<u64>,
}

/// What an SA was when it was removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taken {
    /// How far it was: exactly, or at most.
    pub progress: Progress,
    /// Whether that is exact. If not, `progress` has a margin for what came between the last look and the end.
    pub exact: bool,
    /// No number is left for it: it must not be used any more.
    pub exhausted: bool,
}

impl Progress {
    /// Of an SA that nobody has used yet.
    #[must_use]
    pub fn fresh(direction: Direction, window: u32) -> Self {
        Self {
            numbers: match direction {
                Direction::Out => Numbers::Sent(0),
                Direction::In => Numbers::Received(window::full(0, window)),
            },
            packets: 0,
            bytes: 0,
            added: 0,
            first_use: None,
        }
    }

    /// The kernel's replay state.
    pub(super) fn replay(&self) -> ReplayEsn {
        match &self.numbers {
            Numbers::Sent(last) => window::outbound(*last),
            Numbers::Received(window) => window::to_kernel(window),
        }
    }

    /// The kernel's current lifetime, whose times are those of the wall clock.
    pub(super) fn lifetime(&self) -> Lifetime {
        let now = now();
        Lifetime {
            bytes: self.bytes,
            packets: self.packets,
            add_time: now.saturating_sub(self.added).max(1),
            use_time: self
                .first_use
                .map_or(0, |ago| now.saturating_sub(ago).max(1)),
        }
    }

    /// What it may have become by the end, if this was seen shortly before.
    pub(super) fn with_margin(mut self, esn: bool) -> Self {
        match &mut self.numbers {
            Numbers::Sent(last) => *last = last.saturating_add(OUTBOUND_MARGIN).min(end(esn)),
            Numbers::Received(window) => {
                let highest = window.highest.saturating_add(INBOUND_MARGIN).min(end(esn));
                *window = window::full(highest, window.size);
            }
        }
        self
    }

    /// Whether no number is left to be sent.
    pub(super) fn exhausted(&self, esn: bool) -> bool {
        matches!(self.numbers, Numbers::Sent(last) if last >= end(esn))
    }
}

/// The last number.
const fn end(esn: bool) -> u64 {
    if esn { u64::MAX } else { u32::MAX as u64 }
}

/// What the kernel says of an SA: it has numbers for both directions.
#[derive(Clone, Debug)]
pub(super) struct State {
    pub(super) replay: ReplayEsn,
    pub(super) window: Window,
    pub(super) current: Lifetime,
    pub(super) esn: bool,
}

impl State {
    pub(super) fn progress(&self, direction: Direction) -> Progress {
        let now = now();
        Progress {
            numbers: match direction {
                Direction::Out => {
                    Numbers::Sent(window::join(self.replay.oseq_hi, self.replay.oseq))
                }
                Direction::In => Numbers::Received(self.window.clone()),
            },
            packets: self.current.packets,
            bytes: self.current.bytes,
            added: now.saturating_sub(self.current.add_time),
            first_use: (self.current.use_time != 0)
                .then(|| now.saturating_sub(self.current.use_time)),
        }
    }
}

/// Seconds of the wall clock.
fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent(last: u64) -> Progress {
        Progress {
            numbers: Numbers::Sent(last),
            ..Progress::fresh(Direction::Out, 0)
        }
    }

    #[test]
    fn a_margin_ends_where_the_numbers_end() {
        let near = u64::from(u32::MAX) - 5;
        assert_eq!(sent(7).with_margin(false), sent(7 + (1 << 20)));
        assert_eq!(sent(near).with_margin(false), sent(u32::MAX.into()));
        assert_eq!(sent(near).with_margin(true), sent(near + (1 << 20)));
        assert!(sent(near).with_margin(false).exhausted(false));
        assert!(!sent(near).with_margin(true).exhausted(true));

        let mut progress = Progress::fresh(Direction::In, 64);
        progress = progress.with_margin(true);
        assert_eq!(
            progress.numbers,
            Numbers::Received(Window {
                highest: 4096,
                received: vec![u64::MAX],
                size: 64
            })
        );
    }

    #[test]
    fn ages_go_there_and_back() {
        let progress = Progress {
            packets: 3,
            bytes: 300,
            added: 50,
            first_use: Some(40),
            ..sent(9)
        };
        let state = State {
            replay: progress.replay(),
            window: window::full(0, 32),
            current: progress.lifetime(),
            esn: false,
        };
        let back = state.progress(Direction::Out);
        assert_eq!((back.packets, back.bytes), (3, 300));
        assert_eq!(back.numbers, progress.numbers);
        // A second may have passed.
        assert!((50..=51).contains(&back.added), "{back:?}");
        assert!(back.first_use.is_some_and(|ago| (40..=41).contains(&ago)));
    }
}

//! What happens in a campaign, and when: all of it follows from the seed.

use std::fmt;
use std::time::Duration;

use crate::random::Random;

/// What is done to a side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// The datapath is killed, and started again.
    KillDatapath,
    /// The key manager is killed, and started again.
    KillKeymgr,
    /// Both are killed, and started again.
    KillBoth,
    /// The datapath is ended in order, and started again, as by an upgrade.
    RestartDatapath,
    /// The key manager is ended in order, and started again.
    RestartKeymgr,
    /// The datapath stands still for a while.
    FreezeDatapath,
    /// The key manager stands still for a while.
    FreezeKeymgr,
    /// The underlay NIC is taken down, and up again.
    NicDown,
    /// The NIC loses its carrier: the other end is taken down, and up again.
    CarrierLost,
    /// Somebody tries to detach the XDP programs.
    DetachXdp,
    /// The datapath is started again with the other XDP mode.
    OtherXdpMode,
    /// New keys are to be loaded while the list of used keys cannot grow.
    DiskFull,
    /// The datapath has no descriptor for one more connection.
    DatapathDescriptors,
    /// The key manager has none.
    KeymgrDescriptors,
    /// Both sides get new keys.
    Rekey,
}

impl Kind {
    /// All of them.
    pub const ALL: [Self; 15] = [
        Self::KillDatapath,
        Self::KillKeymgr,
        Self::KillBoth,
        Self::RestartDatapath,
        Self::RestartKeymgr,
        Self::FreezeDatapath,
        Self::FreezeKeymgr,
        Self::NicDown,
        Self::CarrierLost,
        Self::DetachXdp,
        Self::OtherXdpMode,
        Self::DiskFull,
        Self::DatapathDescriptors,
        Self::KeymgrDescriptors,
        Self::Rekey,
    ];

    /// Its name, in tables and records.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::KillDatapath => "kill datapath",
            Self::KillKeymgr => "kill keymgr",
            Self::KillBoth => "kill both",
            Self::RestartDatapath => "restart datapath",
            Self::RestartKeymgr => "restart keymgr",
            Self::FreezeDatapath => "freeze datapath",
            Self::FreezeKeymgr => "freeze keymgr",
            Self::NicDown => "NIC down and up",
            Self::CarrierLost => "carrier lost",
            Self::DetachXdp => "detach XDP: refused",
            Self::OtherXdpMode => "other XDP mode",
            Self::DiskFull => "disk full, rekey",
            Self::DatapathDescriptors => "datapath: descriptors",
            Self::KeymgrDescriptors => "keymgr: descriptors",
            Self::Rekey => "rekey",
        }
    }
}

/// One event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: Kind,
    /// To which side.
    pub side: usize,
    /// How long nothing happens before it.
    pub pause: Duration,
    /// How long it lasts, if it is of a kind that lasts.
    pub length: Duration,
}

impl Event {
    /// The name of its side.
    #[must_use]
    pub fn side_name(&self) -> &'static str {
        ["a", "b"][self.side]
    }
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} on {}", self.kind.name(), self.side_name())
    }
}

/// So many events, of `kinds` on `sides`, which a seed stands for. Kinds come in rounds, each in an order of its own, so
/// that a short campaign has most of them, too.
#[must_use]
pub fn plan(seed: u64, events: usize, kinds: &[Kind], sides: &[usize]) -> Vec<Event> {
    let mut random = Random::new(seed);
    let mut round = Vec::new();
    let mut plan = Vec::new();
    while plan.len() < events && !kinds.is_empty() && !sides.is_empty() {
        if round.is_empty() {
            round = kinds.to_vec();
        }
        plan.push(Event {
            kind: round.swap_remove(random.below(round.len())),
            side: sides[random.below(sides.len())],
            pause: Duration::from_millis(200 + random.below(801) as u64),
            length: Duration::from_millis(50 + random.below(1451) as u64),
        });
    }
    plan
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_stands_for_a_campaign() {
        let plan = |seed| plan(seed, 40, &Kind::ALL, &[0, 1]);
        assert_eq!(plan(7), plan(7));
        assert_ne!(plan(7), plan(8));
        assert_eq!(plan(7).len(), 40);
    }

    #[test]
    fn every_kind_comes_in_every_round() {
        for seed in 0..20 {
            let plan = plan(seed, 2 * Kind::ALL.len(), &Kind::ALL, &[0, 1]);
            for round in plan.chunks(Kind::ALL.len()) {
                let mut kinds: Vec<Kind> = round.iter().map(|event| event.kind).collect();
                kinds.sort();
                assert_eq!(kinds, Kind::ALL);
            }
            for side in 0..2 {
                assert!(plan.iter().any(|event| event.side == side));
            }
        }
    }

    #[test]
    fn times_are_as_long_as_they_may_be() {
        for event in plan(1, 1000, &Kind::ALL, &[1]) {
            assert_eq!(event.side, 1);
            assert!((200..=1000).contains(&event.pause.as_millis()));
            assert!((50..=1500).contains(&event.length.as_millis()));
        }
    }
}

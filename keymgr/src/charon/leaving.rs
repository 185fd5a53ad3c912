//! SAs that charon takes down while packets go under them, and that a trap would have it make again at once: they stay for
//! a moment, until the new ones are there.
//!
//! ovs-monitor-ipsec 3.1 is why. With strongSwan it misreads the names of connections, and takes all of them down whenever
//! a tunnel is added or changed anywhere. The peer hears of it and takes them down, too, and from the next packet on both
//! negotiate anew. With the kernel's IPsec each of these is a gap in every tunnel of the hypervisor. Here the packets go on
//! under the old SAs meanwhile, on both sides, as they do in a rekeying. Nothing is accepted for longer than charon itself
//! accepts what was rekeyed (`charon.delete_rekeyed_delay`, five seconds).

use std::collections::hash_map::Entry::Vacant;
use std::time::{Duration, Instant};

use culvert_bridge::records::Acquire;
use culvert_bridge::{Direction as Way, Event, Kind, Policy, Priority};
use culvert_proto::policy::Selector;
use culvert_proto::sa::{Direction, SaId};

use super::Charon;
use crate::state::State;

/// How long they stay.
const LINGER: Duration = Duration::from_secs(5);
/// An SA is in use if it was used within so many seconds.
const RECENT: u64 = 2;
/// How often charon is asked for the same SAs.
const AGAIN: Duration = Duration::from_secs(1);

/// A policy that charon has installed.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) selector: Selector,
    pub(super) policy: Policy,
    /// Until when it stays although charon has removed it.
    pub(super) leaves: Option<Instant>,
}

/// Whether a policy is a trap.
pub(super) fn is_trap(policy: &Policy) -> bool {
    policy.priority == Priority::Routed && policy.kind == Kind::Protect
}

impl Charon {
    /// Removes a policy that charon has taken out, at once or later.
    pub(super) fn remove_policy(&mut self, at: usize, state: &State) {
        let Entry {
            selector, policy, ..
        } = self.policies[at].clone();
        let same = |entry: &Entry| entry.selector == selector && entry.leaves.is_none();
        let replaced = self.policies.iter().enumerate().any(|(other, entry)| {
            other != at
                && same(entry)
                && entry.policy.name.direction == policy.name.direction
                && !is_trap(&entry.policy)
        });
        let trap = self.trap(&selector).is_some();
        if trap && !is_trap(&policy) && !replaced && self.is_in_use(policy.reqid, None, state) {
            self.policies[at].leaves = Some(Instant::now() + LINGER);
            return;
        }
        self.policies.remove(at);
        if is_trap(&policy) {
            // Nobody would replace them any more.
            self.policies
                .retain(|entry| entry.selector != selector || entry.leaves.is_none());
        }
    }

    /// The reqid of the trap for a selector.
    pub(super) fn trap(&self, selector: &Selector) -> Option<u32> {
        let trap = self.policies.iter().find(|entry| {
            entry.selector == *selector && entry.leaves.is_none() && is_trap(&entry.policy)
        });
        trap.map(|entry| entry.policy.reqid)
    }

    /// Whether packets go under the SAs of a reqid, of one direction or of either.
    fn is_in_use(&mut self, reqid: u32, direction: Option<Direction>, state: &State) -> bool {
        let now = crate::state::now() / 1000;
        self.sas
            .values_mut()
            .filter(|sa| {
                // What has ended carries nothing any more.
                sa.reqid == reqid
                    && sa.reached != Some(true)
                    && direction.is_none_or(|direction| direction == sa.id().direction)
            })
            .any(|sa| now - super::usage::look(sa, state).last_use.min(now) <= RECENT)
    }

    /// Has charon make anew what stays for a moment and is sent under. Not at once: while the IKE SA is being taken
    /// down, too, charon would ask for it over that one.
    pub(super) fn renew(&mut self, state: &State) {
        let leaving = self.policies.iter().filter(|entry| {
            let replaced = self.policies.iter().any(|other| {
                other.selector == entry.selector
                    && other.leaves.is_none()
                    && other.policy.name.direction == Way::Out
                    && !is_trap(&other.policy)
            });
            entry.leaves.is_some() && entry.policy.name.direction == Way::Out && !replaced
        });
        let leaving: Vec<_> = leaving
            .filter_map(|entry| Some((entry.policy.reqid, self.trap(&entry.selector)?)))
            .collect();
        for (reqid, trap) in leaving {
            if self.is_in_use(reqid, Some(Direction::Out), state) {
                self.ask_for(trap);
            }
        }
    }

    /// Whether an SA that charon has removed stays for a while: it is needed by a policy that does.
    pub(super) fn lingers(&mut self, id: &SaId) -> bool {
        let Some(sa) = self.sas.get(id) else {
            return false;
        };
        let leaves = self
            .policies
            .iter()
            .filter(|entry| entry.policy.reqid == sa.reqid)
            .filter_map(|entry| entry.leaves)
            .max();
        if let Some(sa) = self.sas.get_mut(id) {
            sa.leaves = leaves;
        }
        leaves.is_some()
    }

    /// Removes what has stayed long enough, and says whether there was anything.
    pub(super) fn let_go(&mut self, now: Instant, state: &mut State) -> bool {
        let is_over = |leaves: Option<Instant>| leaves.is_some_and(|leaves| leaves <= now);
        let before = (self.policies.len(), self.sas.len());
        self.policies.retain(|entry| !is_over(entry.leaves));
        self.sas.retain(|_, sa| {
            let over = is_over(sa.leaves);
            if over {
                state.retire(sa.fingerprint());
            }
            !over
        });
        before != (self.policies.len(), self.sas.len())
    }

    /// Has charon negotiate for a trap, but not all the time.
    pub(super) fn ask_for(&mut self, reqid: u32) {
        let now = Instant::now();
        self.asked.retain(|_, since| now - *since < AGAIN);
        if let Vacant(place) = self.asked.entry(reqid) {
            place.insert(now);
            self.tell(Event::Acquire(Acquire { reqid }));
        }
    }
}

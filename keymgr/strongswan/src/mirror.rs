//! What charon has installed, as the next session with the key manager must know it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use culvert_bridge::{Policy, Priority, SaName};

/// Policies and SAs.
#[derive(Default)]
pub(crate) struct Mirror {
    policies: HashMap<Policy, Standing>,
    /// How many policies there have been.
    installed: u64,
    sas: HashMap<SaName, State>,
    /// The key manager that the SAs were given to.
    instance: Option<u64>,
}

struct Standing {
    /// How often it was added: charon adds the same one twice, and deletes it once, when it replaces a trap.
    count: usize,
    /// Its place in the order of installation.
    number: u64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Stands {
        inbound: bool,
    },
    /// Went with the key manager; charon does not know yet.
    Lost {
        inbound: bool,
    },
    /// Deleted by charon; the key manager does not know yet.
    Deleted,
}

/// What is left to do for a policy that was removed.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    /// It was not there.
    Unknown,
    /// It stands for somebody else.
    StillUsed,
    /// It goes.
    Gone,
}

impl Mirror {
    /// Adds a policy, and says whether it is new.
    pub(crate) fn add_policy(&mut self, policy: &Policy) -> bool {
        if let Some(standing) = self.policies.get_mut(policy) {
            standing.count += 1;
            return false;
        }
        self.installed += 1;
        let standing = Standing {
            count: 1,
            number: self.installed,
        };
        self.policies.insert(policy.clone(), standing);
        true
    }

    /// Removes a policy.
    pub(crate) fn remove_policy(&mut self, policy: &Policy) -> Removed {
        match self.policies.get_mut(policy) {
            None => Removed::Unknown,
            Some(Standing { count: 1, .. }) => {
                self.policies.remove(policy);
                Removed::Gone
            }
            Some(standing) => {
                standing.count -= 1;
                Removed::StillUsed
            }
        }
    }

    /// Removes all policies.
    pub(crate) fn flush_policies(&mut self) {
        self.policies.clear();
    }

    /// All policies, in the order of their installation: of equal ones the key manager takes the newest.
    pub(crate) fn policies(&self) -> Vec<Policy> {
        let mut policies: Vec<_> = self.policies.iter().collect();
        policies.sort_unstable_by_key(|(_, standing)| standing.number);
        policies
            .into_iter()
            .map(|(policy, _)| policy.clone())
            .collect()
    }

    /// Whether a trap is for any peer: charon needs addresses to start from one, and reads through NULL without.
    pub(crate) fn traps_any_peer(&self, reqid: u32) -> bool {
        self.policies.keys().any(|policy| {
            policy.reqid == reqid
                && policy.priority == Priority::Routed
                && (policy.source.is_unspecified() || policy.destination.is_unspecified())
        })
    }

    /// Adds an SA.
    pub(crate) fn add_sa(&mut self, name: SaName, inbound: bool) {
        self.sas.insert(name, State::Stands { inbound });
    }

    /// An SA goes to another destination.
    pub(crate) fn move_sa(&mut self, from: &SaName, to: SaName) {
        if let Some(state) = self.sas.remove(from) {
            self.sas.insert(to, state);
        }
    }

    /// Forgets an SA that the key manager does not have.
    pub(crate) fn forget_sa(&mut self, name: &SaName) {
        self.sas.remove(name);
    }

    /// Notes that charon deletes an SA, and says whether the key manager may have it.
    pub(crate) fn delete_sa(&mut self, name: &SaName) -> bool {
        match self.sas.entry(name.clone()) {
            Entry::Occupied(lost) if matches!(lost.get(), State::Lost { .. }) => {
                lost.remove();
                false
            }
            // Also an SPI that was only allocated.
            entry => {
                entry.insert_entry(State::Deleted);
                true
            }
        }
    }

    /// Notes that charon deletes all SAs.
    pub(crate) fn delete_sas(&mut self) {
        self.sas
            .values_mut()
            .for_each(|state| *state = State::Deleted);
    }

    /// Forgets all SAs.
    pub(crate) fn forget_sas(&mut self) {
        self.sas.clear();
    }

    /// A session begins with this key manager. If it is another one than before, all SAs are lost; says how many.
    pub(crate) fn begin(&mut self, instance: u64) -> usize {
        if self.instance.replace(instance) == Some(instance) {
            return 0;
        }
        self.sas.retain(|_, state| *state != State::Deleted);
        let mut lost = 0;
        for state in self.sas.values_mut() {
            if let State::Stands { inbound } = *state {
                *state = State::Lost { inbound };
                lost += 1;
            }
        }
        lost
    }

    /// Lost SAs that charon still has: the inbound one of each pair, which is enough to name it.
    pub(crate) fn lost(&self) -> Vec<SaName> {
        self.named(State::Lost { inbound: true })
    }

    /// SAs that the key manager still has to delete.
    pub(crate) fn deleted(&self) -> Vec<SaName> {
        self.named(State::Deleted)
    }

    fn named(&self, wanted: State) -> Vec<SaName> {
        let named = self.sas.iter().filter(|(_, state)| **state == wanted);
        named.map(|(name, _)| name.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::tests::{name, policy};

    #[test]
    fn a_policy_stands_as_long_as_anybody_has_it() {
        let mut mirror = Mirror::default();
        assert!(mirror.add_policy(&policy(1)));
        assert!(!mirror.add_policy(&policy(1)));
        assert!(mirror.add_policy(&policy(2)));
        assert_eq!(mirror.policies().len(), 2);
        assert_eq!(mirror.remove_policy(&policy(1)), Removed::StillUsed);
        assert_eq!(mirror.remove_policy(&policy(1)), Removed::Gone);
        assert_eq!(mirror.remove_policy(&policy(1)), Removed::Unknown);
        assert_eq!(mirror.policies(), [policy(2)]);
        mirror.flush_policies();
        assert!(mirror.policies().is_empty());
    }

    #[test]
    fn policies_keep_their_order() {
        let mut mirror = Mirror::default();
        for reqid in [3, 1, 4, 5, 9, 2, 6] {
            mirror.add_policy(&policy(reqid));
        }
        mirror.add_policy(&policy(3));
        mirror.remove_policy(&policy(4));
        mirror.add_policy(&policy(4));
        assert_eq!(mirror.policies(), [3, 1, 5, 9, 2, 6, 4].map(policy));
    }

    #[test]
    fn sas_are_lost_with_their_key_manager_only() {
        let mut mirror = Mirror::default();
        assert_eq!(mirror.begin(7), 0);
        mirror.add_sa(name(1), true);
        mirror.add_sa(name(2), false);
        assert_eq!(mirror.begin(7), 0);
        assert!(mirror.lost().is_empty());
        assert_eq!(mirror.begin(8), 2);
        assert_eq!(mirror.lost(), [name(1)], "of a pair, the inbound one");
        mirror.add_sa(name(3), true);
        assert!(!mirror.delete_sa(&name(1)), "nobody has it");
        assert!(mirror.lost().is_empty());
        assert_eq!(mirror.begin(9), 1, "what was lost is not lost again");
        assert_eq!(mirror.lost(), [name(3)]);
    }

    #[test]
    fn what_is_deleted_is_owed_until_forgotten_or_lost() {
        let mut mirror = Mirror::default();
        mirror.begin(7);
        mirror.add_sa(name(1), true);
        mirror.move_sa(&name(1), name(2));
        assert!(mirror.delete_sa(&name(2)));
        assert!(
            mirror.delete_sa(&name(3)),
            "an SPI that was allocated, perhaps"
        );
        assert_eq!(mirror.begin(7), 0);
        assert_eq!(mirror.deleted().len(), 2);
        mirror.forget_sa(&name(3));
        assert_eq!(mirror.deleted(), [name(2)]);
        assert_eq!(mirror.begin(8), 0);
        assert!(mirror.deleted().is_empty());
        mirror.add_sa(name(4), false);
        mirror.delete_sas();
        assert_eq!(mirror.deleted(), [name(4)]);
        mirror.forget_sas();
        assert!(mirror.deleted().is_empty());
    }

    #[test]
    fn a_trap_for_any_peer_is_told_apart() {
        let mut mirror = Mirror::default();
        let mut any = policy(1);
        any.priority = Priority::Routed;
        mirror.add_policy(&any);
        assert!(!mirror.traps_any_peer(1));
        any.destination = "0.0.0.0".parse().unwrap();
        mirror.add_policy(&any);
        assert!(mirror.traps_any_peer(1));
        assert!(!mirror.traps_any_peer(2));
    }
}

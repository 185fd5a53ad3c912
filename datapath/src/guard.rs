//! Whom the eBPF programs guard: what they are told of the policies. They look at the peer's address alone, and
//! err on the side of capture: of what they hand to the workers, the SPD says what becomes of it.

use culvert_esp::sa::address;
use culvert_packet::maps::{Clear, PeerKey, PrefixKey};
use culvert_proto::sa::{Action, PolicySpec};
use hashbrown::HashMap;
use ipnet::IpNet;

/// The contents of the maps `PEERS` and `PREFIXES`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Guarded {
    /// Single peers, and what becomes of Geneve in clear from them.
    pub hosts: HashMap<PeerKey, Clear>,
    /// Prefixes of peers.
    pub prefixes: HashMap<PrefixKey, Clear>,
}

impl Guarded {
    /// Everyone whom some policy protects or discards.
    #[must_use]
    pub fn of<'a>(policies: impl Iterator<Item = &'a PolicySpec> + Clone) -> Self {
        let mut guarded = Self::default();
        let bypassed: Vec<IpNet> = policies
            .clone()
            .filter(|policy| policy.action == Action::Bypass)
            .map(|policy| policy.selector.remote)
            .collect();
        for policy in policies {
            if policy.action == Action::Bypass {
                continue;
            }
            let remote = policy.selector.remote;
            // Only where some policy lets plaintext in do the workers have to look at it: a flood of it is cheaper
            // to drop where it arrives.
            let overlaps = |other: &IpNet| other.contains(&remote) || remote.contains(other);
            let clear = if bypassed.iter().any(overlaps) {
                Clear::ToWorkers
            } else {
                Clear::Drop
            };
            if remote.prefix_len() == remote.max_prefix_len() {
                let remote = address(remote.addr());
                guarded.hosts.insert(PeerKey { remote }, clear);
            } else {
                let key = PrefixKey::new(address(remote.addr()), remote.prefix_len());
                guarded.prefixes.insert(key, clear);
            }
        }
        guarded
    }

    /// Both together: what either guards, and the stricter of the two where both do.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        let mut both = self.clone();
        for (key, clear) in &other.hosts {
            let kept = both.hosts.entry(*key).or_insert(*clear);
            *kept = (*kept).min(*clear);
        }
        for (key, clear) in &other.prefixes {
            let kept = both.prefixes.entry(*key).or_insert(*clear);
            *kept = (*kept).min(*clear);
        }
        both
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::sa::Selector;

    fn policy(remote: &str, action: Action) -> PolicySpec {
        let remote: IpNet = remote.parse().unwrap();
        let local = if remote.addr().is_ipv6() {
            "::/0"
        } else {
            "0.0.0.0/0"
        };
        PolicySpec {
            selector: Selector {
                local: local.parse().unwrap(),
                remote,
                ..Selector::hosts([192, 0, 2, 1].into(), [192, 0, 2, 2].into())
            },
            order: 0,
            action,
        }
    }

    #[test]
    fn plaintext_is_looked_at_only_where_some_may_pass() {
        let policies = [
            policy("192.0.2.2/32", Action::Discard),
            policy("198.51.100.7/32", Action::Discard),
            policy("203.0.113.0/24", Action::Discard),
            policy("198.51.100.0/24", Action::Bypass),
            policy("2001:db8::/32", Action::Discard),
        ];
        let guarded = Guarded::of(policies.iter());
        let host = |text: &str| PeerKey {
            remote: address(text.parse().unwrap()),
        };
        assert_eq!(guarded.hosts.len(), 2);
        assert_eq!(guarded.hosts[&host("192.0.2.2")], Clear::Drop);
        assert_eq!(guarded.hosts[&host("198.51.100.7")], Clear::ToWorkers);
        assert_eq!(guarded.prefixes.len(), 2);
        assert!(guarded.prefixes.values().all(|clear| *clear == Clear::Drop));
    }

    #[test]
    fn the_union_guards_all_and_is_strict() {
        let strict = Guarded::of([policy("192.0.2.2/32", Action::Discard)].iter());
        let lax = [
            policy("192.0.2.0/24", Action::Bypass),
            policy("192.0.2.2/32", Action::Discard),
            policy("192.0.2.3/32", Action::Discard),
        ];
        let lax = Guarded::of(lax.iter());
        for both in [strict.union(&lax), lax.union(&strict)] {
            assert_eq!(both.hosts.len(), 2);
            assert_eq!(
                both.hosts
                    .values()
                    .filter(|clear| **clear == Clear::Drop)
                    .count(),
                1
            );
        }
    }
}

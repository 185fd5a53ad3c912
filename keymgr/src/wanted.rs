//! What the datapath should have, and the way there from what it has.

use std::collections::BTreeMap;

use culvert_proto::message::{Changes, Update};
use culvert_proto::sa::{PolicySpec, SaId, SaSpec, Selector};

/// SAs and policies, each with its state.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// SAs.
    pub sas: BTreeMap<SaId, SaSpec>,
    /// Policies.
    pub policies: BTreeMap<Selector, PolicySpec>,
}

impl Wanted {
    /// What brings `self` to `next`, and a summary of it.
    #[must_use]
    pub fn update_to(&self, next: &Self) -> (Update, Changes) {
        let sas = difference(&self.sas, &next.sas);
        let policies = difference(&self.policies, &next.policies);
        let changes = Changes {
            sas_added: sas.added,
            sas_changed: sas.set.len() - sas.added,
            sas_removed: sas.removed.len(),
            policies_added: policies.added,
            policies_changed: policies.set.len() - policies.added,
            policies_removed: policies.removed.len(),
        };
        let update = Update {
            more: false,
            reset: false,
            remove_sas: sas.removed,
            remove_policies: policies.removed,
            add_sas: sas.set,
            add_policies: policies.set,
        };
        (update, changes)
    }
}

struct Difference<K, V> {
    removed: Vec<K>,
    set: Vec<V>,
    added: usize,
}

fn difference<K: Ord + Clone, V: PartialEq + Clone>(
    from: &BTreeMap<K, V>,
    to: &BTreeMap<K, V>,
) -> Difference<K, V> {
    let removed = from.keys().filter(|key| !to.contains_key(key));
    let set = to
        .iter()
        .filter(|(key, value)| from.get(key) != Some(value));
    Difference {
        removed: removed.cloned().collect(),
        added: set
            .clone()
            .filter(|(key, _)| !from.contains_key(key))
            .count(),
        set: set.map(|(_, value)| value.clone()).collect(),
    }
}

/// Splits an update into messages of at most `records` records each.
#[must_use]
pub fn split(update: Update, records: usize) -> Vec<Update> {
    let mut messages = vec![Update {
        reset: update.reset,
        ..Update::default()
    }];
    let mut count = 0;
    let mut next = |messages: &mut Vec<Update>| {
        if count == records {
            if let Some(last) = messages.last_mut() {
                last.more = true;
            }
            messages.push(Update::default());
            count = 0;
        }
        count += 1;
    };
    macro_rules! deal {
        ($($field:ident)*) => {$(
            for record in update.$field {
                next(&mut messages);
                if let Some(last) = messages.last_mut() {
                    last.$field.push(record);
                }
            }
        )*};
    }
    deal!(remove_sas remove_policies add_sas add_policies);
    messages
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::sa::{Action, Selector};
    use proptest::prelude::*;

    fn policies(list: &[(u8, u32)]) -> Wanted {
        let policies = list.iter().map(|&(host, spi)| PolicySpec {
            selector: Selector::hosts([192, 0, 2, 0].into(), [192, 0, 2, host].into()),
            order: spi,
            action: Action::Bypass,
        });
        Wanted {
            policies: policies
                .map(|policy| (policy.selector.clone(), policy))
                .collect(),
            ..Wanted::default()
        }
    }

    #[test]
    fn the_summary_counts() {
        let (_, changes) = policies(&[(1, 1), (2, 2), (3, 3)]).update_to(&policies(&[
            (2, 2),
            (3, 9),
            (4, 4),
            (5, 5),
        ]));
        assert_eq!(
            (
                changes.policies_added,
                changes.policies_changed,
                changes.policies_removed
            ),
            (2, 1, 1)
        );
    }

    proptest! {
        #[test]
        fn applying_the_messages_arrives(
            from in proptest::collection::vec((any::<u8>(), 0_u32..4), 0..30),
            to in proptest::collection::vec((any::<u8>(), 0_u32..4), 0..30),
            records in 1_usize..10,
        ) {
            let (from, to) = (policies(&from), policies(&to));
            let (update, _) = from.update_to(&to);
            let messages = split(update, records);
            let mut state = from.policies;
            for (number, message) in messages.iter().enumerate() {
                prop_assert_eq!(message.more, number + 1 < messages.len());
                for id in &message.remove_policies {
                    state.remove(id);
                }
                for policy in &message.add_policies {
                    state.insert(policy.selector.clone(), policy.clone());
                }
            }
            prop_assert_eq!(state, to.policies);
        }
    }
}

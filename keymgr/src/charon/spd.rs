//! Charon's policies as they come and go: Geneve's are Culvert's, what else there is the kernel's.

use std::collections::BTreeMap;
use std::time::Instant;

use culvert_bridge::{Kind, Policy};

use super::leaving::{Entry, is_trap};
use super::{Charon, NotServed, policy};
use crate::kernel::KernelPolicy;
use crate::state::State;
use crate::wanted::Wanted;

impl Charon {
    pub(super) fn add_policy(&mut self, policy: Policy, file: &Wanted) -> Result<(), NotServed> {
        let peer = policy::peer(&policy).to_string();
        match policy::selector(&policy) {
            // Culvert lets everything else pass by itself.
            Err(_) if policy.kind == Kind::Bypass => Ok(()),
            Ok(selector) => {
                if file.policies.contains_key(&selector) {
                    let text =
                        "the file of static SAs has the same, which counts; take it out there";
                    self.refuse(&peer, &format!("policy {selector}: {text}"));
                } else {
                    self.refused.remove(&peer);
                }
                if self.installed(&policy).is_none() {
                    self.policies.push(Entry {
                        selector,
                        policy,
                        leaves: None,
                    });
                }
                Ok(())
            }
            Err(NotServed(why)) => match self.for_kernel(&policy) {
                Ok(()) => {
                    self.refused.remove(&peer);
                    Ok(())
                }
                Err(problem) => {
                    let text = format!(
                        "{}: {why}; and the kernel cannot stand in: {problem}",
                        policy.name
                    );
                    self.refuse(&peer, &text);
                    Err(NotServed(text))
                }
            },
        }
    }

    /// Takes a policy for the kernel.
    pub(super) fn for_kernel(&mut self, policy: &Policy) -> Result<(), String> {
        self.kernel.clone()?;
        let theirs = KernelPolicy::of_charon(policy)?;
        if !self.others.iter().any(|(other, _)| other == policy) {
            self.others.push((policy.clone(), theirs));
        }
        Ok(())
    }

    pub(super) fn delete_policy(&mut self, policy: &Policy, state: &State) -> Option<()> {
        if let Some(at) = self.others.iter().position(|(other, _)| other == policy) {
            self.others.remove(at);
            return Some(());
        }
        let at = self.installed(policy)?;
        self.remove_policy(at, state);
        Some(())
    }

    /// The place of a policy that charon has installed and not removed.
    pub(super) fn installed(&self, policy: &Policy) -> Option<usize> {
        let same = |entry: &Entry| entry.leaves.is_none() && entry.policy == *policy;
        self.policies.iter().position(same)
    }

    /// Brings the guard to the policies that stand.
    pub(super) fn guard(&mut self, taken_out: bool) {
        let mut present = BTreeMap::new();
        for Entry {
            selector, policy, ..
        } in &self.policies
        {
            if policy.kind != Kind::Bypass {
                *present.entry(selector.remote).or_default() |= is_trap(policy);
            }
        }
        let session = self.session.as_ref();
        let lives = session.is_some_and(|session| session.events.is_some() && !session.ending);
        self.guard
            .update(&present, taken_out && lives, Instant::now());
    }
}

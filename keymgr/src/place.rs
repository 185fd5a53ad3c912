//! Who serves what: the datapath, the kernel, or nobody. An SA is at one place only, and with it every policy that
//! names it.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use culvert_proto::policy::{Action, Mode, Place, PolicySpec, Selector};
use culvert_proto::sa::{SaId, StateRef};
use ipnet::IpNet;

use crate::goal::Goal;
use crate::kernel::{KernelPolicy, KernelSa, Sas};
use crate::wanted::Wanted;

/// Whether somebody can serve at all; if not, why.
pub(crate) type Ready<'a> = Result<(), &'a str>;

/// What is whose.
#[derive(Clone, Debug, Default)]
pub(crate) struct Division {
    /// What the datapath gets: its SAs, and all policies. Those that it does not serve have no SAs there, so that it
    /// drops what gets past the kernel.
    pub(crate) datapath: Wanted,
    /// What the kernel gets.
    pub(crate) kernel: KernelPart,
    /// Who serves each policy that protects, and why it is not the datapath.
    pub(crate) places: BTreeMap<Selector, (Place, Option<String>)>,
}

/// What the kernel gets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct KernelPart {
    /// SAs, each with its state.
    pub(crate) sas: BTreeMap<SaId, (KernelSa, StateRef)>,
    /// Policies.
    pub(crate) policies: BTreeSet<KernelPolicy>,
}

/// Divides what is wanted.
pub(crate) fn divide(goal: &Goal, datapath: Ready<'_>, kernel: Ready<'_>) -> Division {
    let mut division = Division::default();
    let mut in_kernel = HashSet::new();
    for (selector, spec) in &goal.wanted.policies {
        if let Action::Protect { .. } = spec.action {
            let place = place(goal, spec, datapath, kernel);
            if place.0 == Place::Kernel {
                in_kernel.extend(named(&spec.action).copied());
            }
            division.places.insert(selector.clone(), place);
        }
    }
    keep_together(goal, &mut division.places, &mut in_kernel);
    let unnamed = unnamed(goal, datapath, kernel);
    in_kernel.extend(unnamed);

    for id in &in_kernel {
        let part = match goal.kernel_only.get(id) {
            Some(only) => Some((only.sa.clone(), only.state)),
            None => kernel_sa(goal, id).ok().flatten(),
        };
        division.kernel.sas.extend(part.map(|part| (*id, part)));
    }
    let sas = goal.wanted.sas.iter();
    let sas = sas.filter(|(id, _)| !in_kernel.contains(*id));
    division.datapath.sas = sas.map(|(id, sa)| (*id, sa.clone())).collect();
    for (selector, spec) in &goal.wanted.policies {
        let mut spec = spec.clone();
        let place = division.places.get(selector).map(|place| place.0);
        if let Action::Protect { outbound, inbound } = &mut spec.action
            && place != Some(Place::Culvert)
        {
            *outbound = None;
            inbound.clear();
        }
        division.datapath.policies.insert(selector.clone(), spec);
    }
    if kernel.is_ok() {
        division.kernel.policies = kernel_policies(goal, &division.places, datapath.is_ok());
    }
    for (selector, place) in &mut division.places {
        if place.0 == Place::Kernel && lacks_sa(goal, selector) {
            // A trap waits for its first packet, which is nothing to complain of.
            let trap = goal
                .hows
                .get(selector)
                .is_some_and(|how| how.trap.is_some());
            *place = (Place::Nobody, (!trap).then(|| "it has no SA".to_owned()));
        }
    }
    division
}

/// Whether nothing can leave under a policy.
fn lacks_sa(goal: &Goal, selector: &Selector) -> bool {
    let policy = goal.wanted.policies.get(selector);
    policy.is_some_and(|spec| matches!(spec.action, Action::Protect { outbound: None, .. }))
}

/// The SAs of a policy.
fn named(action: &Action) -> impl Iterator<Item = &SaId> {
    let (outbound, inbound) = match action {
        Action::Protect { outbound, inbound } => (outbound.as_ref(), &inbound[..]),
        _ => (None, &[][..]),
    };
    outbound.into_iter().chain(inbound)
}

/// Who serves a policy, as far as it alone matters.
fn place(
    goal: &Goal,
    spec: &PolicySpec,
    datapath: Ready<'_>,
    kernel: Ready<'_>,
) -> (Place, Option<String>) {
    let mode = goal
        .hows
        .get(&spec.selector)
        .map_or_else(Mode::default, |how| how.mode);
    let only = named(&spec.action).find_map(|id| goal.kernel_only.get(id));
    let why = match (mode, only, datapath) {
        (Mode::KernelOnly, ..) => "as its mode says".to_owned(),
        (_, Some(only), _) => only.why.clone(),
        (.., Err(why)) => why.to_owned(),
        (.., Ok(())) => return (Place::Culvert, None),
    };
    if mode == Mode::CulvertOnly {
        return (
            Place::Nobody,
            Some(format!("{why}; its mode is culvert-only")),
        );
    }
    let unable = match kernel {
        Err(problem) => Some(problem.to_owned()),
        Ok(()) if !spec.selector.vnis.is_empty() => {
            Some("the kernel's IPsec does not see VNIs".to_owned())
        }
        Ok(()) => named(&spec.action).find_map(|id| kernel_sa(goal, id).err()),
    };
    match unable {
        None => (Place::Kernel, Some(why)),
        Some(unable) => (Place::Nobody, Some(format!("{why}; {unable}"))),
    }
}

/// An SA as the kernel would have it, with its state; `None` if there is no such SA that Culvert could serve.
fn kernel_sa(goal: &Goal, id: &SaId) -> Result<Option<(KernelSa, StateRef)>, String> {
    let Some(spec) = goal.wanted.sas.get(id) else {
        return Ok(None);
    };
    let reqid = goal.reqids.get(id).copied();
    if spec.encapsulation.is_some() && reqid.is_none() {
        return Err("in UDP the kernel takes the socket of an IKE daemon".to_owned());
    }
    let sa = KernelSa::of(spec, reqid.unwrap_or_default())?;
    Ok(Some((sa, spec.state)))
}

/// Policies that share an SA with one of the kernel's go there, too.
fn keep_together(
    goal: &Goal,
    places: &mut BTreeMap<Selector, (Place, Option<String>)>,
    in_kernel: &mut HashSet<SaId>,
) {
    loop {
        let mut moved = false;
        for (selector, place) in places.iter_mut() {
            let Some(spec) = goal.wanted.policies.get(selector) else {
                continue;
            };
            if place.0 == Place::Culvert && named(&spec.action).any(|id| in_kernel.contains(id)) {
                let mode = goal
                    .hows
                    .get(selector)
                    .map_or_else(Mode::default, |how| how.mode);
                let can = mode != Mode::CulvertOnly
                    && selector.vnis.is_empty()
                    && named(&spec.action).all(|id| kernel_sa(goal, id).is_ok());
                let why = "it shares an SA with a policy that the kernel serves".to_owned();
                *place = if can {
                    in_kernel.extend(named(&spec.action).copied());
                    moved = true;
                    (Place::Kernel, Some(why))
                } else {
                    (Place::Nobody, Some(why))
                };
            }
        }
        if !moved {
            return;
        }
    }
}

/// SAs without a policy, or without one yet, that belong into the kernel.
fn unnamed(goal: &Goal, datapath: Ready<'_>, kernel: Ready<'_>) -> Vec<SaId> {
    if kernel.is_err() {
        return Vec::new();
    }
    let policies = goal.wanted.policies.values();
    let all: HashSet<&SaId> = policies.flat_map(|spec| named(&spec.action)).collect();
    let kernel_only = goal.kernel_only.keys();
    let served = goal.wanted.sas.keys();
    let served = served.filter(|id| datapath.is_err() && kernel_sa(goal, id).is_ok());
    let unnamed = kernel_only.chain(served).filter(|id| !all.contains(id));
    unnamed.copied().collect()
}

/// The kernel's SPD. What it does not serve itself, it blocks if the datapath is away, and else lets pass if it
/// overlaps with what it serves: then the datapath sees to it.
fn kernel_policies(
    goal: &Goal,
    places: &BTreeMap<Selector, (Place, Option<String>)>,
    datapath: bool,
) -> BTreeSet<KernelPolicy> {
    let in_kernel = |selector: &Selector| {
        places
            .get(selector)
            .is_some_and(|place| place.0 == Place::Kernel)
    };
    let theirs: BTreeSet<IpNet> = goal
        .wanted
        .policies
        .keys()
        .filter(|selector| in_kernel(selector))
        .map(|selector| selector.remote)
        .collect();
    let is_host = |net: &&IpNet| net.prefix_len() == net.max_prefix_len();
    let (hosts, prefixes): (BTreeSet<&IpNet>, BTreeSet<&IpNet>) = theirs.iter().partition(is_host);
    let overlaps = |net: &IpNet| {
        hosts.contains(net)
            || prefixes
                .iter()
                .any(|other| other.contains(net) || net.contains(*other))
            || (!is_host(&net) && hosts.iter().any(|host| net.contains(*host)))
    };
    let mut policies: Vec<KernelPolicy> = goal.others.iter().copied().collect();
    for (selector, spec) in &goal.wanted.policies {
        let mut spec = spec.clone();
        if !in_kernel(selector) {
            if datapath && !overlaps(&selector.remote) {
                continue;
            }
            if datapath {
                // Whatever its VNI, the datapath sees to it.
                spec.selector.vnis.clear();
            }
            spec.action = match spec.action {
                _ if datapath => Action::Bypass,
                Action::Protect { .. } | Action::Discard => Action::Discard,
                Action::Bypass => Action::Bypass,
            };
        }
        let trap = goal.hows.get(selector).and_then(|how| how.trap);
        let negotiated = named(&spec.action).find_map(|id| goal.reqids.get(id).copied());
        let sas = Sas {
            reqid: negotiated.or(trap).unwrap_or_default(),
            trap: trap.is_some(),
        };
        // What has neither SAs nor anybody who would make some is blocked.
        let some = trap.is_some() || named(&spec.action).next().is_some();
        policies.extend(KernelPolicy::of(&spec, some.then_some(&sas)));
    }
    KernelPolicy::merge(policies).into_iter().collect()
}

#[cfg(test)]
mod tests;

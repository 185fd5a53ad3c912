//! What is not well, which, and what to do.

use std::collections::{BTreeMap, HashMap};

use culvert_proto::policy::{Action, Geneve, Selector, short};
use culvert_proto::status::{DatapathStatus, KeymgrStatus, PolicyStatus, SaStatus, TunnelStatus};
use ipnet::IpNet;

/// Where the policies come from, by their selectors.
pub(super) type Tunnels<'a> = HashMap<&'a Selector, &'a TunnelStatus>;

pub(super) fn tunnels(keymgr: Option<&KeymgrStatus>) -> Tunnels<'_> {
    let tunnels = keymgr.into_iter().flat_map(|keymgr| &keymgr.tunnels);
    tunnels.map(|tunnel| (&tunnel.selector, tunnel)).collect()
}

/// Whether a policy waits for the first packet, as it should.
pub(super) fn waits(policy: &PolicyStatus, tunnel: Option<&&TunnelStatus>) -> bool {
    policy.blocked == 0 && tunnel.is_some_and(|tunnel| tunnel.trap)
}

pub(super) fn is_protected(policy: &PolicyStatus) -> bool {
    !policy.protected_by.starts_with("none")
}

pub(super) fn of_keymgr(keymgr: &KeymgrStatus, datapath_is_there: bool) -> Vec<String> {
    let mut problems = Vec::new();
    if datapath_is_there && !keymgr.datapath_in_sync {
        problems.push(format!(
            "the datapath does not have what is wanted: {}",
            keymgr
                .datapath_problem
                .as_deref()
                .unwrap_or("it is being pushed")
        ));
    }
    if let Some(text) = &keymgr.refused {
        problems.push(format!(
            "not taken over from {}; mend this and run \"culvert reload\":\n{text}",
            keymgr.source
        ));
    }
    if let Some(charon) = keymgr.charon.as_ref().filter(|charon| !charon.connected) {
        problems.push(format!(
            "{} is not connected: its SAs go on until their lifetimes end, and nobody replaces them; start it",
            charon.program
        ));
    }
    let refused = keymgr.charon_refused.iter();
    problems.extend(refused.map(|(peer, text)| format!("refused to strongSwan ({peer}): {text}")));
    problems.extend(keymgr.held.iter().map(|net| {
        let net = short(net);
        format!(
            "Geneve with {net} is blocked: strongSwan protected it, and has no policy for it any more; bring the \
             connection up, or run \"culvert release {net}\" to let Geneve go in clear"
        )
    }));
    problems
}

pub(super) fn of_datapath(datapath: &DatapathStatus, tunnels: &Tunnels<'_>) -> Vec<String> {
    let policies = datapath.policies.iter();
    let mut problems: Vec<String> = policies
        .filter_map(|policy| unprotected(policy, tunnels.get(&policy.selector)))
        .collect();
    problems.extend(uncovered(&datapath.policies));
    let sas = datapath.sas.iter();
    problems.extend(sas.filter_map(|sa| running_out(sa, datapath, tunnels)));
    problems
}

fn unprotected(policy: &PolicyStatus, tunnel: Option<&&TunnelStatus>) -> Option<String> {
    if is_protected(policy) || waits(policy, tunnel) {
        return None;
    }
    let Action::Protect { outbound, inbound } = &policy.action else {
        return None;
    };
    let lacking = match (
        tunnel.map(|tunnel| &*tunnel.source),
        outbound,
        inbound.is_empty(),
    ) {
        // It has a line of its own.
        (Some("held"), ..) => return None,
        (_, Some(_), false) => "its SA has reached the end of its life",
        (Some("strongSwan"), None, _) => "strongSwan has negotiated no outbound SA for it",
        (Some("strongSwan"), ..) => "strongSwan has negotiated no inbound SA for it",
        (_, None, true) => "it names no SA",
        (_, None, false) => "it names no outbound SA (out)",
        (_, Some(_), true) => "it names no inbound SA (in)",
    };
    let packets = match policy.blocked {
        0 => String::new(),
        count => format!(" ({count} packets dropped)"),
    };
    Some(format!(
        "Geneve from {} is blocked: {lacking}{packets}",
        policy.selector
    ))
}

/// Peers of whom only one direction of Geneve, or nearly none, has a policy: what no policy is for is dropped.
fn uncovered(policies: &[PolicyStatus]) -> Vec<String> {
    let sides = |geneve| match geneve {
        Geneve::Either => [true, true],
        Geneve::Local => [true, false],
        Geneve::Remote => [false, true],
        Geneve::Both => [false, false],
    };
    let mut peers: BTreeMap<(IpNet, IpNet), [bool; 2]> = BTreeMap::new();
    for policy in policies {
        let Selector { local, remote, .. } = policy.selector;
        let covered = peers.entry((local, remote)).or_default();
        for (covered, side) in covered.iter_mut().zip(sides(policy.selector.geneve)) {
            *covered |= side;
        }
    }
    let mut problems = Vec::new();
    for ((local, remote), mut covered) in peers {
        if covered == [true, true] {
            continue;
        }
        let wider = policies.iter().filter(|policy| {
            policy.selector.local.contains(&local) && policy.selector.remote.contains(&remote)
        });
        for policy in wider {
            for (covered, side) in covered.iter_mut().zip(sides(policy.selector.geneve)) {
                *covered |= side;
            }
        }
        let (local, remote) = (short(&local), short(&remote));
        for (covered, from, to, child) in [
            (
                covered[0],
                &remote,
                &local,
                "local_ts dynamic[udp/6081], remote_ts dynamic[udp]",
            ),
            (
                covered[1],
                &local,
                &remote,
                "local_ts dynamic[udp], remote_ts dynamic[udp/6081]",
            ),
        ] {
            if !covered {
                problems.push(format!(
                    "Geneve from {from} to {to} is blocked: no policy is for it (its source port is any, its \
                     destination port 6081); with strongSwan, a child is missing or not up: {child}"
                ));
            }
        }
    }
    problems
}

// RFC 4303 §3.3.3 [3.3.3-in-anticipation]
/// A static key is never rekeyed by itself; one of strongSwan's is, so that only its end is worth a word.
fn running_out(sa: &SaStatus, datapath: &DatapathStatus, tunnels: &Tunnels<'_>) -> Option<String> {
    let name = format!("SA {} {}", sa.spi, sa.direction);
    let negotiated = datapath.policies.iter().any(|policy| {
        let ours = match &policy.action {
            Action::Protect { outbound, inbound } => outbound
                .iter()
                .chain(inbound)
                .any(|id| id.spi == sa.spi && id.direction == sa.direction),
            _ => false,
        };
        ours && tunnels
            .get(&policy.selector)
            .is_some_and(|tunnel| tunnel.source == "strongSwan")
    });
    let todo = if negotiated {
        "strongSwan should have replaced it, see its log"
    } else {
        "give it a new key on both hosts"
    };
    match sa.state.as_str() {
        "expired" => Some(format!(
            "{name} has reached the end of its life and is stopped: {todo}"
        )),
        "expiring" if !negotiated => Some(format!(
            "{name} has reached its soft lifetime and will stop: {todo}"
        )),
        _ => None,
    }
}

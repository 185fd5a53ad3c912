//! What is not well, which, and what to do.

use std::collections::BTreeMap;

use culvert_proto::policy::{Action, Geneve, Mode, Selector, short};
use culvert_proto::status::{DatapathStatus, KeymgrStatus, SaStatus};
use ipnet::IpNet;

use super::tunnels::Tunnel;

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

pub(super) fn of_tunnels(tunnels: &[Tunnel<'_>], datapath: Option<&DatapathStatus>) -> Vec<String> {
    let mut problems: Vec<String> = tunnels.iter().filter_map(unprotected).collect();
    problems.extend(tunnels.iter().filter_map(misplaced));
    if let Some(datapath) = datapath {
        problems.extend(uncovered(tunnels));
        let sas = datapath.sas.iter();
        problems.extend(sas.filter_map(|sa| running_out(sa, tunnels)));
    }
    problems
}

/// What is protected, but not by whom it should be: what the kernel has taken over, by the reasons.
pub(super) fn fallen_back(tunnels: &[Tunnel<'_>], drained: bool) -> Vec<String> {
    if drained {
        return Vec::new();
    }
    let mut reasons: BTreeMap<&str, Vec<&Tunnel<'_>>> = BTreeMap::new();
    let prefers = |tunnel: &&Tunnel<'_>| tunnel.mode() == Some(Mode::PreferCulvert);
    for tunnel in tunnels
        .iter()
        .filter(|tunnel| tunnel.is_with_kernel())
        .filter(prefers)
    {
        reasons
            .entry(tunnel.why().unwrap_or("it does not say why"))
            .or_default()
            .push(tunnel);
    }
    let text = |(why, tunnels): (&str, Vec<&Tunnel<'_>>)| {
        let first = tunnels.first()?.selector;
        let more = match tunnels.len() - 1 {
            0 => String::new(),
            count => format!(" and {count} more"),
        };
        Some(format!(
            "Geneve from {first}{more} is protected, but by the kernel's IPsec instead of Culvert: {why}; Culvert takes it \
             back by itself once that has passed, or set mode = \"kernel-only\" if it is to stay so"
        ))
    };
    reasons.into_iter().filter_map(text).collect()
}

fn misplaced(tunnel: &Tunnel<'_>) -> Option<String> {
    let mode = tunnel.mode().filter(|_| tunnel.is_misplaced())?;
    Some(format!(
        "Geneve from {} is {}, and its protection by {}: run \"culvert reload\", and tell us if that does not help",
        tunnel.selector,
        mode.name(),
        tunnel.protected_by()
    ))
}

fn unprotected(tunnel: &Tunnel<'_>) -> Option<String> {
    // Those that are held have a line of their own.
    if !tunnel.is_blocked() || tunnel.waits() || tunnel.source() == Some("held") {
        return None;
    }
    let negotiated = tunnel.source() == Some("strongSwan");
    let action = tunnel.policy.map(|policy| &policy.action);
    let lacking = match (tunnel.why(), action) {
        (Some(why), _) => why,
        (None, Some(Action::Protect { outbound, inbound })) => {
            match (negotiated, outbound, inbound.is_empty()) {
                (_, Some(_), false) => "its SA has reached the end of its life",
                (true, None, _) => "strongSwan has negotiated no outbound SA for it",
                (true, ..) => "strongSwan has negotiated no inbound SA for it",
                (_, None, true) => "it names no SA",
                (_, None, false) => "it names no outbound SA (out)",
                (_, Some(_), true) => "it names no inbound SA (in)",
            }
        }
        (None, _) => "nobody serves it",
    };
    let packets = match tunnel.policy.map_or(0, |policy| policy.blocked) {
        0 => String::new(),
        count => format!(" ({count} packets dropped)"),
    };
    Some(format!(
        "Geneve from {} is blocked: {lacking}{packets}",
        tunnel.selector
    ))
}

/// Peers of whom only one direction of Geneve, or nearly none, has a policy: what no policy is for is dropped.
fn uncovered(tunnels: &[Tunnel<'_>]) -> Vec<String> {
    let sides = |geneve| match geneve {
        Geneve::Either => [true, true],
        Geneve::Local => [true, false],
        Geneve::Remote => [false, true],
        Geneve::Both => [false, false],
    };
    let mut peers: BTreeMap<(IpNet, IpNet), [bool; 2]> = BTreeMap::new();
    for tunnel in tunnels {
        let Selector { local, remote, .. } = *tunnel.selector;
        let covered = peers.entry((local, remote)).or_default();
        for (covered, side) in covered.iter_mut().zip(sides(tunnel.selector.geneve)) {
            *covered |= side;
        }
    }
    let mut problems = Vec::new();
    for ((local, remote), mut covered) in peers {
        if covered == [true, true] {
            continue;
        }
        let wider = tunnels.iter().filter(|tunnel| {
            tunnel.selector.local.contains(&local) && tunnel.selector.remote.contains(&remote)
        });
        for tunnel in wider {
            for (covered, side) in covered.iter_mut().zip(sides(tunnel.selector.geneve)) {
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
fn running_out(sa: &SaStatus, tunnels: &[Tunnel<'_>]) -> Option<String> {
    let name = format!("SA {} {}", sa.spi, sa.direction);
    let negotiated = tunnels.iter().any(|tunnel| {
        let ours = match tunnel.policy.map(|policy| &policy.action) {
            Some(Action::Protect { outbound, inbound }) => outbound
                .iter()
                .chain(inbound)
                .any(|id| id.spi == sa.spi && id.direction == sa.direction),
            _ => false,
        };
        ours && tunnel.source() == Some("strongSwan")
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

//! Policies as charon gives them, made ours: those of both directions joined by their selector, the SAs found that
//! belong to them.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use culvert_bridge::records::PolicyName;
use culvert_bridge::{Direction as Way, Kind, Policy, Priority, TrafficSelector};
use culvert_proto::policy::{Action, Geneve, Mode, Place, PolicySpec, Selector};
use culvert_proto::sa::{Direction, SaId, Spi};
use culvert_proto::status::TunnelStatus;
use ipnet::IpNet;

use super::leaving::is_trap;
use super::{Installed, NotServed, TRANSPORT};

const UDP: u8 = 17;
const PORT: u16 = 6081;

/// Geneve that a policy of charon's covers.
///
/// # Errors
/// It covers none of it, or asks for what cannot be told apart.
pub(super) fn selector(policy: &Policy) -> Result<Selector, NotServed> {
    if let Some(restriction) = &policy.restriction {
        return Err(NotServed(format!("{restriction}: not served")));
    }
    if policy.kind == Kind::Protect && policy.mode != TRANSPORT {
        return Err(NotServed::new(
            "tunnel mode is not served: set transport mode (mode = transport, type=transport)",
        ));
    }
    let (local, remote) = ends(&policy.name);
    let [here, there] = [local, remote].map(ports);
    let geneve = match (here, there) {
        (Ports::Any, Ports::Any) => Geneve::Either,
        (Ports::Geneve, Ports::Any) => Geneve::Local,
        (Ports::Any, Ports::Geneve) => Geneve::Remote,
        (Ports::Geneve, Ports::Geneve) => Geneve::Both,
        (Ports::Others, _) | (_, Ports::Others) => {
            return Err(NotServed::new(
                "it is not for Geneve (UDP, port 6081 on one side and any port on the other), which is all that \
                 Culvert serves",
            ));
        }
    };
    let net = |selector: &TrafficSelector| {
        IpNet::new(selector.network, selector.prefix)
            .map(|net| net.trunc())
            .map_err(|error| NotServed(error.to_string()))
    };
    let (local, remote) = (net(local)?, net(remote)?);
    if local.addr().is_ipv4() != remote.addr().is_ipv4() {
        return Err(NotServed::new("its ends are of different IP versions"));
    }
    Ok(Selector {
        local,
        remote,
        geneve,
        vnis: Vec::new(),
    })
}

/// The peer's addresses, if Geneve is among what the policy protects or discards, whether it is served or not.
pub(super) fn remote(policy: &Policy) -> Option<IpNet> {
    let (local, remote) = ends(&policy.name);
    let geneve = |selector| !matches!(ports(selector), Ports::Others);
    if policy.kind == Kind::Bypass || !geneve(local) || !geneve(remote) {
        return None;
    }
    IpNet::new(remote.network, remote.prefix)
        .ok()
        .map(|net| net.trunc())
}

/// The peer's end of a policy's SA.
pub(super) fn peer(policy: &Policy) -> IpAddr {
    match policy.name.direction {
        Way::Out => policy.destination,
        Way::In | Way::Forward => policy.source,
    }
}

/// The ends of a policy: ours, and the peer's.
fn ends(name: &PolicyName) -> (&TrafficSelector, &TrafficSelector) {
    match name.direction {
        Way::Out => (&name.source, &name.destination),
        Way::In | Way::Forward => (&name.destination, &name.source),
    }
}

/// What a traffic selector says of the UDP port at its end.
enum Ports {
    Any,
    /// 6081, perhaps with some others, which Geneve does not have there.
    Geneve,
    /// Not 6081, or not UDP.
    Others,
}

fn ports(selector: &TrafficSelector) -> Ports {
    if selector.protocol != 0 && selector.protocol != UDP {
        return Ports::Others;
    }
    let range = selector.first_port..=selector.last_port;
    if range == (0..=u16::MAX) {
        Ports::Any
    } else if range.contains(&PORT) {
        Ports::Geneve
    } else {
        Ports::Others
    }
}

/// The priority that kernel-netlink would give it; the least counts.
pub(crate) fn order(policy: &Policy) -> u32 {
    match policy.manual_priority {
        0 => automatic_order(policy),
        manual => manual,
    }
}

/// The priority where nobody has set one by hand, and among those that have the same by hand.
fn automatic_order(policy: &Policy) -> u32 {
    const BASE: u32 = 200_000;
    let class = match policy.priority {
        Priority::Pass => 1,
        Priority::Default | Priority::Routed => 2,
        Priority::Fallback => 3,
    };
    let (local, remote) = ends(&policy.name);
    let bits = |selector: &TrafficSelector| {
        u32::from(selector.prefix) * 512
            + u32::from(selector.first_port == selector.last_port) * 16 * 4
    };
    let protocol = u32::from(local.protocol != 0) * 256;
    let trap = u32::from(policy.priority != Priority::Routed);
    BASE * class - bits(local) - bits(remote) - protocol - trap
}

/// A policy of ours, and where it comes from.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Composed {
    pub(super) spec: PolicySpec,
    pub(super) tunnel: TunnelStatus,
    pub(super) trap: Option<u32>,
}

/// Joins the policies that charon has installed, in the order of their installation. As in kernel-netlink, of those
/// with the same selector and direction the one with the best priority counts, and of these the newest.
pub(super) fn compose<'a>(
    policies: impl Iterator<Item = (&'a Selector, &'a Policy)>,
    sas: &BTreeMap<SaId, Installed>,
) -> Vec<Composed> {
    let mut groups: BTreeMap<&Selector, Group> = BTreeMap::new();
    for (newest, (selector, policy)) in policies.enumerate() {
        let group = groups.entry(selector).or_default();
        let ranked = Ranked {
            rank: (order(policy), automatic_order(policy), Reverse(newest)),
            policy,
        };
        match policy.name.direction {
            Way::Out => group.out.push(ranked),
            Way::In => group.r#in.push(ranked),
            Way::Forward => {}
        }
    }
    let mut inbound: HashMap<u32, Vec<&Installed>> = HashMap::new();
    for sa in sas.values() {
        if sa.id().direction == Direction::In {
            inbound.entry(sa.reqid).or_default().push(sa);
        }
    }
    let groups = groups.into_iter();
    groups
        .filter_map(|(selector, group)| group.compose(selector, sas, &inbound))
        .collect()
}

/// A policy with its rank; the least counts.
struct Ranked<'a> {
    rank: (u32, u32, Reverse<usize>),
    policy: &'a Policy,
}

/// The policies of one selector.
#[derive(Default)]
struct Group<'a> {
    out: Vec<Ranked<'a>>,
    r#in: Vec<Ranked<'a>>,
}

impl Group<'_> {
    fn compose(
        &self,
        selector: &Selector,
        sas: &BTreeMap<SaId, Installed>,
        inbound: &HashMap<u32, Vec<&Installed>>,
    ) -> Option<Composed> {
        fn best<'a>(list: &[Ranked<'a>]) -> Option<(u32, &'a Policy)> {
            let best = list.iter().min_by_key(|ranked| ranked.rank)?;
            Some((best.rank.0, best.policy))
        }
        let tops = [best(&self.out), best(&self.r#in)];
        let order = tops.iter().flatten().map(|(order, _)| *order).min()?;
        let kinds = || tops.iter().flatten().map(|(_, policy)| policy.kind);
        let all = || {
            self.out
                .iter()
                .chain(&self.r#in)
                .map(|ranked| ranked.policy)
        };
        let trap = |policy: &&Policy| is_trap(policy);
        let mut tunnel = TunnelStatus {
            selector: selector.clone(),
            source: "strongSwan".to_owned(),
            ike_peer: None,
            reqid: None,
            trap: all().any(|policy| trap(&policy)),
            mode: Mode::default(),
            place: Place::Culvert,
            why: None,
        };
        let action = if kinds().any(|kind| kind == Kind::Protect) {
            // Charon asks by the reqid of the trap.
            let out = tops[0].map(|(_, policy)| policy);
            let named = all()
                .find(trap)
                .or(out)
                .or(tops[1].map(|(_, policy)| policy));
            tunnel.reqid = named.map(|policy| policy.reqid);
            tunnel.ike_peer = out.map(|policy| policy.destination);
            Action::Protect {
                outbound: out.and_then(|policy| outbound(policy, selector, sas)),
                inbound: self.inbound(selector, inbound),
            }
        } else if kinds().any(|kind| kind == Kind::Discard) {
            Action::Discard
        } else {
            Action::Bypass
        };
        let trapped = all().find(|policy| trap(policy) && policy.name.direction == Way::Out);
        Some(Composed {
            trap: trapped.map(|policy| policy.reqid),
            spec: PolicySpec {
                selector: selector.clone(),
                order,
                action,
            },
            tunnel,
        })
    }

    /// The SAs that packets may come under: by the reqid, as in the kernel, so that in a rekeying the new one is good
    /// from its first packet.
    fn inbound(&self, selector: &Selector, sas: &HashMap<u32, Vec<&Installed>>) -> Vec<SaId> {
        let policies = self.r#in.iter().map(|ranked| ranked.policy);
        let mut reqids: Vec<u32> = policies
            .filter(|policy| policy.kind == Kind::Protect)
            .map(|policy| policy.reqid)
            .collect();
        reqids.sort_unstable();
        reqids.dedup();
        let there = reqids.iter().filter_map(|reqid| sas.get(reqid)).flatten();
        there
            .filter(|sa| between(selector, sa.id().destination, sa.source()))
            .map(|sa| sa.id())
            .collect()
    }
}

/// The SA that packets leave under: the one that the policy names.
fn outbound(policy: &Policy, selector: &Selector, sas: &BTreeMap<SaId, Installed>) -> Option<SaId> {
    let id = SaId {
        direction: Direction::Out,
        spi: Spi::new(policy.spi).ok()?,
        destination: policy.destination,
    };
    let sa = sas.get(&id)?;
    between(selector, sa.source(), id.destination).then_some(id)
}

fn between(selector: &Selector, local: IpAddr, remote: IpAddr) -> bool {
    selector.local.contains(&local) && selector.remote.contains(&remote)
}

#[cfg(test)]
mod tests;

//! Policies for the kernel, and what becomes of Culvert's and charon's.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::io;
use std::net::IpAddr;

use culvert_bridge::{Direction, Kind, TrafficSelector};
use culvert_proto::policy::{self, Geneve, PolicySpec};
use culvert_proto::sa::Spi;
use ipnet::IpNet;
use netlink_packet_xfrm::constants::{
    IPPROTO_ESP, IPPROTO_ICMP, IPPROTO_ICMPV6, IPPROTO_UDP, XFRM_MODE_TRANSPORT, XFRM_MODE_TUNNEL,
    XFRM_POLICY_ALLOW, XFRM_POLICY_BLOCK, XFRM_POLICY_FWD, XFRM_POLICY_IN, XFRM_POLICY_OUT,
};
use netlink_packet_xfrm::policy::{DelGetMessage, ModifyMessage};
use netlink_packet_xfrm::{
    Address, Id, Selector, UserPolicyId, UserPolicyInfo, UserTemplate, XFRM_USER_POLICY_INFO_LEN,
    XfrmAttrs, XfrmMessage,
};

use super::family;
use super::read::{address, wrong};
use super::sa::is_tunnel;
use crate::charon::policy::order;

/// Priorities of ours begin here. What charon and others make by themselves is far below, and counts before ours.
const PRIORITY: u32 = 0x0c00_0000;
/// The last order that has a priority of its own.
const LAST_ORDER: u32 = 0x00ff_ffff;
/// Geneve's port.
const GENEVE: u16 = 6081;

/// The kernel's priority for a policy of ours; the lowest counts.
#[must_use]
pub const fn priority(order: u32) -> u32 {
    if order < LAST_ORDER {
        PRIORITY + order
    } else {
        PRIORITY + LAST_ORDER
    }
}

/// Whether it is a priority of ours.
pub(super) const fn is_ours(priority: u32) -> bool {
    priority & !LAST_ORDER == PRIORITY
}

/// Which packets a policy is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Way {
    /// Those for this host.
    In,
    /// Those of this host.
    Out,
    /// Those that are forwarded, as far as they arrive.
    Forward,
}

/// One side of a selector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Side {
    /// Addresses. No host bits are set.
    pub net: IpNet,
    /// Port, as far as `mask` has bits.
    pub port: u16,
    /// Bits of the port that count; 0: any port.
    pub mask: u16,
}

/// The SAs of a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Template {
    /// The SA's.
    pub reqid: u32,
    /// SPI; `None`: any.
    pub spi: Option<Spi>,
    /// Source and destination address of the SA in tunnel mode. `None`: transport mode, in which the SA is between the
    /// ends of the packet.
    pub tunnel: Option<(IpAddr, IpAddr)>,
}

/// What is done with packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Action {
    /// They go under such an SA, and must have come under one.
    Protect(Template),
    /// They pass.
    Allow,
    /// They are dropped.
    Block,
}

/// A policy for the kernel: direction, selectors and protocol name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KernelPolicy {
    /// Direction.
    pub way: Way,
    /// Source of the packets.
    pub source: Side,
    /// Destination of the packets.
    pub destination: Side,
    /// IP protocol; 0: any. For ICMP, the source port is the type, and the destination port the code.
    pub protocol: u8,
    /// What is done with them.
    pub action: Action,
    /// The lowest counts; see [`priority`].
    pub priority: u32,
}

/// What SAs a policy has, or is to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sas {
    /// Theirs.
    pub reqid: u32,
    /// Whether a packet that finds no outbound SA asks for one, by the reqid. Else it is dropped.
    pub trap: bool,
}

impl KernelPolicy {
    /// What Culvert's policy is in the kernel. Without `sas`, what it protects is dropped.
    ///
    /// With an outbound SA, out names its SPI; in goes by the reqid, so that in a rekeying the new SA is good from its
    /// first packet. The kernel sees no VNIs: what is for some of them drops all, whatever it is. Several of Culvert's
    /// policies may become the same in the kernel: see [`KernelPolicy::merge`].
    #[must_use]
    pub fn of(spec: &PolicySpec, sas: Option<&Sas>) -> Vec<Self> {
        let selector = &spec.selector;
        let action = |way: Way| match &spec.action {
            _ if !selector.vnis.is_empty() => Action::Block,
            policy::Action::Bypass => Action::Allow,
            policy::Action::Discard => Action::Block,
            policy::Action::Protect { outbound, .. } => match sas {
                Some(sas) if way != Way::Out || sas.trap || outbound.is_some() => {
                    Action::Protect(Template {
                        reqid: sas.reqid,
                        spi: outbound.map(|sa| sa.spi).filter(|_| way == Way::Out),
                        tunnel: None,
                    })
                }
                _ => Action::Block,
            },
        };
        // Local and remote port.
        let ports: &[[bool; 2]] = match selector.geneve {
            Geneve::Either => &[[false, true], [true, false]],
            Geneve::Local => &[[true, false]],
            Geneve::Remote => &[[false, true]],
            Geneve::Both => &[[true, true]],
        };
        let side = |net: IpNet, geneve: bool| Side {
            net,
            port: if geneve { GENEVE } else { 0 },
            mask: if geneve { u16::MAX } else { 0 },
        };
        let mut policies = Vec::new();
        for &[here, there] in ports {
            let local = side(selector.local, here);
            let remote = side(selector.remote, there);
            for (way, source, destination) in [(Way::Out, local, remote), (Way::In, remote, local)]
            {
                policies.push(Self {
                    way,
                    source,
                    destination,
                    protocol: IPPROTO_UDP,
                    action: action(way),
                    priority: priority(spec.order),
                });
            }
        }
        policies
    }

    /// What a policy of charon's is in the kernel, whether it is for Geneve or not.
    ///
    /// # Errors
    /// The kernel does not have it.
    pub fn of_charon(policy: &culvert_bridge::Policy) -> Result<Self, String> {
        if let Some(restriction) = &policy.restriction {
            return Err(format!("{restriction}: not served"));
        }
        let name = &policy.name;
        let (mut source, mut destination) = (side(&name.source)?, side(&name.destination)?);
        if source.net.addr().is_ipv4() != destination.net.addr().is_ipv4() {
            return Err("its ends are of different IP versions".to_owned());
        }
        // One may be for any.
        let protocol = name.source.protocol.max(name.destination.protocol);
        if matches!(protocol, IPPROTO_ICMP | IPPROTO_ICMPV6) {
            icmp(&mut source, &mut destination);
        }
        let way = match name.direction {
            Direction::In => Way::In,
            Direction::Out => Way::Out,
            Direction::Forward => Way::Forward,
        };
        let action = match policy.kind {
            Kind::Bypass => Action::Allow,
            Kind::Discard => Action::Block,
            Kind::Protect => Action::Protect(Template {
                reqid: policy.reqid,
                spi: Spi::new(policy.spi).ok().filter(|_| way == Way::Out),
                tunnel: is_tunnel(policy.mode)?.then_some((policy.source, policy.destination)),
            }),
        };
        Ok(Self {
            way,
            source,
            destination,
            protocol,
            action,
            priority: priority(order(policy)),
        })
    }

    /// Of those that have the same name in the kernel, the one that counts.
    #[must_use]
    pub fn merge(policies: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut merged = BTreeMap::new();
        for policy in policies {
            match merged.entry(policy.name()) {
                Entry::Vacant(place) => {
                    place.insert(policy);
                }
                Entry::Occupied(mut place) if policy.priority < place.get().priority => {
                    place.insert(policy);
                }
                Entry::Occupied(_) => {}
            }
        }
        merged.into_values().collect()
    }

    /// What names it: the kernel has one of each.
    #[must_use]
    pub fn name(&self) -> (Way, Side, Side, u8) {
        (self.way, self.source, self.destination, self.protocol)
    }

    fn selector(&self) -> Selector {
        Selector {
            daddr: Address::from_ip(&self.destination.net.addr()),
            saddr: Address::from_ip(&self.source.net.addr()),
            dport: self.destination.port,
            dport_mask: self.destination.mask,
            sport: self.source.port,
            sport_mask: self.source.mask,
            family: family(self.destination.net.addr()),
            prefixlen_d: self.destination.net.prefix_len(),
            prefixlen_s: self.source.net.prefix_len(),
            proto: self.protocol,
            ifindex: 0,
            user: 0,
        }
    }

    fn direction(&self) -> u8 {
        match self.way {
            Way::In => XFRM_POLICY_IN,
            Way::Out => XFRM_POLICY_OUT,
            Way::Forward => XFRM_POLICY_FWD,
        }
    }

    /// `XFRM_MSG_UPDPOLICY`.
    pub(super) fn set_request(&self) -> XfrmMessage {
        let user_policy_info = UserPolicyInfo {
            selector: self.selector(),
            priority: self.priority,
            direction: self.direction(),
            action: match self.action {
                Action::Protect(_) | Action::Allow => XFRM_POLICY_ALLOW,
                Action::Block => XFRM_POLICY_BLOCK,
            },
            ..UserPolicyInfo::default()
        };
        let nlas = match &self.action {
            Action::Protect(template) => vec![XfrmAttrs::Template(vec![self.template(template)])],
            Action::Allow | Action::Block => Vec::new(),
        };
        XfrmMessage::UpdatePolicy(ModifyMessage {
            user_policy_info,
            nlas,
        })
    }

    fn template(&self, template: &Template) -> UserTemplate {
        let mut raw = UserTemplate {
            id: Id {
                spi: template.spi.map_or(0, Spi::get),
                proto: IPPROTO_ESP,
                ..Id::default()
            },
            family: family(self.destination.net.addr()),
            reqid: template.reqid,
            mode: XFRM_MODE_TRANSPORT,
            ..UserTemplate::default()
        };
        // In transport mode they would only be said again when an SA is asked for, instead of the packet's.
        if let Some((source, destination)) = &template.tunnel {
            raw.source(source);
            raw.destination(destination);
            raw.mode = XFRM_MODE_TUNNEL;
        }
        raw
    }

    /// `XFRM_MSG_DELPOLICY`.
    pub(super) fn delete_request(&self) -> XfrmMessage {
        XfrmMessage::DeletePolicy(DelGetMessage {
            user_policy_id: UserPolicyId {
                selector: self.selector(),
                index: 0,
                direction: self.direction(),
            },
            nlas: Vec::new(),
        })
    }

    /// What a message says of a policy, if it is one of ours.
    pub(super) fn read(payload: &[u8]) -> io::Result<Option<Self>> {
        let info = UserPolicyInfo::parse(payload).map_err(wrong)?;
        let rest = payload.get(XFRM_USER_POLICY_INFO_LEN..).unwrap_or_default();
        let selector = info.selector;
        let way = match info.direction {
            XFRM_POLICY_IN => Way::In,
            XFRM_POLICY_OUT => Way::Out,
            XFRM_POLICY_FWD => Way::Forward,
            // Of a socket.
            _ => return Ok(None),
        };
        if !is_ours(info.priority) {
            return Ok(None);
        }
        let side = |net: &Address, prefix, port, mask| {
            Ok::<_, io::Error>(Side {
                net: IpNet::new(address(net, selector.family), prefix).map_err(io::Error::other)?,
                port,
                mask,
            })
        };
        let template = super::events::template(rest)?;
        Ok(Some(Self {
            way,
            source: side(
                &selector.saddr,
                selector.prefixlen_s,
                selector.sport,
                selector.sport_mask,
            )?,
            destination: side(
                &selector.daddr,
                selector.prefixlen_d,
                selector.dport,
                selector.dport_mask,
            )?,
            protocol: selector.proto,
            action: match (info.action, template) {
                (XFRM_POLICY_BLOCK, _) => Action::Block,
                (_, None) => Action::Allow,
                (_, Some(template)) => Action::Protect(Template {
                    reqid: template.reqid,
                    spi: Spi::new(template.id.spi).ok(),
                    tunnel: (template.mode == XFRM_MODE_TUNNEL).then(|| {
                        (
                            address(&template.saddr, template.family),
                            address(&template.id.daddr, template.family),
                        )
                    }),
                }),
            },
            priority: info.priority,
        }))
    }
}

/// All policies.
pub(super) fn dump_request() -> XfrmMessage {
    XfrmMessage::GetPolicy(DelGetMessage::default())
}

/// A traffic selector of charon's. Of a range of ports, the kernel takes the bits that all of them have, as with
/// kernel-netlink.
fn side(selector: &TrafficSelector) -> Result<Side, String> {
    let net = IpNet::new(selector.network, selector.prefix).map_err(|error| error.to_string())?;
    let (first, last) = (selector.first_port, selector.last_port);
    if first > last {
        return Err(format!("{selector}: not served"));
    }
    let same = (first ^ last).leading_zeros();
    let mask = u16::MAX.checked_shl(16 - same).unwrap_or(0);
    Ok(Side {
        net: net.trunc(),
        port: first & mask,
        mask,
    })
}

/// The kernel has the type of ICMP as source port and the code as destination port; charon has both in one.
fn icmp(source: &mut Side, destination: &mut Side) {
    let [kind, code] = source.port.max(destination.port).to_be_bytes();
    if kind == 0 && code == 0 {
        return;
    }
    for (side, number) in [(source, kind), (destination, code)] {
        side.port = number.into();
        side.mask = if number == 0 { 0 } else { u16::MAX };
    }
}

impl fmt::Display for KernelPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.way {
            Way::In => "in",
            Way::Out => "out",
            Way::Forward => "fwd",
        };
        write!(f, "policy {} to {} {way}", self.source, self.destination)?;
        match self.protocol {
            0 => Ok(()),
            protocol => write!(f, " protocol {protocol}"),
        }
    }
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.net.fmt(f)?;
        match self.mask {
            0 => Ok(()),
            u16::MAX => write!(f, " port {}", self.port),
            mask => write!(f, " port {}/{mask:#06x}", self.port),
        }
    }
}

#[cfg(test)]
mod tests;

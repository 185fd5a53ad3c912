//! charon's structs become the bridge's records. What is missing or of no known kind is an error that says so.

use std::ffi::c_uint;
use std::net::{IpAddr, SocketAddr};

use culvert_bridge::records::{PolicyName, SaUpdate};
use culvert_bridge::{
    Direction, Kind, Lifetimes, Policy, Priority, Sa, SaName, Secret, TrafficSelector,
};

use crate::layout::{
    AUTH_UNDEFINED, AddSa, HW_OFFLOAD_YES, Host, Lifetime, ManagePolicy, Mark, POLICY_DROP,
    POLICY_FWD, POLICY_IN, POLICY_IPSEC, POLICY_OUT, POLICY_PASS, POLICY_PRIORITY_DEFAULT,
    POLICY_PRIORITY_FALLBACK, POLICY_PRIORITY_PASS, POLICY_PRIORITY_ROUTED, PolicyId, SaId,
    Selector, UpdateSa,
};

type Result<T> = std::result::Result<T, String>;

/// What an SA is named by.
pub(crate) fn sa_name(id: &SaId) -> Result<SaName> {
    Ok(SaName {
        spi: u32::from_be(id.spi),
        destination: address(id.dst)?,
    })
}

/// An SA.
pub(crate) fn sa(id: &SaId, data: &AddSa) -> Result<Sa> {
    Ok(Sa {
        name: sa_name(id)?,
        protocol: id.proto,
        inbound: data.inbound,
        source: end(id.src)?,
        destination_port: end(id.dst)?.port(),
        reqid: data.reqid,
        mode: data.mode,
        encryption: data.enc_alg,
        key: Secret::new(data.enc_key.bytes().to_vec()),
        // What charon says with an AEAD.
        integrity: match data.int_alg {
            AUTH_UNDEFINED => 0,
            algorithm => algorithm,
        },
        integrity_key: Secret::new(data.int_key.bytes().to_vec()),
        esn: data.esn,
        replay_window: data.replay_window,
        tfc: data.tfc,
        encapsulated: data.encap,
        ipcomp: data.ipcomp,
        lifetimes: data.lifetime.map(lifetimes).unwrap_or_default(),
        restriction: restriction(&[
            (is_set(&id.mark) || is_set(&data.mark), "a mark"),
            (id.if_id != 0, "an interface ID"),
            (!data.interface.is_null(), "an interface"),
            (!data.label.is_null(), "a security label"),
            (data.hw_offload == HW_OFFLOAD_YES, "hardware offload"),
        ]),
    })
}

/// Other ends for an SA.
pub(crate) fn update(id: &SaId, data: &UpdateSa) -> Result<SaUpdate> {
    Ok(SaUpdate {
        name: sa_name(id)?,
        source: end(data.new_src)?,
        destination: end(data.new_dst)?,
        encapsulated: data.new_encap,
        reqid: data.new_reqid,
    })
}

/// What a policy is named by.
pub(crate) fn policy_name(id: &PolicyId) -> Result<PolicyName> {
    Ok(name(id)?.0)
}

/// A policy.
pub(crate) fn policy(id: &PolicyId, data: &ManagePolicy) -> Result<Policy> {
    let (name, exact) = name(id)?;
    let sa = data.sa.ok_or("a policy says nothing of its SA")?;
    Ok(Policy {
        name,
        kind: one_of(
            "kind of policy",
            data.kind,
            &[
                (POLICY_IPSEC, Kind::Protect),
                (POLICY_PASS, Kind::Bypass),
                (POLICY_DROP, Kind::Discard),
            ],
        )?,
        priority: one_of(
            "priority of a policy",
            data.prio,
            &[
                (POLICY_PRIORITY_PASS, Priority::Pass),
                (POLICY_PRIORITY_DEFAULT, Priority::Default),
                (POLICY_PRIORITY_ROUTED, Priority::Routed),
                (POLICY_PRIORITY_FALLBACK, Priority::Fallback),
            ],
        )?,
        manual_priority: data.manual_prio,
        source: address(data.src)?,
        destination: address(data.dst)?,
        mode: sa.mode,
        reqid: sa.reqid,
        spi: u32::from_be(sa.esp_spi),
        restriction: restriction(&[
            (is_set(&id.mark), "a mark"),
            (id.if_id != 0, "an interface ID"),
            (!id.interface.is_null(), "an interface"),
            (!id.label.is_null(), "a security label"),
            (sa.ah, "AH"),
            (sa.ipcomp != 0, "IPComp"),
            (!exact, "a range of addresses that is no network"),
        ]),
    })
}

/// An address, without its port.
pub(crate) fn address(host: Option<&Host>) -> Result<IpAddr> {
    Ok(end(host)?.ip())
}

fn end(host: Option<&Host>) -> Result<SocketAddr> {
    Ok(host.and_then(Host::end).ok_or("an address is missing")?)
}

fn name(id: &PolicyId) -> Result<(PolicyName, bool)> {
    let (source, source_exact) = selector(id.src_ts)?;
    let (destination, destination_exact) = selector(id.dst_ts)?;
    let directions = [
        (POLICY_IN, Direction::In),
        (POLICY_OUT, Direction::Out),
        (POLICY_FWD, Direction::Forward),
    ];
    let name = PolicyName {
        direction: one_of("direction of a policy", id.dir, &directions)?,
        source,
        destination,
    };
    Ok((name, source_exact && destination_exact))
}

fn selector(selector: Option<&Selector>) -> Result<(TrafficSelector, bool)> {
    let selector = selector.and_then(Selector::read);
    Ok(selector.ok_or("a traffic selector is missing, or not of IP")?)
}

fn lifetimes(lifetime: &Lifetime) -> Lifetimes {
    Lifetimes {
        soft_seconds: lifetime.time_rekey,
        hard_seconds: lifetime.time_life,
        soft_bytes: lifetime.bytes_rekey,
        hard_bytes: lifetime.bytes_life,
        soft_packets: lifetime.packets_rekey,
        hard_packets: lifetime.packets_life,
    }
}

fn is_set(mark: &Mark) -> bool {
    mark.value != 0 || mark.mask != 0
}

fn restriction(asked: &[(bool, &str)]) -> Option<String> {
    let names: Vec<&str> = asked.iter().filter(|it| it.0).map(|it| it.1).collect();
    (!names.is_empty()).then(|| names.join(", "))
}

fn one_of<T: Copy>(what: &str, number: c_uint, known: &[(c_uint, T)]) -> Result<T> {
    let found = known.iter().find(|(value, _)| *value == number);
    Ok(found
        .ok_or_else(|| format!("{what} {number} is not known"))?
        .1)
}

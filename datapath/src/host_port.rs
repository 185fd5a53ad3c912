//! The host port: an interface on which the host's stack gives and takes plaintext Geneve. It looks like the NIC to the stack.
//!
//! It is a TAP, whose queues the workers have, or a veth pair, of which they have the inner end.

use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use log::info;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use nix::net::if_::if_nametoindex;

use culvert_gso::vnet::Layout;

use crate::netlink::Netlink;
use crate::nic::{self, Nic, Offload};
use crate::settings::HostPort as Kind;
use crate::tap::Tap;

/// Packets that wait in a TAP's queue, at most: as many as AF_XDP has frames for in its rings. There is no more than a window of TCP's.
const QUEUE: u32 = 4096;

/// By which a TAP is known as Culvert's: its alias, as `ip link` shows it.
const ALIAS: &str = "Culvert's host port";

/// The IPv4 dummy address (RFC 7600 §4.8): neither forwarded nor reached by anyone.
const DUMMY_ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// A host port that is there, and up.
#[derive(Debug)]
pub enum HostPort {
    /// A veth pair.
    Veth,
    /// A TAP.
    Tap(Tap),
}

impl HostPort {
    /// What it is, for people.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Veth => "veth",
            Self::Tap(tap) if tap.layout == Layout::Tunnel => "TAP with superpackets",
            Self::Tap(_) => "TAP",
        }
    }
}

/// Decides which kind it is, and why.
///
/// # Errors
/// A TAP is wanted, and there can be none.
pub fn choose(wanted: Kind) -> Result<(Kind, String)> {
    if wanted == Kind::Veth {
        return Ok((Kind::Veth, "as the settings say".into()));
    }
    let without = "this kernel has no superpackets of tunnels on a TAP (Linux 6.17)";
    Ok(match (wanted, Tap::has_superpackets()) {
        (Kind::Tap, Ok(true)) => (Kind::Tap, "as the settings say".into()),
        (Kind::Tap, Ok(false)) => (Kind::Tap, format!("as the settings say, but {without}")),
        (Kind::Tap, Err(error)) => return Err(error.context("host_port = \"tap\"")),
        (_, Ok(true)) => (
            Kind::Tap,
            "this kernel hands over superpackets of tunnels".into(),
        ),
        (_, Ok(false)) => (Kind::Veth, without.into()),
        (_, Err(error)) => (Kind::Veth, format!("there can be no TAP: {error:#}")),
    })
}

/// Makes the host port with `queues` queues, or takes over the one that is there, and sets it up: MAC address of
/// `wire`, `mtu`, offloads, sysctls, up.
///
/// # Errors
/// An interface of that name is somebody else's; the kernel refuses something.
pub fn ensure(
    kind: Kind,
    outer: &str,
    inner: &str,
    wire: &str,
    queues: u32,
    mtu: u32,
) -> Result<HostPort> {
    let netlink = Netlink::open().context("netlink")?;
    let nic = netlink
        .get(wire)?
        .with_context(|| format!("no interface {wire}"))?;
    let address = |attribute| match attribute {
        LinkAttribute::Address(address) => Some(address),
        _ => None,
    };
    let mac = nic.attributes.into_iter().find_map(address);
    let mac = mac.unwrap_or_default();
    ensure!(
        mac.len() == 6,
        "{wire} has no Ethernet address: Culvert needs an Ethernet NIC"
    );
    if let Some(there) = netlink.get(outer)? {
        let veth = is_veth(&there) && is_pair(&there, inner);
        ensure!(
            veth || is_our_tap(&there),
            "there is an interface {outer} that is not Culvert's; set host_interface to a free name"
        );
        let fits = match kind {
            Kind::Tap => is_our_tap(&there),
            Kind::Veth | Kind::Auto => veth && Nic::query(inner)?.queues == queues,
        };
        // A veth keeps the limit that it got with the first XDP program on its inner end.
        let lengths = || netlink.set(outer, vec![LinkAttribute::Mtu(mtu)], false);
        if !fits || lengths().is_err() {
            // The egress program drops what it would have redirected, until the new one is there.
            netlink.delete(outer)?;
        }
    }
    let made = if_nametoindex(outer).is_err();
    let port = match kind {
        Kind::Tap => {
            let tap = Tap::open(outer, queues)?;
            let attributes = vec![
                LinkAttribute::IfAlias(ALIAS.into()),
                LinkAttribute::TxQueueLen(QUEUE),
            ];
            netlink.set(outer, attributes, false)?;
            tap.persist()?;
            HostPort::Tap(tap)
        }
        Kind::Veth | Kind::Auto => {
            if made {
                netlink.create_veth(outer, inner, queues)?;
            }
            HostPort::Veth
        }
    };
    if made {
        info!("host port {outer} made: {}, {queues} queues", port.kind());
    }
    netlink.set(
        outer,
        vec![LinkAttribute::Address(mac), LinkAttribute::Mtu(mtu)],
        false,
    )?;
    if let HostPort::Veth = port {
        netlink.set(inner, vec![LinkAttribute::Mtu(mtu)], false)?;
        // AF_XDP sees what would be left to the hardware: checksums not computed, VLAN tags beside the packet.
        nic::set_offload(outer, Offload::TxChecksum, false)?;
        nic::set_offload(outer, Offload::TxVlan, false)?;
        // What the workers hand in is put together again before it goes up the stack.
        nic::set_offload(outer, Offload::Gro, true)?;
    }

    // Replies to what arrives here leave by the NIC. Loose reverse path filtering lets that be, whatever is set
    // for all interfaces, of which the larger value counts; but not without an address on the interface.
    sysctl("ipv4", outer, "rp_filter", "2")?;
    netlink.add_address(outer, DUMMY_ADDRESS)?;
    // No other addresses, and no chatter.
    for (name, value) in [
        ("addr_gen_mode", "1"),
        ("accept_ra", "0"),
        ("disable_ipv6", "0"),
    ] {
        sysctl("ipv6", outer, name, value)?;
    }
    if let HostPort::Veth = port {
        sysctl("ipv6", inner, "disable_ipv6", "1")?;
        netlink.set(inner, Vec::new(), true)?;
    }
    netlink.set(outer, Vec::new(), true)?;
    Ok(port)
}

/// Packets that the stack had for the host port and nobody took, as a queue was full, or nobody there to read it.
///
/// # Errors
/// It is gone, or the kernel does not say.
pub fn not_taken(outer: &str) -> Result<u64> {
    let netlink = Netlink::open().context("netlink")?;
    let link = netlink.get(outer)?.context("it is gone")?;
    let dropped = |attribute: &LinkAttribute| match attribute {
        LinkAttribute::Stats64(statistics) => Some(statistics.tx_dropped),
        _ => None,
    };
    link.attributes
        .iter()
        .find_map(dropped)
        .context("no statistics")
}

/// Removes it, if it is there.
///
/// # Errors
/// The kernel refuses.
pub fn remove(outer: &str) -> Result<()> {
    let netlink = Netlink::open().context("netlink")?;
    match netlink.get(outer)? {
        Some(link) if is_veth(&link) || is_our_tap(&link) => netlink.delete(outer),
        _ => Ok(()),
    }
}

fn is_veth(link: &LinkMessage) -> bool {
    is(link, &InfoKind::Veth)
}

fn is_our_tap(link: &LinkMessage) -> bool {
    let ours = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::IfAlias(alias) if alias == ALIAS);
    is(link, &InfoKind::Tun) && link.attributes.iter().any(ours)
}

fn is(link: &LinkMessage, kind: &InfoKind) -> bool {
    let of = |info: &LinkInfo| matches!(info, LinkInfo::Kind(its) if its == kind);
    link.attributes.iter().any(|attribute| match attribute {
        LinkAttribute::LinkInfo(infos) => infos.iter().any(of),
        _ => false,
    })
}

/// Whether the other end of the veth pair `link` is `inner`.
fn is_pair(link: &LinkMessage, inner: &str) -> bool {
    if_nametoindex(inner).is_ok_and(|inner| link.attributes.contains(&LinkAttribute::Link(inner)))
}

/// Sets a sysctl of an interface. A kernel without IPv6 has none of those, and needs none.
fn sysctl(family: &str, interface: &str, name: &str, value: &str) -> Result<()> {
    let path: PathBuf = ["/proc/sys/net", family, "conf", interface, name]
        .iter()
        .collect();
    match std::fs::write(&path, value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound && family == "ipv6" => Ok(()),
        result => result.with_context(|| format!("{} = {value}", path.display())),
    }
}

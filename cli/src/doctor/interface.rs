//! The NIC, the host port, and the tunnels above them.

use std::collections::BTreeMap;

use culvert_datapath::lengths::Buffers;
use culvert_datapath::tap::Tap;

use super::Finding;
use super::links::{self, Kind, Link};
use super::probe::{self, Queues};

/// IP, UDP, Geneve without options, and the inner Ethernet header: over IPv4 and over IPv6.
const GENEVE: [u32; 2] = [20 + 8 + 8 + 14, 40 + 8 + 8 + 14];
/// SPI and sequence number, IV, pad to four bytes, pad length and next header, ICV (RFC 4303 §2, RFC 4106).
const ESP: u32 = 8 + 8 + 3 + 2 + 16;
/// The option that OVN adds to Geneve.
const OVN_OPTION: u32 = 8;
/// From here on an MTU says "no limit": Open vSwitch gives its Geneve device 65000.
const UNLIMITED: u32 = 60_000;

pub(super) fn examine(wire: &str, host_port: &str) -> Vec<Finding> {
    let links = match links::all() {
        Ok(links) => links,
        Err(error) => {
            return vec![Finding::fail(
                "NIC",
                format!("netlink: {error}"),
                "ip link show",
            )];
        }
    };
    let find = |name: &str| links.iter().find(|link| link.name == name);
    let Some(nic) = find(wire) else {
        return vec![Finding::fail(
            "NIC",
            format!("there is no interface {wire} in this network namespace"),
            "ip -brief link, then: culvert doctor --wire IFACE",
        )];
    };
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut findings = vec![
        up(nic),
        match probe::queues(wire) {
            Ok(found) => queues(wire, found, u32::try_from(cores).unwrap_or(u32::MAX)),
            Err(error) => Finding::warn(
                "queues",
                format!("{wire}: {error}"),
                format!("ethtool -l {wire}"),
            ),
        },
        match probe::features(wire) {
            Ok(found) => wire_offloads(nic, &found, &links),
            Err(error) => Finding::warn(
                "offloads",
                format!("{wire}: {error}"),
                format!("ethtool -k {wire}"),
            ),
        },
    ];
    findings.push(superpackets());
    // Without AF_XDP other findings say more.
    let buffers = Buffers::for_mtu(nic.mtu).unwrap_or(Buffers::One);
    findings.extend(mtu(nic, &links, buffers));
    if find(host_port).is_some() {
        // A TAP, which has no other end, tells which checksums are to be computed.
        if find(&format!("{host_port}i")).is_some() {
            findings.push(match probe::features(host_port) {
                Ok(found) => host_offloads(host_port, &found),
                Err(error) => Finding::warn(
                    "offloads",
                    format!("{host_port}: {error}"),
                    format!("ethtool -k {host_port}"),
                ),
            });
        }
        findings.push(rp_filter(host_port, &conf("all"), &conf(host_port)));
    } else {
        findings.push(Finding::ok(
            "host port",
            format!("{host_port} is not there yet; culvert-datapath makes it and sets it up"),
        ));
    }
    findings
}

/// `rp_filter` as the kernel has it.
fn conf(interface: &str) -> String {
    // Of the namespace that we run in, unlike sysfs.
    std::fs::read_to_string(format!("/proc/sys/net/ipv4/conf/{interface}/rp_filter"))
        .unwrap_or_default()
}

fn up(nic: &Link) -> Finding {
    let name = &nic.name;
    if nic.up {
        Finding::ok("NIC", format!("{name} is up"))
    } else {
        Finding::fail(
            "NIC",
            format!("{name} is down"),
            format!("ip link set {name} up"),
        )
    }
}

/// One worker a queue, one core a worker.
fn queues(wire: &str, queues: Queues, cores: u32) -> Finding {
    let Queues { used, most } = queues;
    let found = format!("{wire} has {used}, this machine {cores} cores");
    let better = cores.min(most);
    if used > cores {
        Finding::warn(
            "queues",
            found + ": some workers serve several",
            format!("ethtool -L {wire} combined {cores}"),
        )
    } else if used < better {
        Finding::warn(
            "queues",
            found + ": some cores have no worker (leave it if they have other work)",
            format!("ethtool -L {wire} combined {better}"),
        )
    } else {
        Finding::ok("queues", found)
    }
}

fn wire_offloads(nic: &Link, features: &BTreeMap<String, bool>, links: &[Link]) -> Finding {
    let wire = &nic.name;
    let on = |name: &str| features.get(name) == Some(&true);
    let tagged = links
        .iter()
        .any(|link| link.kind == Kind::Vlan { lower: nic.index });
    let mut bad = Vec::new();
    let mut commands = Vec::new();
    for (name, command, why, matters) in [
        ("rx-lro", "lro off", "XDP sees packets put together", true),
        (
            "rx-gro-hw",
            "rx-gro-hw off",
            "XDP sees packets put together",
            true,
        ),
        (
            "rx-vlan-hw-parse",
            "rxvlan off",
            "AF_XDP loses the tag, and VLANs are in use",
            tagged,
        ),
    ] {
        if matters && on(name) {
            bad.push(format!("{name} ({why})"));
            commands.push(command);
        }
    }
    if bad.is_empty() {
        Finding::ok("offloads", format!("{wire}: none in the way of XDP"))
    } else {
        Finding::warn(
            "offloads",
            format!("{wire}: on: {}", bad.join(", ")),
            format!("ethtool -K {wire} {}", commands.join(" ")),
        )
    }
}

fn host_offloads(host_port: &str, features: &BTreeMap<String, bool>) -> Finding {
    let on: Vec<_> = [
        "tx-checksum-ip-generic",
        "tx-checksum-ipv4",
        "tx-checksum-ipv6",
    ]
    .into_iter()
    .filter(|name| features.get(*name) == Some(&true))
    .collect();
    if on.is_empty() {
        Finding::ok(
            "offloads",
            format!("{host_port}: checksums are computed before AF_XDP"),
        )
    } else {
        Finding::fail(
            "offloads",
            format!(
                "{host_port}: {} on: what is sealed has wrong checksums inside",
                on.join(", ")
            ),
            format!("ethtool -K {host_port} tx off"),
        )
    }
}

/// Tried by a TAP that is gone at once.
fn superpackets() -> Finding {
    const CHECK: &str = "superpackets";
    match Tap::has_superpackets() {
        Ok(true) => Finding::ok(
            CHECK,
            "the host port can be a TAP that moves 64 KiB at once",
        ),
        Ok(false) => Finding::warn(
            CHECK,
            "this kernel has none of tunnels: the host port is a veth pair, and TCP slower",
            "Linux 6.17 or later",
        ),
        Err(error) => Finding::warn(
            CHECK,
            format!(
                "there can be no TAP, so the host port is a veth pair, and TCP slower: {error:#}"
            ),
            "modprobe tun",
        ),
    }
}

/// What was opened comes in by the host port, though the way back is by the NIC.
fn rp_filter(host_port: &str, all: &str, own: &str) -> Finding {
    // The kernel takes the larger value of both: 0 off, 1 strict, 2 loose.
    let value = |text: &str| text.trim().parse().unwrap_or(0);
    let effective: u32 = value(all).max(value(own));
    if effective == 1 {
        Finding::fail(
            "rp_filter",
            format!("{host_port}: strict: what was opened is dropped by the stack"),
            format!("sysctl -w net.ipv4.conf.{host_port}.rp_filter=2"),
        )
    } else {
        let mode = if effective == 0 { "off" } else { "loose" };
        // The NIC's may be anything: what was sealed is taken before the stack looks at it.
        Finding::ok("rp_filter", format!("{host_port}: {mode}"))
    }
}

fn mtu(nic: &Link, links: &[Link], buffers: Buffers) -> Vec<Finding> {
    let (wire, mtu) = (&nic.name, nic.mtu);
    let longest = mtu.saturating_sub(ESP).min(buffers.longest());
    let limits = GENEVE.map(|overhead| longest.saturating_sub(overhead));
    let mut findings = Vec::new();
    let found = format!(
        "{wire}: {mtu}; a guest's may be {} over IPv4, {} over IPv6 ({OVN_OPTION} less with OVN, 8 less \
         with ESP in UDP)",
        limits[0], limits[1]
    );
    findings.push(match buffers.limit(wire, mtu) {
        Some(limit) => Finding::warn("MTU", found, limit),
        None => Finding::ok("MTU", found),
    });
    for link in links {
        let Kind::Geneve { ipv6 } = link.kind else {
            continue;
        };
        let name = &link.name;
        // One that does not say may go over both.
        let limit = limits[usize::from(ipv6 != Some(false))];
        findings.push(if link.mtu >= UNLIMITED {
            Finding::ok(
                "MTU",
                format!(
                    "{name}: {}, no limit of its own: what counts is the guests' MTU",
                    link.mtu
                ),
            )
        } else if link.mtu > limit {
            Finding::fail(
                "MTU",
                format!("{name}: {}: full packets do not fit when sealed", link.mtu),
                format!("ip link set {name} mtu {limit}"),
            )
        } else {
            Finding::ok("MTU", format!("{name}: {}", link.mtu))
        });
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    fn link(name: &str, mtu: u32, kind: Kind) -> Link {
        Link {
            name: name.to_owned(),
            index: 7,
            mtu,
            up: true,
            kind,
        }
    }

    #[test]
    fn tunnels_must_leave_room_for_esp() {
        let wire = link("eth1", 1500, Kind::Other);
        let tunnel = |mtu, ipv6| {
            let links = [wire.clone(), link("gnv0", mtu, Kind::Geneve { ipv6 })];
            mtu_of(&wire, &links)
        };
        assert_eq!(tunnel(1413, Some(false)).level, Level::Ok);
        let finding = tunnel(1414, Some(false));
        assert_eq!(finding.level, Level::Fail);
        assert_eq!(finding.mend.as_deref(), Some("ip link set gnv0 mtu 1413"));
        assert_eq!(
            tunnel(1413, None).mend.as_deref(),
            Some("ip link set gnv0 mtu 1393")
        );
        assert_eq!(tunnel(1393, Some(true)).level, Level::Ok);
        assert!(tunnel(65_000, None).found.contains("guests' MTU"));
    }

    /// The finding on the tunnel.
    fn mtu_of(wire: &Link, links: &[Link]) -> Finding {
        let mut findings = mtu(wire, links, Buffers::One);
        assert_eq!(findings.len(), 2);
        assert_eq!(findings[0].level, Level::Ok);
        findings.remove(1)
    }

    #[test]
    fn jumbo_frames_need_a_kernel_that_has_them() {
        let wire = link("eth1", 9000, Kind::Other);
        for (buffers, level, room) in [
            (Buffers::One, Level::Warn, "3448 over IPv4, 3428 over IPv6"),
            (
                Buffers::Several,
                Level::Ok,
                "8913 over IPv4, 8893 over IPv6",
            ),
        ] {
            let findings = mtu(&wire, &[], buffers);
            assert_eq!(findings[0].level, level);
            assert!(findings[0].found.contains(room), "{}", findings[0].found);
        }
    }

    #[test]
    fn queues_are_held_against_cores() {
        let level = |used, most, cores| queues("eth1", Queues { used, most }, cores);
        assert_eq!(level(4, 8, 4).level, Level::Ok);
        assert_eq!(level(1, 1, 4).level, Level::Ok);
        assert_eq!(
            level(8, 8, 4).mend.as_deref(),
            Some("ethtool -L eth1 combined 4")
        );
        assert_eq!(
            level(2, 3, 4).mend.as_deref(),
            Some("ethtool -L eth1 combined 3")
        );
    }

    #[test]
    fn offloads_that_change_packets_are_named() {
        let nic = link("eth1", 1500, Kind::Other);
        let features = |names: &[&str]| {
            names
                .iter()
                .map(|name| ((*name).to_owned(), true))
                .collect()
        };
        assert_eq!(
            wire_offloads(&nic, &features(&["rx-gro"]), &[]).level,
            Level::Ok
        );
        let finding = wire_offloads(&nic, &features(&["rx-lro", "rx-vlan-hw-parse"]), &[]);
        assert_eq!(finding.mend.as_deref(), Some("ethtool -K eth1 lro off"));
        let vlan = [link("eth1.5", 1500, Kind::Vlan { lower: 7 })];
        let finding = wire_offloads(&nic, &features(&["rx-vlan-hw-parse"]), &vlan);
        assert_eq!(finding.mend.as_deref(), Some("ethtool -K eth1 rxvlan off"));
        assert_eq!(
            host_offloads("cv", &features(&["tx-checksum-ip-generic"])).level,
            Level::Fail
        );
        assert_eq!(host_offloads("cv", &features(&[])).level, Level::Ok);
    }

    #[test]
    fn the_larger_rp_filter_counts() {
        for (all, own, level) in [
            ("0\n", "2\n", Level::Ok),
            ("1\n", "2\n", Level::Ok),
            ("1\n", "0\n", Level::Fail),
            ("0\n", "1\n", Level::Fail),
            ("", "", Level::Ok),
        ] {
            assert_eq!(rp_filter("cv", all, own).level, level, "{all}{own}");
        }
    }

    #[test]
    fn an_unknown_nic_is_a_failure() {
        let findings = examine("culvert-none", "cvhost0");
        assert!(findings.len() == 1 && findings[0].level == Level::Fail);
        assert!(!examine("lo", "cvhost0").is_empty());
    }
}

//! A wire of MTU 9000, whose packets AF_XDP moves in several buffers.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::lab::{Lab, Plan, Side, WIRE};
use culvert_tests::load;
use culvert_tests::wire::{Capture, take_counts};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("jumbo_packets_cross_by_veth", jumbo_packets_cross_by_veth),
    ("jumbo_packets_cross_by_tap", jumbo_packets_cross_by_tap),
    (
        "jumbo_packets_cross_in_generic_mode",
        jumbo_packets_cross_in_generic_mode,
    ),
    (
        "jumbo_wire_with_ordinary_guests",
        jumbo_wire_with_ordinary_guests,
    ),
    (
        "jumbo_sizes_around_one_buffer",
        jumbo_sizes_around_one_buffer,
    ),
    (
        "jumbo_host_port_goes_with_the_wire",
        jumbo_host_port_goes_with_the_wire,
    ),
];

/// What a page takes: whatever is longer was in several.
const PAGE: u64 = 4096;

fn plan() -> Plan {
    Plan {
        host_port: "veth",
        mtu: 9000,
        inner_mtu: 8800,
        ..Plan::default()
    }
}

/// Pings with `size` bytes that nobody may fragment, one after the other: ping waits for the last of many no longer than the
/// others took.
fn ping(from: &Side, to: &Side, count: u32, size: u32) -> Result<()> {
    for number in 0..count {
        ensure!(
            ping_once(from, to, size)?,
            "{number} of {count}, {size} bytes, did not come back"
        );
    }
    Ok(())
}

fn ping_once(from: &Side, to: &Side, size: u32) -> Result<bool> {
    let mut command = from.namespace.command("ping");
    command.args(["-q", "-M", "do", "-W", "3", "-c", "1"]);
    command.args(["-s", &size.to_string(), &to.inner.to_string()]);
    Ok(command.output().context("ping")?.status.success())
}

/// Whether nothing is lost but what a full ring loses.
fn nothing_else_lost(side: &Side) -> Result<()> {
    let drops = side.datapath_status()?.drops;
    let lost: Vec<_> = drops
        .iter()
        .filter(|(name, count)| {
            !["rx_overflow", "tx_ring_full"].contains(&name.as_str()) && **count > 0
        })
        .collect();
    ensure!(lost.is_empty(), "{lost:?}");
    Ok(())
}

/// Pings and TCP both ways, none of it in clear; the lab, for more.
fn crosses(plan: Plan) -> Result<Lab> {
    let mut lab = Lab::new(plan)?;
    lab.start_culvert()?;
    let [a, b] = &lab.sides;
    take_counts(&lab.underlay)?;
    let capture = Capture::start(&lab.home, &lab.underlay, "a0", 64)?;
    ping(a, b, 20, 8000)?;
    ping(b, a, 20, 8000)?;
    let frames = capture.finish()?.len();
    let counts = take_counts(&lab.underlay)?;
    ensure!(
        counts.esp.packets == 80 && frames == 40,
        "not one packet each: {counts:?}"
    );
    ensure!(counts.esp.bytes > 80 * 8000, "{counts:?}");
    let [there, back] = load::iperf_both_ways(&lab, 2)?;
    ensure!(
        there.gbit_per_s > 0.01 && back.gbit_per_s > 0.01,
        "{there:?} {back:?}"
    );
    let counts = take_counts(&lab.underlay)?;
    ensure!(
        counts.plaintext_geneve.packets == 0 && counts.esp.packets > 1000,
        "{counts:?}"
    );
    ensure!(counts.esp.bytes / counts.esp.packets > PAGE, "{counts:?}");
    for side in &lab.sides {
        nothing_else_lost(side)?;
    }
    Ok(lab)
}

fn jumbo_packets_cross_by_veth() -> Result<()> {
    for (ipv6, queues) in [(false, 1), (true, 2)] {
        let lab = crosses(Plan {
            ipv6,
            queues,
            ..plan()
        })?;
        let ports = lab.sides[0].datapath_status()?.ports;
        for port in ports {
            ensure!(port.xdp == "native", "{port:?}");
        }
    }
    Ok(())
}

fn jumbo_packets_cross_by_tap() -> Result<()> {
    for ipv6 in [false, true] {
        let plan = Plan {
            ipv6,
            host_port: "tap",
            ..plan()
        };
        crosses(plan)?;
    }
    Ok(())
}

fn jumbo_packets_cross_in_generic_mode() -> Result<()> {
    let plan = Plan {
        xdp: "generic",
        // The rights of the units suffice for these programs, too.
        confined: true,
        ..plan()
    };
    crosses(plan).map(drop)
}

/// The packets of an ordinary tunnel, for which several buffers are there and not needed.
fn jumbo_wire_with_ordinary_guests() -> Result<()> {
    for host_port in ["veth", "tap"] {
        let plan = Plan {
            host_port,
            inner_mtu: 1400,
            ..plan()
        };
        let mut lab = Lab::new(plan)?;
        lab.start_culvert()?;
        take_counts(&lab.underlay)?;
        let throughput = load::iperf(&lab, 2)?;
        ensure!(throughput.gbit_per_s > 0.01, "{throughput:?}");
        let counts = take_counts(&lab.underlay)?;
        ensure!(
            counts.plaintext_geneve.packets == 0 && counts.esp.packets > 1000,
            "{counts:?}"
        );
        for side in &lab.sides {
            nothing_else_lost(side)?;
        }
    }
    Ok(())
}

/// Sizes at which a packet, sealed or not, begins to need one buffer more.
fn jumbo_sizes_around_one_buffer() -> Result<()> {
    // Behind the headroom a chunk has 3808 bytes. In front of a ping's are 28 of its own and 64 of Geneve and what carries it.
    const AROUND: u32 = 28 + 64;
    for host_port in ["veth", "tap"] {
        let mut lab = Lab::new(Plan {
            host_port,
            ..plan()
        })?;
        lab.start_culvert()?;
        let [a, b] = &lab.sides;
        for buffers in 1..=2 {
            let full = buffers * 3808 - AROUND;
            for size in full - 100..full + 20 {
                ping(a, b, 1, size).context(host_port)?;
            }
        }
        // The largest that the tunnel takes.
        ping(a, b, 5, 8800 - 28).context(host_port)?;
        for side in &lab.sides {
            nothing_else_lost(side)?;
        }
    }
    Ok(())
}

/// A wire whose MTU is another at the next start.
fn jumbo_host_port_goes_with_the_wire() -> Result<()> {
    let mut lab = Lab::new(Plan {
        inner_mtu: 1300,
        ..plan()
    })?;
    lab.sides[0]
        .namespace
        .ip(&format!("link set {WIRE} mtu 1500"))?;
    lab.start_culvert()?;
    let host_mtu = |lab: &Lab| -> Result<u32> {
        let ports = lab.sides[0].datapath_status()?.ports;
        let host = ports.iter().find(|port| port.role == "host");
        Ok(host.context("the host port")?.mtu)
    };
    ensure!(host_mtu(&lab)? == 3498);
    for (wire, host) in [(9000, 16_000), (1500, 3498), (9000, 16_000)] {
        lab.end_datapath(0)?;
        lab.sides[0]
            .namespace
            .ip(&format!("link set {WIRE} mtu {wire}"))?;
        lab.start_datapath(0)?;
        lab.wait_for_protection(0)?;
        load::wait_for_reply(&lab, Duration::from_secs(5))?;
        let mtu = host_mtu(&lab)?;
        ensure!(mtu == host, "wire {wire}: host port {mtu}");
    }
    Ok(())
}

//! Lifetimes, and peers behind NAT.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use culvert_proto::event::{Event, Limit};
use culvert_tests::lab::{Lab, Plan, Side};
use culvert_tests::load;
use culvert_tests::netns::{run, wait_for};
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    (
        "lifetimes_reach_the_key_manager_in_time",
        lifetimes_reach_the_key_manager_in_time,
    ),
    (
        "a_peer_behind_nat_is_followed",
        a_peer_behind_nat_is_followed,
    ),
    ("keepalives_over_ipv6", keepalives_over_ipv6),
];

/// Waits for an event that `wanted` takes.
fn event(side: &Side, wanted: impl Fn(&Event) -> bool) -> Result<Instant> {
    let until = Instant::now() + Duration::from_secs(10);
    while Instant::now() < until {
        if side.keymgr_status()?.events.iter().any(&wanted) {
            return Ok(Instant::now());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    bail!("no such event: {:?}", side.keymgr_status()?.events)
}

fn expired(wanted_hard: bool, wanted_limit: Limit) -> impl Fn(&Event) -> bool {
    move |event| match event {
        Event::Expired { sa, hard, limit } => {
            sa.spi.get() == 0x1001 && *hard == wanted_hard && *limit == wanted_limit
        }
        Event::Moved { .. } | Event::Wanted { .. } | Event::Leaving => false,
    }
}

/// Three tries, as the machine may be busy with something else for a moment.
fn lifetimes_reach_the_key_manager_in_time() -> Result<()> {
    let mut late = Vec::new();
    for _ in 0..3 {
        let plan = Plan {
            sa: ["soft.packets = 20\nhard.packets = 40\n", ""],
            ..Plan::default()
        };
        let mut lab = Lab::new(plan)?;
        lab.start_culvert()?;
        let a = &lab.sides[0];
        let mut took = Vec::new();
        for (packets, hard) in [(20, false), (30, true)] {
            let ping = load::ping(&lab, packets)?;
            let sent = Instant::now();
            let seen = event(a, expired(hard, Limit::Packets))?;
            took.push(seen.duration_since(sent));
            // From 40 on, nothing goes.
            ensure!(ping.received == 20, "{ping:?}");
        }
        let status = a.datapath_status()?;
        ensure!(status.drops["sa_expired"] == 10, "{:?}", status.drops);
        let sa = status.sas.iter().find(|sa| sa.spi.get() == 0x1001);
        let sa = sa.context("the SA")?;
        ensure!(sa.packets == 40 && sa.state == "expired", "{sa:?}");
        let log = std::fs::read_to_string(a.folder.join("keymgr.log"))?;
        ensure!(
            log.contains("has reached its hard lifetime (packets)"),
            "{log}"
        );
        // A key manager that comes back is told again.
        lab.kill_keymgr(0)?;
        lab.start_keymgr(0)?;
        lab.wait_for_protection(0)?;
        event(&lab.sides[0], expired(true, Limit::Packets))?;
        // And so it is by a datapath that comes back; the SA stays stopped.
        lab.kill_datapath(0)?;
        lab.start_datapath(0)?;
        lab.wait_for_protection(0)?;
        ensure!(load::ping(&lab, 3)?.received == 0);
        late = took;
        if late.iter().all(|took| *took < Duration::from_millis(100)) {
            return Ok(());
        }
    }
    bail!("events were known after {late:?}, not within 100 ms, at each of three tries")
}

/// A NAT between a and b: what a sends from 4500 comes from another port, which changes. IKE's 500 is left alone.
pub(crate) fn nat(lab: &Lab, port: u16) -> Result<()> {
    let _ = lab
        .underlay
        .command("nft")
        .args(["delete", "table", "bridge", "nat"])
        .output()?;
    let rules = format!(
        "table bridge nat {{ chain forward {{ type filter hook forward priority -10; \
         ip saddr 192.0.2.1 udp sport 4500 udp sport set {port}; \
         ip daddr 192.0.2.1 udp dport {port} udp dport set 4500; \
         ip daddr 192.0.2.1 udp dport != {{ 500, 4500 }} drop; }}; }}"
    );
    run(lab.underlay.command("nft").arg(rules)).map(drop)
}

fn moved(wanted: u16) -> impl Fn(&Event) -> bool {
    move |event| match event {
        Event::Moved { address, port, .. } => *port == wanted && address.to_string() == "192.0.2.1",
        Event::Expired { .. } | Event::Wanted { .. } | Event::Leaving => false,
    }
}

const ENCAPSULATED: &str =
    "encapsulation = { source_port = 4500, destination_port = 4500, keepalive = 1 }\n";

/// Silence is filled with keepalives, which end at the other side.
fn keepalives_are_eaten(lab: &Lab) -> Result<()> {
    let eaten = || -> Result<[u64; 2]> {
        let [a, b] = [&lab.sides[0], &lab.sides[1]].map(Side::datapath_status);
        Ok([a?.drops["nat_keepalive"], b?.drops["nat_keepalive"]])
    };
    let before = eaten()?;
    wait_for("keepalives", Duration::from_secs(6), || {
        eaten().is_ok_and(|now| now[0] >= before[0] + 2 && now[1] >= before[1] + 2)
    })
}

fn keepalives_over_ipv6() -> Result<()> {
    let plan = Plan {
        ipv6: true,
        sa: [ENCAPSULATED; 2],
        inner_mtu: 1360,
        ..Plan::default()
    };
    let mut lab = Lab::new(plan)?;
    lab.start_culvert()?;
    let ping = load::ping(&lab, 20)?;
    ensure!(ping.received == 20, "{ping:?}");
    keepalives_are_eaten(&lab)
}

fn a_peer_behind_nat_is_followed() -> Result<()> {
    let plan = Plan {
        sa: [ENCAPSULATED; 2],
        inner_mtu: 1370,
        ..Plan::default()
    };
    let mut lab = Lab::new(plan)?;
    nat(&lab, 40_000)?;
    lab.start_culvert()?;
    let b = &lab.sides[1];
    // a speaks first, as whoever is behind a NAT must.
    let ping = load::ping(&lab, 50)?;
    ensure!(ping.received == 50, "{ping:?}");
    event(b, moved(40_000))?;
    load::iperf(&lab, 1)?;
    // The NAT forgets, and a comes from elsewhere.
    nat(&lab, 41_000)?;
    let ping = load::ping(&lab, 50)?;
    ensure!(ping.received == 50, "{ping:?}");
    event(b, moved(41_000))?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");

    // A datapath that is started again knows where a is.
    lab.kill_datapath(1)?;
    lab.start_datapath(1)?;
    lab.wait_for_protection(1)?;
    let ping = load::ping(&lab, 50)?;
    ensure!(ping.received == 50, "{ping:?}");

    keepalives_are_eaten(&lab)
}

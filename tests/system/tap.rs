//! The TAP as the host port: the same traffic, in superpackets.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::lab::{HOST_PORT, Lab, Plan, Side};
use culvert_tests::load;
use culvert_tests::netns::run;
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("tap_carries_superpackets", tap_carries_superpackets),
    (
        "tap_is_taken_over_and_taken_away",
        tap_is_taken_over_and_taken_away,
    ),
];

fn plan() -> Plan {
    Plan {
        host_port: "tap",
        ..Plan::default()
    }
}

/// Packets and bytes that the stack gave to the host port and got from it.
pub(crate) fn moved(side: &Side) -> Result<[(u64, u64); 2]> {
    let text = run(side.namespace.command("cat").arg("/proc/net/dev"))?;
    let line = text.lines().find(|line| line.contains(HOST_PORT));
    let (_, fields) = line
        .context("the host port")?
        .split_once(':')
        .context("fields")?;
    let fields: Vec<u64> = fields
        .split_whitespace()
        .map(str::parse)
        .collect::<Result<_, _>>()?;
    // Received by the stack is what was opened.
    Ok([(fields[9], fields[8]), (fields[1], fields[0])])
}

fn tap_carries_superpackets() -> Result<()> {
    for ipv6 in [false, true] {
        let mut lab = Lab::new(Plan { ipv6, ..plan() })?;
        lab.start_culvert()?;
        take_counts(&lab.underlay)?;
        ensure!(load::ping(&lab, 100)?.received == 100);
        let [there, back] = load::iperf_both_ways(&lab, 2)?;
        ensure!(there.gbit_per_s > 0.0 && back.gbit_per_s > 0.0);
        let counts = take_counts(&lab.underlay)?;
        ensure!(counts.plaintext_geneve.packets == 0 && counts.esp.packets > 10_000);
        for side in &lab.sides {
            let status = side.datapath_status()?;
            let host = status.ports.iter().find(|port| port.role == "host");
            let kind = &host.context("the host port")?.kind;
            if kind.contains("no superpackets") {
                continue;
            }
            let [(packets, bytes), (opened, opened_bytes)] = moved(side)?;
            ensure!(
                bytes / packets > 3_000,
                "sent in {packets} packets, {bytes} bytes"
            );
            ensure!(
                opened_bytes / opened > 1_450,
                "received in {opened} packets, {opened_bytes} bytes"
            );
            let refused = status.drops.get("superpacket_refused");
            ensure!(refused == Some(&0), "{:?}", status.drops);
        }
    }
    Ok(())
}

fn tap_is_taken_over_and_taken_away() -> Result<()> {
    let mut lab = Lab::new(plan())?;
    lab.start_culvert()?;
    load::wait_for_reply(&lab, Duration::from_secs(5))?;
    lab.kill_datapath(0)?;
    // What must be protected stays back, and the host port is still there.
    take_counts(&lab.underlay)?;
    ensure!(load::ping(&lab, 3)?.received == 0);
    ensure!(take_counts(&lab.underlay)?.plaintext_geneve.packets == 0);
    moved(&lab.sides[0])?;
    lab.start_datapath(0)?;
    lab.wait_for_protection(0)?;
    load::wait_for_reply(&lab, Duration::from_secs(5))?;
    lab.end_datapath(0)?;
    lab.end_keymgr(0)?;
    lab.remove_steering(0)?;
    ensure!(moved(&lab.sides[0]).is_err(), "the TAP is still there");
    Ok(())
}

//! Other NICs than the plain one: without native XDP, with several queues.

use anyhow::{Context, Result, ensure};
use culvert_tests::lab::{Lab, Plan};
use culvert_tests::load;
use culvert_tests::netns::run;
use culvert_tests::wire::{Capture, take_counts};

use crate::faults::check_capture;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("generic_mode", generic_mode),
    (
        "another_mode_at_the_next_start",
        another_mode_at_the_next_start,
    ),
    ("two_workers_share_an_sa", two_workers_share_an_sa),
];

fn generic_mode() -> Result<()> {
    let mut lab = Lab::new(Plan {
        xdp: "generic",
        ..Plan::default()
    })?;
    lab.start_culvert()?;
    take_counts(&lab.underlay)?;
    let ping = load::ping(&lab, 50)?;
    ensure!(ping.received == 50, "{ping:?}");
    ensure!(load::iperf(&lab, 2)?.gbit_per_s > 0.0);
    ensure!(take_counts(&lab.underlay)?.plaintext_geneve.packets == 0);
    for side in &lab.sides {
        let ports = side.datapath_status()?.ports;
        let wire = ports.iter().find(|port| port.role == "wire");
        ensure!(wire.is_some_and(|port| port.xdp == "generic"), "{ports:?}");
        let log = std::fs::read_to_string(side.folder.join("datapath.log"))?;
        ensure!(log.contains("wire port wire0: XDP generic"), "{log}");
    }
    Ok(())
}

/// The kernel has one mode at a time, and lets go of the old one in its own time: the start waits for that.
fn another_mode_at_the_next_start() -> Result<()> {
    let mut lab = Lab::new(Plan::default())?;
    lab.start_culvert()?;
    for mode in ["generic", "native"].repeat(5) {
        lab.end_datapath(0)?;
        lab.set_xdp(0, mode);
        take_counts(&lab.underlay)?;
        lab.start_datapath(0)?;
        lab.wait_for_protection(0)?;
        let ports = lab.sides[0].datapath_status()?.ports;
        let wire = ports.iter().find(|port| port.role == "wire");
        ensure!(wire.is_some_and(|port| port.xdp == mode), "{ports:?}");
        let ping = load::ping(&lab, 5)?;
        ensure!(ping.received == 5, "{mode}: {ping:?}");
        ensure!(take_counts(&lab.underlay)?.plaintext_geneve.packets == 0);
    }
    Ok(())
}

/// Many flows, spread over two queues of the host port, under one SA: no number twice, nothing lost, nothing
/// taken for a replay.
fn two_workers_share_an_sa() -> Result<()> {
    let mut lab = Lab::new(Plan {
        queues: 2,
        ..Plan::default()
    })?;
    lab.start_culvert()?;
    take_counts(&lab.underlay)?;
    let capture = Capture::start(&lab.home, &lab.underlay, "a0", 96)?;
    let [a, b] = &lab.sides;
    let send = format!(
        "import socket\n\
         flows = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(64)]\n\
         for _ in range(50):\n    for flow in flows: flow.sendto(bytes(100), ('{}', 9))\n",
        b.inner
    );
    run(a.namespace.command("python3").args(["-c", &send]))?;
    let ping = load::ping(&lab, 100)?;
    ensure!(ping.received == 100, "{ping:?}");
    ensure!(load::iperf(&lab, 2)?.gbit_per_s > 0.0);

    let counts = take_counts(&lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    let captured = check_capture(&capture.finish()?)?;
    ensure!(captured > 3200, "{captured} packets captured");
    let status = a.datapath_status()?;
    let sealed: Vec<_> = status.workers.iter().map(|worker| worker.sealed).collect();
    ensure!(
        sealed.len() == 2 && sealed.iter().all(|count| *count > 0),
        "sealed by each worker of a: {sealed:?}"
    );
    let drops = b.datapath_status()?.drops;
    let replayed = drops.get("replayed").context("no such counter")?;
    ensure!(*replayed == 0, "{drops:?}");
    Ok(())
}

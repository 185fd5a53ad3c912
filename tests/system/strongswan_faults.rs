//! charon, key manager and datapath die, peers do not answer, SAs are taken down, all in the middle of iperf3: nothing in
//! clear, no sequence number twice, and traffic flows again.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_proto::sa::Direction;
use culvert_proto::status::SaStatus;
use culvert_tests::charon::Kind;
use culvert_tests::ike::{CHILDREN, CONNECTION, Connection, Start};
use culvert_tests::lab::{Lab, Plan};
use culvert_tests::load;
use culvert_tests::negotiated::{LIMIT, Negotiated};
use culvert_tests::netns::wait_for;
use culvert_tests::wire::{Capture, take_counts};

use crate::faults::check_capture;
use crate::strongswan::flows;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("strongswan_delete_under_load", delete),
    ("strongswan_reauthentication_under_load", reauthentication),
    ("strongswan_charon_restarted_under_load", charon_restarted),
    ("strongswan_charon_killed_under_load", charon_killed),
    (
        "strongswan_key_manager_killed_under_load",
        key_manager_killed,
    ),
    ("strongswan_datapath_killed_under_load", datapath_killed),
    ("strongswan_dead_peer", dead_peer),
];

/// Both sides ask for SAs when there is a packet.
fn traps() -> Connection {
    Connection {
        start: [Start::Trap; 2],
        ..Connection::default()
    }
}

fn opened(lab: &Lab) -> Result<u64> {
    let workers = lab.sides[1].datapath_status()?.workers;
    Ok(workers.iter().map(|worker| worker.opened).sum())
}

/// `fault` happens in the middle of iperf3.
fn under_load(
    connection: &Connection,
    fault: impl Fn(&mut Negotiated) -> Result<()>,
) -> Result<()> {
    let mut net = Negotiated::start(Plan::default(), Kind::Systemd, connection)?;
    net.first_packet()?;
    flows(&net)?;
    take_counts(&net.lab.underlay)?;
    let captures =
        ["a0", "b0"].map(|port| Capture::start(&net.lab.home, &net.lab.underlay, port, 96));
    let mut server = load::serve(&net.lab)?;
    let client = load::client(&net.lab, 12)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()?;
    std::thread::sleep(Duration::from_secs(2));
    fault(&mut net)?;
    let before = opened(&net.lab)?;
    // TCP tries again at ever longer intervals.
    wait_for("the stream to go on", Duration::from_secs(10), || {
        opened(&net.lab).is_ok_and(|now| now > before + 1000)
    })
    .with_context(|| format!("{}\n{}", net.logs(0), net.logs(1)))?;
    let output = client.wait_with_output()?;
    server.wait()?;
    let throughput = load::parse(&String::from_utf8_lossy(&output.stdout))?;
    ensure!(throughput.gbit_per_s > 0.0, "{throughput:?}");
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    let mut total = 0;
    for capture in captures {
        total += check_capture(&capture?.finish()?)?;
    }
    ensure!(total > 10_000, "only {total} packets");
    flows(&net)
}

/// Other outbound SAs of a than `before`, and none of those.
fn made_anew(net: &Negotiated, before: &[SaStatus]) -> Result<()> {
    let other = |sa: &SaStatus| before.iter().all(|old| old.spi != sa.spi);
    wait_for("other SAs", LIMIT, || {
        net.sas(0, Direction::Out)
            .is_ok_and(|sas| !sas.is_empty() && sas.iter().all(other))
    })
    .with_context(|| net.logs(0))
}

fn delete() -> Result<()> {
    under_load(&traps(), |net| {
        let before = net.sas(0, Direction::Out)?;
        for child in CHILDREN {
            net.charons[0].swanctl(&["--terminate", "--child", child, "--force"])?;
        }
        made_anew(net, &before)
    })
}

fn reauthentication() -> Result<()> {
    under_load(&traps(), |net| {
        let before = net.sas(0, Direction::Out)?;
        net.charons[0].swanctl(&["--rekey", "--ike", CONNECTION, "--reauth"])?;
        made_anew(net, &before)
    })
}

fn charon_restarted() -> Result<()> {
    under_load(&traps(), |net| {
        net.charons[0].stop()?;
        std::thread::sleep(Duration::from_millis(500));
        net.start_charon(0)
    })
}

fn charon_killed() -> Result<()> {
    under_load(&traps(), |net| {
        let before = opened(&net.lab)?;
        net.charons[0].kill()?;
        // What it has installed goes on.
        wait_for("the stream to go on", Duration::from_secs(2), || {
            opened(&net.lab).is_ok_and(|now| now > before + 1000)
        })?;
        net.start_charon(0)
    })
}

fn key_manager_killed() -> Result<()> {
    for side in 0..2 {
        under_load(&traps(), |net| {
            let before = net.sas(0, Direction::Out)?;
            net.lab.kill_keymgr(side)?;
            net.lab.start_keymgr_without_keys(side)?;
            net.wait_for_session(side)?;
            // It has no keys: every SA is negotiated anew.
            made_anew(net, &before)
        })
        .with_context(|| format!("side {side}"))?;
    }
    Ok(())
}

fn datapath_killed() -> Result<()> {
    for side in 0..2 {
        under_load(&traps(), |net| {
            net.lab.kill_datapath(side)?;
            net.lab.start_datapath(side)?;
            net.lab.wait_for_protection(side)
        })
        .with_context(|| format!("side {side}"))?;
    }
    Ok(())
}

/// b is gone: a finds out, takes its SAs down, and negotiates again when b is back; nothing in clear all the while.
fn dead_peer() -> Result<()> {
    let connection = Connection {
        dead_peer: Some(1),
        ..traps()
    };
    let mut net = Negotiated::new(Plan::default(), Kind::Systemd, &connection, &[])?;
    for number in 0..2 {
        net.worlds[number].write(
            "/etc/strongswan.d/zz-patience.conf",
            "charon {\n  retransmit_tries = 1\n  retransmit_timeout = 1\n}\n",
        )?;
    }
    net.start_all()?;
    net.first_packet()?;
    flows(&net)?;
    take_counts(&net.lab.underlay)?;
    net.charons[1].kill()?;
    net.lab.kill_keymgr(1)?;
    net.lab.kill_datapath(1)?;
    // As long as a has no sign of life from b.
    wait_for("a to give b up", Duration::from_secs(30), || {
        let _ = load::ping(&net.lab, 1);
        net.sas(0, Direction::Out).is_ok_and(|sas| sas.is_empty())
    })
    .with_context(|| net.logs(0))?;
    let ping = load::ping(&net.lab, 20)?;
    ensure!(ping.received == 0, "{ping:?}");
    net.start_culvert(1)?;
    net.start_charon(1)?;
    net.first_packet()?;
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    flows(&net)
}

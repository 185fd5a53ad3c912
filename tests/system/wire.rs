//! What must not get on the wire, and what must not come in from it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use culvert_tests::lab::{Lab, Plan, Side};
use culvert_tests::netns::run;
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    (
        "fragments_of_geneve_do_not_leave",
        fragments_of_geneve_do_not_leave,
    ),
    (
        "plaintext_from_a_peer_is_dropped",
        plaintext_from_a_peer_is_dropped,
    ),
    ("other_traffic_is_left_alone", other_traffic_is_left_alone),
];

fn started() -> Result<Lab> {
    let plan = Plan::default();
    let mut lab = Lab::new(plan)?;
    lab.start_culvert(plan)?;
    take_counts(&lab.underlay)?;
    Ok(lab)
}

/// Sends `count` UDP datagrams of `size` bytes from `side` to `address`.
fn send_udp(side: &Side, address: &str, port: u16, size: usize, count: usize) -> Result<()> {
    let family = if address.contains(':') {
        "AF_INET6"
    } else {
        "AF_INET"
    };
    let script = format!(
        "import socket\n\
         s = socket.socket(socket.{family}, socket.SOCK_DGRAM)\n\
         for _ in range({count}): s.sendto(bytes({size}), ('{address}', {port}))\n"
    );
    run(python(side).args(["-c", &script])).map(drop)
}

fn python(side: &Side) -> Command {
    side.namespace.command("python3")
}

fn dropped(side: &Side, reason: &str) -> Result<u64> {
    let status = side.datapath_status()?;
    status
        .drops
        .get(reason)
        .copied()
        .with_context(|| format!("no counter {reason}"))
}

fn fragments_of_geneve_do_not_leave() -> Result<()> {
    let lab = started()?;
    let a = &lab.sides[0];
    send_udp(a, "192.0.2.2", 6081, 3000, 5)?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(
        counts.plaintext_geneve.packets == 0 && counts.other.packets == 0,
        "fragments of Geneve left: {counts:?}"
    );
    // The kernel gives a datagram up at the first fragment that is refused.
    ensure!(
        dropped(a, "egress_fragment")? == 5,
        "one later fragment of each of 5"
    );
    ensure!(
        dropped(a, "fragmented")? == 5,
        "one first fragment of each of 5"
    );
    // A fragmented datagram to another port of the same peer passes whole.
    send_udp(a, "192.0.2.2", 7000, 3000, 5)?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(counts.other.packets >= 15, "{counts:?}");
    Ok(())
}

fn plaintext_from_a_peer_is_dropped() -> Result<()> {
    let mut lab = started()?;
    // Side a loses its protection, as a host that was set up wrongly.
    lab.kill_keymgr(0)?;
    lab.kill_datapath(0)?;
    lab.remove_steering(0)?;
    send_udp(&lab.sides[0], "192.0.2.2", 6081, 100, 7)?;
    ensure!(take_counts(&lab.underlay)?.plaintext_geneve.packets == 7);
    ensure!(dropped(&lab.sides[1], "plaintext_from_peer")? == 7);
    Ok(())
}

fn other_traffic_is_left_alone() -> Result<()> {
    let lab = started()?;
    let a = &lab.sides[0];
    run(a
        .namespace
        .command("ping")
        .args(["-q", "-c", "5", "-i", "0.05", "192.0.2.2"]))?;
    run(a
        .namespace
        .command("ping")
        .args(["-q", "-c", "5", "-i", "0.05", "2001:db8::2"]))?;
    // Geneve over IPv6, of which no policy speaks, is no business of ours either.
    send_udp(a, "2001:db8::2", 6081, 100, 3)?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 3, "{counts:?}");
    Ok(())
}

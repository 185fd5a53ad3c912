//! What must not get on the wire, and what must not come in from it.

use std::io::{BufRead, BufReader, Read};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::lab::{HOST_PORT, Lab, Plan, Side};
use culvert_tests::netns::{run, wait_for};
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
    (
        "what_is_opened_passes_the_hosts_stack",
        what_is_opened_passes_the_hosts_stack,
    ),
];

fn started() -> Result<Lab> {
    let plan = Plan::default();
    let mut lab = Lab::new(plan)?;
    lab.start_culvert()?;
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

/// The host's stack has cut what was too large for the NIC: it is sealed as one, and cut again.
fn fragments_of_geneve_do_not_leave() -> Result<()> {
    // RFC 4303 §3.3.4 [3.3.4-whole-datagrams, 3.3.4-fragment-after]
    let lab = started()?;
    let [a, b] = &lab.sides;
    send_udp(a, "192.0.2.2", 6081, 3000, 5)?;
    wait_for("five datagrams", Duration::from_secs(5), || {
        b.datapath_status()
            .is_ok_and(|status| status.workers[0].opened == 5)
    })?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(
        counts.plaintext_geneve.packets == 0 && counts.other.packets == 0,
        "fragments of Geneve left: {counts:?}"
    );
    ensure!(counts.esp.packets == 15, "three each: {counts:?}");
    // They go up b's stack whole.
    let devices = run(b.namespace.command("cat").arg("/proc/net/dev"))?;
    let host_port = devices.lines().find(|line| line.contains(HOST_PORT));
    let fields: Vec<&str> = host_port
        .context("the host port")?
        .split_whitespace()
        .collect();
    ensure!(
        fields.get(4) == Some(&"0"),
        "dropped by the host port: {fields:?}"
    );
    // One whose beginning nobody has seen might be Geneve.
    let later = "import socket\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)\n\
        ip = bytes.fromhex('4500003c123400b94011b5a6c0000201c0000202')\n\
        s.sendto(ip + bytes(40), ('192.0.2.2', 0))\n";
    run(python(a).args(["-c", later]))?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(
        counts.esp.packets == 0 && counts.other.packets == 0,
        "{counts:?}"
    );
    ensure!(dropped(a, "egress_fragment")? == 1);
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

/// Whatever reverse path filtering a distribution sets for all interfaces. What has 6081 as its source port only
/// is sealed too, and no Geneve device takes it: it shows whether the stack lets through what is opened.
fn what_is_opened_passes_the_hosts_stack() -> Result<()> {
    let lab = started()?;
    let [a, b] = &lab.sides;
    let receive = "import socket\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)\n\
        s.bind(('192.0.2.2', 7777)); s.settimeout(10)\n\
        print('ready', flush=True)\n\
        print(s.recvfrom(100))\n";
    let send = "import socket\n\
        s = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_UDP)\n\
        udp = bytes.fromhex('17c11e6100130000') + b'sealed once'\n\
        s.sendto(udp, ('192.0.2.2', 0))\n";
    for filter in ["0", "1", "2"] {
        b.namespace.sysctl("net.ipv4.conf.all.rp_filter", filter)?;
        let mut receiver = python(b)
            .args(["-c", receive])
            .stdout(Stdio::piped())
            .spawn()?;
        let mut heard = BufReader::new(receiver.stdout.take().context("its output")?);
        let mut text = String::new();
        heard.read_line(&mut text)?;
        run(python(a).args(["-c", send]))?;
        heard.read_to_string(&mut text)?;
        receiver.wait()?;
        ensure!(
            text == "ready\n(b'sealed once', ('192.0.2.1', 6081))\n",
            "with rp_filter {filter}, b received: {text}"
        );
    }
    let counts = take_counts(&lab.underlay)?;
    ensure!(
        counts.esp.packets == 3 && counts.plaintext_geneve.packets == 0,
        "{counts:?}"
    );
    Ok(())
}

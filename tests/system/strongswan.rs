//! Keys from strongSwan: what two charons negotiate is what goes over the wire, and what they cannot is said.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use culvert_proto::sa::{Action, Direction};
use culvert_proto::status::SaStatus;
use culvert_tests::charon::Kind;
use culvert_tests::ike::{Auth, CHILDREN, Connection, Start};
use culvert_tests::lab::{Plan, culvert};
use culvert_tests::load;
use culvert_tests::negotiated::{LIMIT, Negotiated};
use culvert_tests::netns::{run, wait_for};
use culvert_tests::udp::{self, Flow, Stream};
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("strongswan_negotiates_and_counts_agree", negotiates),
    ("strongswan_self_signed", self_signed),
    ("strongswan_ca", ca),
    ("strongswan_ipsec_conf", ipsec_conf),
    ("strongswan_in_udp_over_ipv6", in_udp_over_ipv6),
    (
        "strongswan_follows_a_peer_behind_nat",
        follows_a_peer_behind_nat,
    ),
    ("strongswan_a_packet_starts_it", a_packet_starts_it),
    (
        "strongswan_what_is_missing_is_named",
        what_is_missing_is_named,
    ),
    (
        "strongswan_what_is_not_served_is_said",
        what_is_not_served_is_said,
    ),
    (
        "strongswan_keys_agree_and_are_in_no_log",
        keys_agree_and_are_in_no_log,
    ),
];

/// Geneve flows, and nothing of it is in clear.
pub(crate) fn flows(net: &Negotiated) -> Result<()> {
    take_counts(&net.lab.underlay)?;
    let ping = load::ping(&net.lab, 50)?;
    ensure!(ping.received == ping.sent, "{ping:?}\n{}", net.logs(0));
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(
        counts.plaintext_geneve.packets == 0 && counts.esp.packets >= 100,
        "{counts:?}"
    );
    Ok(())
}

fn negotiates() -> Result<()> {
    let connection = Connection {
        rekey: Some(3600),
        ..Connection::default()
    };
    let net = Negotiated::start(Plan::default(), Kind::Systemd, &connection)?;
    flows(&net)?;
    let [before, _] = usage(&net)?;
    let sent = load::iperf(&net.lab, 2)?;
    load::connections_end(&net.lab)?;
    let [after, packets] = usage(&net)?;
    // What iperf3 says that arrived, and some headers on top of it.
    let bytes = sent.gbit_per_s * 1e9 / 8.0 * sent.seconds;
    let counted = after - before;
    ensure!(
        counted > bytes && counted < bytes * 1.15,
        "iperf3: {bytes} bytes, swanctl --list-sas: {counted}"
    );
    // Of numbered packets, each is one in the list, too.
    let [a, b] = &net.lab.sides;
    let stream = Stream {
        from: a.into(),
        to: b.into(),
        rate: 2000,
    };
    let end = AtomicBool::new(false);
    let flows = std::thread::scope(|scope| {
        let load = scope.spawn(|| udp::run(&[stream], &end));
        std::thread::sleep(Duration::from_secs(1));
        end.store(true, Ordering::Relaxed);
        load.join()
    });
    let flows = flows.map_err(|_| anyhow!("it panicked"))??;
    let [_, listed] = usage(&net)?;
    ensure!(flows.iter().all(Flow::whole), "{flows:?}");
    #[expect(clippy::cast_precision_loss, reason = "a few thousand")]
    let sent = flows[0].sent as f64;
    ensure!(
        listed - packets == sent,
        "{sent} sent, {} listed",
        listed - packets
    );
    // One screen says who protects it, and whose keys they are.
    let text = run(&mut culvert(&net.lab.sides[0], &["status"])?)?;
    for wanted in [
        "strongSwan 5.9.8",
        "culvert",
        "192.0.2.2",
        "from us",
        "to us",
        "59 min",
    ] {
        ensure!(text.contains(wanted), "{wanted}:\n{text}");
    }
    let drops = net.lab.sides[0].datapath_status()?.drops;
    ensure!(drops.values().all(|count| *count == 0), "{drops:?}");
    Ok(())
}

/// Bytes and packets that a's charon lists as sent, over all SAs.
fn usage(net: &Negotiated) -> Result<[f64; 2]> {
    let text = net.charons[0].swanctl(&["--list-sas"])?;
    let out: Vec<&str> = text
        .lines()
        .filter(|line| line.trim().starts_with("out "))
        .collect();
    ensure!(out.len() == CHILDREN.len(), "{text}");
    let mut sums = [0.0; 2];
    for line in out {
        let words: Vec<&str> = line.split_whitespace().collect();
        for (sum, unit) in sums.iter_mut().zip(["bytes", "packets"]) {
            let at = words
                .iter()
                .position(|word| word.trim_end_matches(',') == unit);
            let number = at.and_then(|at| words.get(at - 1)).context("no number")?;
            *sum += number.parse::<f64>()?;
        }
    }
    Ok(sums)
}

fn self_signed() -> Result<()> {
    with(Kind::Systemd, Auth::SelfSigned)
}

fn ca() -> Result<()> {
    with(Kind::Systemd, Auth::Ca)
}

fn ipsec_conf() -> Result<()> {
    with(Kind::Starter, Auth::Psk)?;
    with(Kind::Starter, Auth::Ca)
}

fn with(kind: Kind, auth: Auth) -> Result<()> {
    let connection = Connection {
        auth,
        ..Connection::default()
    };
    flows(&Negotiated::start(Plan::default(), kind, &connection)?)
}

fn in_udp_over_ipv6() -> Result<()> {
    let connection = Connection {
        encapsulated: true,
        esp: "chacha20poly1305-x25519-noesn".to_owned(),
        ..Connection::default()
    };
    let plan = Plan {
        ipv6: true,
        ..Plan::default()
    };
    let net = Negotiated::start(plan, Kind::Systemd, &connection)?;
    flows_in_udp(&net)?;
    for sa in net.sas(0, Direction::Out)? {
        ensure!(
            sa.encapsulation.is_some() && !sa.esn && sa.source.is_ipv6(),
            "{sa:?}"
        );
    }
    Ok(())
}

/// a is behind a NAT whose mapping changes: b's datapath sees it, tells b's charon, and that gives its SAs the new port.
fn follows_a_peer_behind_nat() -> Result<()> {
    let connection = Connection {
        encapsulated: true,
        ..Connection::default()
    };
    let plan = Plan {
        inner_mtu: 1360,
        ..Plan::default()
    };
    let mut net = Negotiated::new(plan, Kind::Systemd, &connection, &[])?;
    crate::lives::nat(&net.lab, 40_001)?;
    net.start_all()?;
    net.initiate()?;
    let all_to = |port: u16| {
        net.sas(1, Direction::Out).is_ok_and(|sas| {
            let ports = |sa: &SaStatus| {
                sa.encapsulation
                    .is_some_and(|ports| ports.destination_port == port)
            };
            sas.len() == CHILDREN.len() && sas.iter().all(ports)
        })
    };
    for port in [40_001, 40_002] {
        crate::lives::nat(&net.lab, port)?;
        // The first packet shows b where a is now.
        let ping = load::ping(&net.lab, 50)?;
        ensure!(ping.received >= 48, "{port}: {ping:?}\n{}", net.logs(1));
        wait_for("b's charon to know it", LIMIT, || all_to(port))
            .with_context(|| format!("{port}\n{}", net.logs(1)))?;
        let ping = load::ping(&net.lab, 50)?;
        ensure!(ping.received == ping.sent, "{port}: {ping:?}");
    }
    // IKE goes there, too.
    net.charons[1].swanctl(&["--rekey", "--child", CHILDREN[0]])?;
    flows_in_udp(&net)
}

fn flows_in_udp(net: &Negotiated) -> Result<()> {
    let ping = load::ping(&net.lab, 50)?;
    ensure!(ping.received == ping.sent, "{ping:?}");
    Ok(())
}

fn a_packet_starts_it() -> Result<()> {
    let connection = Connection {
        start: [Start::Trap; 2],
        ..Connection::default()
    };
    let net = Negotiated::start(Plan::default(), Kind::Systemd, &connection)?;
    let waiting = run(&mut culvert(&net.lab.sides[0], &["status"])?)?;
    ensure!(waiting.contains("waits for a packet"), "{waiting}");
    ensure!(
        net.sas(0, Direction::Out)?.is_empty(),
        "SAs without a packet"
    );
    take_counts(&net.lab.underlay)?;
    // A hundred a second: what is lost is the time that the negotiation took.
    let ping = load::ping(&net.lab, 300)?;
    eprintln!(
        "packets until there were SAs, 10 ms each: {}",
        ping.sent - ping.received
    );
    ensure!(ping.received > 100, "{ping:?}\n{}", net.logs(0));
    flows(&net)?;
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    Ok(())
}

/// Selectors that are too narrow, and a child that is down: dropped, counted, and `status` says what is missing.
fn what_is_missing_is_named() -> Result<()> {
    let net = Negotiated::start(Plan::default(), Kind::Systemd, &Connection::default())?;
    flows(&net)?;
    net.charons[0].swanctl(&["--terminate", "--child", CHILDREN[0]])?;
    wait_for("the child to be gone", LIMIT, || {
        net.sas(0, Direction::Out).is_ok_and(|sas| sas.len() == 1)
    })?;
    take_counts(&net.lab.underlay)?;
    let ping = load::ping(&net.lab, 20)?;
    ensure!(ping.received == 0, "{ping:?}");
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    let side = &net.lab.sides[0];
    let status = side.datapath_status()?;
    ensure!(
        status.drops["no_policy"] + status.drops["no_sa"] >= 20,
        "{:?}",
        status.drops
    );
    let output = culvert(side, &["status"])?.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.contains("Geneve from 192.0.2.1 to 192.0.2.2 is blocked"),
        "{text}"
    );
    // All of it down, and no trap: still nothing in clear, until somebody says so.
    net.charons[0].swanctl(&["--terminate", "--ike", "peer"])?;
    wait_for("the peer to be held", LIMIT, || {
        side.keymgr_status()
            .is_ok_and(|status| status.held.len() == 1)
    })?;
    // Longer than a trap that is taken out would be waited for.
    std::thread::sleep(Duration::from_secs(6));
    let ping = load::ping(&net.lab, 10)?;
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(
        ping.received == 0 && counts.plaintext_geneve.packets == 0,
        "{ping:?} {counts:?}"
    );
    let text = run(&mut culvert(side, &["release", "192.0.2.2"])?)?;
    ensure!(text.contains("released"), "{text}");
    run(&mut culvert(&net.lab.sides[1], &["release", "--all"])?)?;
    let ping = load::ping(&net.lab, 10)?;
    ensure!(ping.received == 10, "{ping:?}");
    Ok(())
}

fn what_is_not_served_is_said() -> Result<()> {
    let connection = Connection {
        esp: "aes128-sha256-x25519".to_owned(),
        ..Connection::default()
    };
    let mut net = Negotiated::new(Plan::default(), Kind::Systemd, &connection, &[])?;
    let log = |net: &Negotiated, number: usize, name: &str| {
        std::fs::read_to_string(net.lab.sides[number].folder.join(name)).unwrap_or_default()
    };
    // Without a key manager: charon starts, and says why it cannot serve.
    net.charons[0].start(&net.lab.home)?;
    net.charons[1].start(&net.lab.home)?;
    let _ = net.charons[0].initiate_child(CHILDREN[0]);
    let text = log(&net, 0, "charon.log");
    ensure!(text.contains("culvert-keymgr is not reachable"), "{text}");
    ensure!(text.contains("is it running"), "{text}");
    let output = culvert(&net.lab.sides[0], &["status"])?.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(text.contains("culvert-keymgr is not running"), "{text}");

    // Without a datapath.
    for number in 0..2 {
        net.lab.start_keymgr_without_keys(number)?;
        net.wait_for_session(number)?;
    }
    // Longer than a datapath is waited for that is being started again.
    std::thread::sleep(Duration::from_millis(2500));
    let refused = net.charons[0].initiate_child(CHILDREN[0]);
    ensure!(refused.is_err(), "a cipher that is not served");
    // The responder installs first, and refuses.
    let text = log(&net, 1, "charon.log");
    ensure!(text.contains("AES_CBC is not served by Culvert"), "{text}");
    let output = culvert(&net.lab.sides[1], &["status"])?.output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        text.contains("AES_CBC is not served") && text.contains("culvert-datapath is not running"),
        "{text}"
    );
    let served = Connection::default();
    for charon in &net.charons {
        charon.configure(&served, net.lab.outer(), None)?;
        charon.load()?;
    }
    ensure!(net.charons[0].initiate_child(CHILDREN[0]).is_err());
    let text = log(&net, 1, "charon.log");
    ensure!(text.contains("the datapath does not take it"), "{text}");

    // With all of it.
    for number in 0..2 {
        net.lab.start_datapath(number)?;
        net.lab.wait_for_protection(number)?;
    }
    net.initiate()?;
    flows(&net)
}

/// Keys as charon logs them at its highest level, which nobody should use but to see what is here: those of both ends are
/// the same, and none is in what Culvert's programs log at theirs.
fn keys_agree_and_are_in_no_log() -> Result<()> {
    let mut net = Negotiated::new(
        Plan::default(),
        Kind::Systemd,
        &Connection::default(),
        &[("chd", 4), ("knl", 4)],
    )?;
    net.lab.log_level("trace");
    net.start_all()?;
    net.initiate()?;
    flows(&net)?;
    let keys = |number: usize| -> Result<Vec<String>> {
        let text = std::fs::read_to_string(net.charons[number].log())?;
        let mut keys = dumped_keys(&text);
        keys.sort();
        Ok(keys)
    };
    let [a, b] = [keys(0)?, keys(1)?];
    // Of each child one a direction, with the salt.
    ensure!(
        a.len() == 2 * CHILDREN.len() && a[0].len() == 72,
        "{} keys",
        a.len()
    );
    ensure!(a == b, "the two ends have different keys");
    for side in &net.lab.sides {
        for name in ["keymgr.log", "datapath.log"] {
            let text = std::fs::read_to_string(side.folder.join(name))?.to_lowercase();
            let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
            for key in &a {
                // Any part of a key that would help, in hex or as a list of numbers.
                let bytes: Vec<String> = (0..8)
                    .filter_map(|at| u8::from_str_radix(&key[2 * at..2 * at + 2], 16).ok())
                    .map(|byte| byte.to_string())
                    .collect();
                ensure!(!digits.contains(&key[..16]), "a key is in {name}");
                ensure!(!text.contains(&bytes.join(", ")), "a key is in {name}");
            }
        }
    }
    ensure!(
        net.lab.sides[0]
            .datapath_status()?
            .policies
            .iter()
            .all(|policy| matches!(
                &policy.action,
                Action::Protect {
                    outbound: Some(_),
                    ..
                }
            )),
        "not protected"
    );
    Ok(())
}

/// The keys of ESP in a log of charon's: `encryption … key => 36 bytes @ …`, then lines of bytes in hex.
fn dumped_keys(log: &str) -> Vec<String> {
    let mut keys = Vec::new();
    let mut lines = log.lines();
    while let Some(line) = lines.next() {
        if !(line.contains("[CHD]") && line.contains("encryption") && line.contains(" key => ")) {
            continue;
        }
        let count: usize = line
            .split_once(" key => ")
            .and_then(|(_, rest)| rest.split(' ').next()?.parse().ok())
            .unwrap_or(0);
        let mut key = String::new();
        for line in lines.by_ref().take(count.div_ceil(16)) {
            // 12:00:00.000 15[CHD]    0: 5E B6 …  ..
            let (_, bytes) = line.rsplit_once(": ").unwrap_or(("", line));
            let pairs = bytes.split(' ').take_while(|pair| pair.len() == 2);
            key.extend(pairs.take(16));
        }
        key.truncate(2 * count);
        keys.push(key.to_lowercase());
    }
    keys
}

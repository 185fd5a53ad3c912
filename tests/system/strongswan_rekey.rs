//! Rekeying under load: no packet lost, none accepted twice.

use std::collections::HashSet;
use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use culvert_proto::sa::Direction;
use culvert_tests::charon::Kind;
use culvert_tests::ike::{CHILDREN, Connection};
use culvert_tests::lab::{Plan, WIRE};
use culvert_tests::negotiated::{LIMIT, Negotiated, protected};
use culvert_tests::netns::wait_for;
use culvert_tests::udp::{self, Flow, Stream};
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("strongswan_rekey_from_each_side_and_both", from_each_side),
    (
        "strongswan_rekey_by_packets_and_bytes",
        by_packets_and_bytes,
    ),
    ("strongswan_rekey_every_two_seconds", every_two_seconds),
    ("strongswan_two_hundred_peers", two_hundred_peers),
];

/// Numbered packets both ways while `work` goes on.
fn during(net: &Negotiated, rate: u32, work: impl FnOnce() -> Result<()>) -> Result<Vec<Flow>> {
    let [a, b] = &net.lab.sides;
    let streams = [
        Stream {
            from: a.into(),
            to: b.into(),
            rate,
        },
        Stream {
            from: b.into(),
            to: a.into(),
            rate: rate / 10,
        },
    ];
    let end = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let load = scope.spawn(|| udp::run(&streams, &end));
        let result = work();
        end.store(true, Ordering::Relaxed);
        let flows = load.join().map_err(|_| anyhow!("it panicked"))??;
        result.map(|()| flows)
    })
}

/// Nothing was lost, nothing dropped, nothing in clear.
fn nothing_lost(net: &Negotiated, flows: &[Flow]) -> Result<()> {
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    for side in &net.lab.sides {
        let drops: Vec<_> = side.datapath_status()?.drops.into_iter().collect();
        let drops: Vec<_> = drops.iter().filter(|(_, count)| *count > 0).collect();
        ensure!(drops.is_empty(), "{drops:?} {flows:?}");
    }
    ensure!(flows.iter().all(Flow::whole), "{flows:?}");
    Ok(())
}

fn spis(net: &Negotiated) -> Result<HashSet<u32>> {
    let sas = net.sas(0, Direction::Out)?;
    Ok(sas.iter().map(|sa| sa.spi.get()).collect())
}

fn from_each_side() -> Result<()> {
    let net = Negotiated::start(Plan::default(), Kind::Systemd, &Connection::default())?;
    take_counts(&net.lab.underlay)?;
    let flows = during(&net, 5000, || {
        for sides in [&[0][..], &[1], &[0, 1]] {
            let before = spis(&net)?;
            std::thread::scope(|scope| {
                for side in sides {
                    let charon = &net.charons[*side];
                    for child in CHILDREN {
                        // At once, the answers come in any order.
                        scope.spawn(move || charon.swanctl(&["--rekey", "--child", child]));
                    }
                }
            });
            wait_for("other SAs", LIMIT, || {
                spis(&net).is_ok_and(|now| {
                    now.len() >= CHILDREN.len() && now.iter().all(|spi| !before.contains(spi))
                })
            })
            .with_context(|| net.logs(0))?;
        }
        Ok(())
    })?;
    nothing_lost(&net, &flows)
}

/// Limits that the datapath counts: the soft one has charon rekey, before the hard one stops anything.
fn by_packets_and_bytes() -> Result<()> {
    for unit in ["packets", "bytes"] {
        let [soft, hard] = if unit == "packets" {
            [2000, 8000]
        } else {
            [600_000, 2_400_000]
        };
        let connection = Connection {
            more: vec![
                (format!("rekey_{unit}"), soft.to_string()),
                (format!("life_{unit}"), hard.to_string()),
                (format!("rand_{unit}"), "0".to_owned()),
            ],
            ..Connection::default()
        };
        let net = Negotiated::start(Plan::default(), Kind::Systemd, &connection)?;
        take_counts(&net.lab.underlay)?;
        let mut seen = HashSet::new();
        let flows = during(&net, 2000, || {
            wait_for("four rekeyings", LIMIT, || {
                seen.extend(spis(&net).unwrap_or_default());
                seen.len() >= CHILDREN.len() + 4
            })
            .with_context(|| net.logs(0))
        })?;
        nothing_lost(&net, &flows).context(unit)?;
    }
    Ok(())
}

fn every_two_seconds() -> Result<()> {
    let connection = Connection {
        rekey: Some(2),
        life: Some(60),
        ..Connection::default()
    };
    let net = Negotiated::start(Plan::default(), Kind::Systemd, &connection)?;
    take_counts(&net.lab.underlay)?;
    // A minute, where there is time for it.
    let seconds = if crate::every_case() { 60 } else { 15 };
    let mut seen = HashSet::new();
    let flows = during(&net, 20_000, || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds) {
            seen.extend(spis(&net)?);
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    eprintln!("{} outbound SAs, {flows:?}", seen.len());
    // Two children; a rekeying takes a moment, and who begins it may change.
    ensure!(
        seen.len() as u64 > seconds * 2 / 3,
        "only {} outbound SAs",
        seen.len()
    );
    nothing_lost(&net, &flows)
}

/// Two hundred peers, each with an IKE SA of its own: the first packet to each starts the negotiation.
fn two_hundred_peers() -> Result<()> {
    const PEERS: usize = 200;
    let networks = ["198.51.100", "203.0.113"];
    let mut net = Negotiated::new(Plan::default(), Kind::Systemd, &Connection::default(), &[])?;
    for number in 0..2 {
        let [own, other] = [networks[number], networks[1 - number]];
        let namespace = &net.lab.sides[number].namespace;
        for host in 1..=PEERS {
            namespace.ip(&format!("address add {own}.{host}/32 dev {WIRE}"))?;
        }
        let gateway = net.lab.outer()[1 - number];
        namespace.ip(&format!("route add {other}.0/24 via {gateway}"))?;
        let start = ["trap", "none"][number];
        let text = many(PEERS, own, other, start);
        net.worlds[number].write("/etc/swanctl/conf.d/lab.conf", &text)?;
        net.start_culvert(number)?;
    }
    for number in 0..2 {
        net.start_charon(number)?;
    }
    take_counts(&net.lab.underlay)?;
    let start = Instant::now();
    let knock = |host: usize| {
        let address = |network: &str| format!("{network}.{host}");
        net.lab.sides[0].namespace.within(|| {
            let socket = UdpSocket::bind((address(networks[0]), 50_000))?;
            socket.send_to(b"Geneve?", (address(networks[1]), 6081))?;
            Ok(())
        })
    };
    let arrived = || -> Result<u64> {
        let sas = net.sas(1, Direction::In)?;
        Ok(sas.iter().map(|sa| sa.packets.min(1)).sum())
    };
    // As a sender would that gets no answer.
    let (mut first, mut knocked) = (None, Instant::now() - Duration::from_secs(1));
    wait_for("a packet to each peer", Duration::from_secs(90), || {
        if knocked.elapsed() >= Duration::from_secs(1) {
            let _ = (1..=PEERS).try_for_each(knock);
            knocked = Instant::now();
        }
        let arrived = arrived().unwrap_or_default();
        if arrived > 0 {
            first.get_or_insert_with(|| start.elapsed());
        }
        arrived == PEERS as u64
    })
    .with_context(|| net.logs(0))?;
    let took = start.elapsed();
    for side in &net.lab.sides {
        ensure!(protected(side)? == PEERS, "{} of {PEERS}", protected(side)?);
    }
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    let pid = net.lab.keymgr_pid(0).context("no key manager")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status.lines().find(|line| line.starts_with("VmRSS"));
    eprintln!(
        "{PEERS} peers: first packet after {first:?}, one to each after {took:?}; key manager: {}",
        memory.unwrap_or("?")
    );
    Ok(())
}

/// As many connections between two networks, host by host.
fn many(peers: usize, own: &str, other: &str, start: &str) -> String {
    let connections: String = (1..=peers)
        .map(|host| {
            let [local, remote] = [own, other].map(|network| format!("{network}.{host}"));
            format!(
                "  peer-{host} {{\n    version = 2\n    local_addrs = {local}\n    remote_addrs = {remote}\n    \
                 proposals = aes256gcm16-prfsha256-x25519\n    local {{\n      auth = psk\n      id = {local}\n    }}\n    \
                 remote {{\n      auth = psk\n      id = {remote}\n    }}\n    children {{\n      geneve-{host} {{\n        \
                 mode = transport\n        esp_proposals = aes256gcm16-x25519-esn\n        local_ts = dynamic[udp]\n        \
                 remote_ts = dynamic[udp]\n        start_action = {start}\n      }}\n    }}\n  }}\n"
            )
        })
        .collect();
    format!(
        "connections {{\n{connections}}}\nsecrets {{\n  ike-all {{\n    secret = \"the lab's, which protects nothing\"\n  }}\n}}\n"
    )
}

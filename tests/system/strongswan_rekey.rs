//! Rekeying under load: no packet lost, none accepted twice.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use culvert_proto::sa::Direction;
use culvert_tests::charon::Kind;
use culvert_tests::ike::{CHILDREN, Connection, Start};
use culvert_tests::lab::Plan;
use culvert_tests::load;
use culvert_tests::negotiated::{LIMIT, Negotiated, protected};
use culvert_tests::netns::wait_for;
use culvert_tests::udp::{self, Flow, Stream};
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("strongswan_rekey_from_each_side_and_both", from_each_side),
    ("strongswan_rekey_every_two_seconds", every_two_seconds),
    ("strongswan_two_hundred_peers", two_hundred_peers),
];

/// Numbered packets both ways while `work` goes on.
fn during(net: &Negotiated, rate: u32, work: impl FnOnce() -> Result<()>) -> Result<Vec<Flow>> {
    let [a, b] = &net.lab.sides;
    let streams = [
        Stream {
            from: a,
            to: b,
            rate,
        },
        Stream {
            from: b,
            to: a,
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

fn every_two_seconds() -> Result<()> {
    let connection = Connection {
        rekey: Some(2),
        life: Some(60),
        more: "rand_time = 0\n".to_owned(),
        ..Connection::default()
    };
    let net = Negotiated::start(Plan::default(), Kind::Systemd, &connection)?;
    take_counts(&net.lab.underlay)?;
    let mut seen = HashSet::new();
    let flows = during(&net, 20_000, || {
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(60) {
            seen.extend(spis(&net)?);
            std::thread::sleep(Duration::from_millis(200));
        }
        Ok(())
    })?;
    eprintln!("{} outbound SAs, {flows:?}", seen.len());
    // Two children; a rekeying takes a moment, and who begins it may change.
    ensure!(seen.len() > 40, "only {} outbound SAs", seen.len());
    nothing_lost(&net, &flows)
}

/// Two hundred children, each for a peer of its own on the network behind b.
fn two_hundred_peers() -> Result<()> {
    const PEERS: usize = 200;
    let mut net = Negotiated::new(
        Plan::default(),
        Kind::Systemd,
        &Connection::default(),
        "",
    )?;
    for number in 0..2 {
        let [own, other] = [number, 1 - number].map(|side| format!("198.51.{}", 100 + side));
        for host in 1..=PEERS {
            let namespace = &net.lab.sides[number].namespace;
            namespace.ip(&format!("address add {own}.{host}/32 dev lo"))?;
        }
        net.worlds[number].write("/etc/swanctl/conf.d/lab.conf", &many(PEERS, &own, &other, net.lab.outer(), number))?;
        net.start_culvert(number)?;
    }
    for number in 0..2 {
        net.start_charon(number)?;
    }
    let start = Instant::now();
    let all = || net.lab.sides.iter().all(|side| protected(side).is_ok_and(|count| count == PEERS));
    wait_for("200 children", Duration::from_secs(60), all).with_context(|| net.logs(0))?;
    let took = start.elapsed();
    let pid = net.lab.keymgr_pid(0).context("no key manager")?;
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let memory = status.lines().find(|line| line.starts_with("VmRSS"));
    eprintln!("{PEERS} children in {took:?}; key manager: {}", memory.unwrap_or("?"));
    Ok(())
}

//! Two charons whose keys the kernel serves where and while Culvert cannot.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_proto::policy::Place;
use culvert_proto::sa::{Action, Spi};
use culvert_tests::charon::Kind;
use culvert_tests::ike::{CHILDREN, Connection};
use culvert_tests::load::ping_between;
use culvert_tests::negotiated::Negotiated;
use culvert_tests::netns::wait_for;
use culvert_tests::wire::take_counts;

use crate::fallback::plan;

/// Longest time until something has happened, on emulated CPUs.
const LIMIT: Duration = Duration::from_mins(1);

fn served_by(net: &Negotiated, number: usize, place: Place) -> Result<()> {
    let side = &net.lab.sides[number];
    let is = || {
        side.keymgr_status().is_ok_and(|status| {
            status.tunnels.len() == CHILDREN.len()
                && status.tunnels.iter().all(|tunnel| tunnel.place == place)
        })
    };
    wait_for(place.name(), LIMIT, is).with_context(|| net.logs(number))
}

fn pings(net: &Negotiated) -> Result<()> {
    let [a, b] = &net.lab.sides;
    for (from, to) in [(a, b), (b, a)] {
        let ping = ping_between(from, to, 3, 10)?;
        ensure!(ping.received == 3, "{ping:?}");
    }
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(
        counts.plaintext_geneve.packets == 0 && counts.esp.packets >= 12,
        "{counts:?}"
    );
    Ok(())
}

/// A proposal that Culvert does not serve is the kernel's, with charon none the wiser.
pub(crate) fn what_culvert_lacks_is_the_kernels() -> Result<()> {
    let connection = Connection {
        esp: "aes256-sha256-x25519-esn".to_owned(),
        ..Connection::default()
    };
    let mut net = Negotiated::new(plan(), Kind::Systemd, &connection, &[])?;
    net.start_all()?;
    take_counts(&net.lab.underlay)?;
    for child in CHILDREN {
        net.charons[0].initiate_child(child)?;
    }
    for number in 0..2 {
        served_by(&net, number, Place::Kernel)?;
    }
    pings(&net)?;
    let status = net.lab.sides[0].keymgr_status()?;
    ensure!(
        status.kernel_sas.len() == 2 * CHILDREN.len()
            && status
                .kernel_sas
                .iter()
                .all(|sa| sa.algorithm.contains("aes"))
            && status.tunnels.iter().all(|tunnel| {
                tunnel
                    .why
                    .as_ref()
                    .is_some_and(|why| why.contains("AES_CBC"))
            }),
        "{status:?}"
    );
    Ok(())
}

/// The datapath is away while children are rekeyed, and comes back.
pub(crate) fn rekeyed_in_the_kernel() -> Result<()> {
    let mut net = Negotiated::start(plan(), Kind::Systemd, &Connection::default())?;
    take_counts(&net.lab.underlay)?;
    pings(&net)?;
    net.lab.kill_datapath(0)?;
    served_by(&net, 0, Place::Kernel)?;
    pings(&net)?;
    let spis = || -> Result<Vec<_>> {
        let sas = net.lab.sides[0].keymgr_status()?.kernel_sas;
        Ok(sas.iter().map(|sa| sa.spi).collect())
    };
    let before = spis()?;
    net.charons[0].swanctl(&["--rekey", "--child", CHILDREN[0]])?;
    let began = Instant::now();
    wait_for("new SAs", LIMIT, || {
        spis().is_ok_and(|now| now.iter().any(|spi| !before.contains(spi)))
    })
    .with_context(|| net.logs(0))?;
    println!("rekeyed after {:?}", began.elapsed());
    pings(&net)?;
    let with_kernel = spis()?;
    net.lab.start_datapath(0)?;
    served_by(&net, 0, Place::Culvert)?;
    pings(&net)?;
    // What both have sealed under is not used for long.
    let before = spis_of(&net)?;
    ensure!(!before.is_empty(), "no SA");
    wait_for(
        "other SAs than those that were with the kernel",
        LIMIT,
        || spis_of(&net).is_ok_and(|now| now.iter().all(|spi| !with_kernel.contains(spi))),
    )
    .with_context(|| net.logs(0))?;
    pings(&net)
}

/// The outbound SAs that policies name.
fn spis_of(net: &Negotiated) -> Result<Vec<Spi>> {
    let policies = net.lab.sides[0].datapath_status()?.policies;
    let named = policies.iter().filter_map(|policy| match &policy.action {
        Action::Protect { outbound, .. } => outbound.map(|sa| sa.spi),
        _ => None,
    });
    Ok(named.collect())
}

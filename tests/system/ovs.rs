//! Open vSwitch as it is, with its tunnels, its userspace datapath and its ovs-monitor-ipsec: Culvert seals what it sends.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::certificates::Certificates;
use culvert_tests::ike::Auth;
use culvert_tests::lab::culvert;
use culvert_tests::load;
use culvert_tests::negotiated::LIMIT;
use culvert_tests::netns::{run, wait_for};
use culvert_tests::switched::Switched;
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("ovs_psk_then_self_signed_then_ca", by_each_way),
    ("ovs_refresh_and_restart_do_not_hurt", refresh_and_restart),
    ("ovs_without_ipsec_goes_in_clear_again", without_ipsec),
];

/// Geneve flows between ports of br-int, and nothing of it is in clear.
fn flows(net: &Switched) -> Result<()> {
    load::wait_for_reply(&net.lab, LIMIT).with_context(|| story(net))?;
    take_counts(&net.lab.underlay)?;
    nothing_lost(net, 100)?;
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(
        counts.plaintext_geneve.packets == 0 && counts.esp.packets >= 150,
        "{counts:?}"
    );
    Ok(())
}

/// Culvert drops nothing of some pings, a hundred a second. Open vSwitch's userspace datapath may, when the machine is busy.
fn nothing_lost(net: &Switched, count: u32) -> Result<()> {
    let before = drops(net)?;
    let ping = load::ping(&net.lab, count)?;
    let after = drops(net)?;
    ensure!(
        before == after && ping.received >= count - count / 10,
        "{ping:?}\n{before:?}\n{}",
        story(net)
    );
    Ok(())
}

/// What both sides have dropped.
fn drops(net: &Switched) -> Result<Vec<(String, u64)>> {
    let mut drops = Vec::new();
    for side in &net.lab.sides {
        drops.extend(side.datapath_status()?.drops);
    }
    drops.retain(|(_, count)| *count > 0);
    Ok(drops)
}

/// What both sides have dropped and logged.
fn story(net: &Switched) -> String {
    format!("{:?}\n{}\n{}", drops(net), net.logs(0), net.logs(1))
}

fn by_each_way() -> Result<()> {
    let net = Switched::start(Auth::Psk)?;
    flows(&net)?;
    let sent = load::iperf(&net.lab, 2)?;
    eprintln!("OVS, sealed: {:.2} Gbit/s", sent.gbit_per_s);
    let text = run(&mut culvert(&net.lab.sides[0], &["status"])?)?;
    for wanted in [
        "strongSwan 5.9.8",
        "192.0.2.2",
        "from us",
        "to us",
        "culvert",
    ] {
        ensure!(text.contains(wanted), "{wanted}:\n{text}");
    }
    let folder = net.lab.home.path().join("certificates");
    for (version, auth) in (2..).zip([Auth::SelfSigned, Auth::Ca]) {
        let certificates = Certificates::new(&folder, auth == Auth::Ca)?;
        take_counts(&net.lab.underlay)?;
        net.authenticate(version, auth, Some(&certificates))?;
        let counts = take_counts(&net.lab.underlay)?;
        ensure!(counts.plaintext_geneve.packets == 0, "{auth:?}: {counts:?}");
        flows(&net).with_context(|| format!("{auth:?}"))?;
    }
    Ok(())
}

/// ovs-monitor-ipsec looks at strongSwan's connections again whenever something changes in the database, and is known to
/// misread some.
fn refresh_and_restart() -> Result<()> {
    let mut net = Switched::start(Auth::Psk)?;
    flows(&net)?;
    take_counts(&net.lab.underlay)?;
    for ovs in &net.switches {
        ovs.appctl("-t ovs-monitor-ipsec refresh")?;
    }
    nothing_lost(&net, 500)?;
    for number in 0..2 {
        net.restart_ipsec(number)?;
    }
    let counts = take_counts(&net.lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    flows(&net)
}

/// A tunnel that loses its options is to go in clear, on both sides, by nobody's word but OVS's.
fn without_ipsec() -> Result<()> {
    let net = Switched::start(Auth::Psk)?;
    flows(&net)?;
    for ovs in &net.switches {
        ovs.vsctl("remove interface gnv0 options psk")?;
    }
    let clear = || load::ping(&net.lab, 1).is_ok_and(|ping| ping.received == 1);
    take_counts(&net.lab.underlay)?;
    wait_for("Geneve in clear", Duration::from_secs(40), || {
        clear()
            && take_counts(&net.lab.underlay)
                .is_ok_and(|counts| counts.plaintext_geneve.packets >= 2)
    })
    .with_context(|| story(&net))?;
    let status = net.lab.sides[0].keymgr_status()?;
    ensure!(status.held.is_empty() && status.policies == 0, "{status:?}");
    Ok(())
}

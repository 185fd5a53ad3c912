//! The daemons that Culvert works with, as Debian has them, on the lab's hypervisors.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::certificates::Certificates;
use culvert_tests::charon::{Charon, Kind, LEVELS};
use culvert_tests::hypervisor::{World, parts};
use culvert_tests::ike::{Auth, Connection};
use culvert_tests::lab::{Lab, Plan};
use culvert_tests::load::ping_between;
use culvert_tests::netns::wait_for;
use culvert_tests::ovs::{CONNECTIONS, Ovs};
use culvert_tests::switched::Switched;
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    (
        "charon_starts_in_its_own_world",
        charon_starts_in_its_own_world,
    ),
    ("charon_knows_its_peer", charon_knows_its_peer),
    ("starter_starts_charon", starter_starts_charon),
    ("ovs_carries_geneve", ovs_carries_geneve),
    (
        "ovs_monitor_ipsec_tells_charon",
        ovs_monitor_ipsec_tells_charon,
    ),
];

/// Why they are not to be had, if so. Fetches them.
pub(crate) fn missing() -> Option<String> {
    parts().err()?.lacking()
}

fn worlds(lab: &Lab) -> Result<[World; 2]> {
    let parts = parts()?;
    let side = |number| World::new(lab, number, &parts, None);
    Ok([side(0)?, side(1)?])
}

fn charons(worlds: &[World; 2], kind: Kind) -> Result<[Charon; 2]> {
    let side = |number: usize| Charon::new(&worlds[number], number, kind, LEVELS);
    Ok([side(0)?, side(1)?])
}

fn charon_starts_in_its_own_world() -> Result<()> {
    let lab = Lab::new(Plan::default())?;
    let mut charons = charons(&worlds(&lab)?, Kind::Systemd)?;
    for charon in &mut charons {
        charon.configure(&Connection::default(), lab.outer(), None)?;
        charon.start(&lab.home)?;
    }
    let pids = [charons[0].pid()?, charons[1].pid()?];
    ensure!(pids[0] != pids[1]);
    for charon in &mut charons {
        let stats = charon.swanctl(&["--stats"])?;
        ensure!(stats.contains("uptime"), "{stats}");
        let connections = charon.swanctl(&["--list-conns"])?;
        ensure!(
            connections.contains("to-peer") && connections.contains("from-peer"),
            "{connections}"
        );
        charon.kill()?;
        charon.start(&lab.home)?;
        charon.stop()?;
    }
    // It is this machine's /etc that must not have changed.
    ensure!(!std::path::Path::new("/etc/swanctl/conf.d/lab.conf").exists());
    Ok(())
}

fn charon_knows_its_peer() -> Result<()> {
    let lab = Lab::new(Plan::default())?;
    let mut charons = charons(&worlds(&lab)?, Kind::Systemd)?;
    for charon in &mut charons {
        charon.start(&lab.home)?;
    }
    for auth in [Auth::Psk, Auth::SelfSigned, Auth::Ca] {
        let connection = Connection {
            auth,
            children: false,
            ..Connection::default()
        };
        let folder = lab.home.path().join("certificates");
        let certificates = match auth {
            Auth::Psk => None,
            _ => Some(Certificates::new(&folder, auth == Auth::Ca)?),
        };
        for charon in &charons {
            charon.configure(&connection, lab.outer(), certificates.as_ref())?;
            charon.swanctl(&["--load-all", "--clear"])?;
        }
        charons[0].initiate().with_context(|| format!("{auth:?}"))?;
        for charon in &charons {
            let sas = charon.swanctl(&["--list-sas"])?;
            ensure!(sas.contains("ESTABLISHED"), "{auth:?}: {sas}");
        }
        charons[0].swanctl(&["--terminate", "--ike", "peer"])?;
    }
    Ok(())
}

fn starter_starts_charon() -> Result<()> {
    let lab = Lab::new(Plan::default())?;
    let mut charons = charons(&worlds(&lab)?, Kind::Starter)?;
    for charon in &mut charons {
        charon.configure(&Connection::default(), lab.outer(), None)?;
        charon.start(&lab.home)?;
        let status = charon.ipsec(&["statusall"])?;
        ensure!(
            status.contains("to-peer") && status.contains("from-peer"),
            "{status}"
        );
    }
    // Without a kernel that has ESP, the children fail, but the IKE SA is there.
    let up = charons[0].initiate_child("to-peer");
    let status = charons[1].ipsec(&["status"])?;
    ensure!(status.contains("ESTABLISHED"), "{status}{up:?}");
    for charon in &mut charons {
        charon.kill()?;
        charon.start(&lab.home)?;
        charon.stop()?;
    }
    Ok(())
}

/// Open vSwitch on both, with the "VMs" on its bridges and a tunnel between them.
fn switches(lab: &Lab, worlds: &[World; 2]) -> Result<[Ovs; 2]> {
    let side = |number: usize| -> Result<Ovs> {
        let ovs = Ovs::start(&lab.home, &worlds[number], number)?;
        ovs.connect(lab)?;
        ovs.add_tunnel(lab, "")?;
        Ok(ovs)
    };
    Ok([side(0)?, side(1)?])
}

/// Pings between the "VMs"; first once, as Open vSwitch asks who the peer is when it has something to send.
fn ping(lab: &Lab) -> Result<()> {
    let [a, b] = &lab.sides;
    wait_for("the tunnel", Duration::from_secs(10), || {
        ping_between(a, b, 1, 1).is_ok_and(|ping| ping.received == 1)
    })?;
    take_counts(&lab.underlay)?;
    let ping = ping_between(a, b, 50, 2)?;
    // Its userspace datapath loses some on a busy machine.
    ensure!(ping.received >= 45, "{ping:?}");
    Ok(())
}

fn ovs_carries_geneve() -> Result<()> {
    for ipv6 in [false, true] {
        let mut net = Switched::new(Plan {
            ipv6,
            ..Plan::default()
        })?;
        let lab = &mut net.lab;
        ping(lab)?;
        let clear = take_counts(&lab.underlay)?;
        ensure!(
            clear.plaintext_geneve.packets >= 90 && clear.esp.packets == 0,
            "{clear:?}"
        );
        lab.start_culvert()?;
        ping(lab)?;
        let sealed = take_counts(&lab.underlay)?;
        ensure!(
            sealed.esp.packets >= 90 && sealed.plaintext_geneve.packets == 0,
            "{sealed:?}"
        );
        // Open vSwitch must find the host port again.
        lab.kill_datapath(1)?;
        lab.start_datapath(1)?;
        lab.wait_for_protection(1)?;
        ping(lab)?;
    }
    Ok(())
}

/// By the database only, as OVN's administrators do it; what strongSwan makes of it is seen at its IKE SA.
fn ovs_monitor_ipsec_tells_charon() -> Result<()> {
    let lab = Lab::new(Plan {
        tunnel: false,
        ..Plan::default()
    })?;
    let worlds = worlds(&lab)?;
    let charons = charons(&worlds, Kind::Starter)?;
    let mut switches = switches(&lab, &worlds)?;
    for ovs in &mut switches {
        ovs.authenticate(Auth::Psk, None)?;
        ovs.start_ipsec(&lab.home)?;
    }
    let folder = lab.home.path().join("certificates");
    for (version, auth) in (1..).zip([Auth::Psk, Auth::SelfSigned, Auth::Ca]) {
        if version > 1 {
            let certificates = Certificates::new(&folder, auth == Auth::Ca)?;
            for ovs in &switches {
                ovs.authenticate(auth, Some(&certificates))?;
            }
        }
        for ovs in &switches {
            ovs.wait_for_ipsec(version)?;
        }
        // Without a kernel that has ESP, the children fail, but the IKE SA is there.
        let up = charons[0].initiate_child(&format!("{}-{version}", CONNECTIONS[1]));
        for charon in &charons {
            let status = charon.ipsec(&["status"])?;
            ensure!(status.contains("ESTABLISHED"), "{auth:?}: {status}{up:?}");
        }
    }
    Ok(())
}

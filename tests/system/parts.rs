//! The daemons that Culvert works with, as Debian has them, on the lab's hypervisors.

use anyhow::{Context, Result, ensure};
use culvert_tests::certificates::Certificates;
use culvert_tests::charon::{Charon, Kind};
use culvert_tests::hypervisor::{World, parts};
use culvert_tests::ike::{Auth, Connection};
use culvert_tests::lab::{Lab, Plan};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    (
        "charon_starts_in_its_own_world",
        charon_starts_in_its_own_world,
    ),
    ("charon_knows_its_peer", charon_knows_its_peer),
    ("starter_starts_charon", starter_starts_charon),
];

/// Why they are not to be had, if so. Fetches them.
pub(crate) fn missing() -> Option<String> {
    parts().err().map(|why| format!("{why:#}"))
}

const LEVELS: &str = "default = 1\nknl = 2";

fn both(lab: &Lab, kind: Kind) -> Result<[Charon; 2]> {
    let parts = parts()?;
    let side = |number| Charon::new(&World::new(lab, number, &parts)?, number, kind, LEVELS);
    Ok([side(0)?, side(1)?])
}

fn charon_starts_in_its_own_world() -> Result<()> {
    let lab = Lab::new(Plan::default())?;
    let mut charons = both(&lab, Kind::Systemd)?;
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
    let mut charons = both(&lab, Kind::Systemd)?;
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
    let mut charons = both(&lab, Kind::Starter)?;
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

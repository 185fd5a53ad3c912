//! The end of a Geneve tunnel: the kernel's device, or the lab's where the kernel has none.

use std::net::IpAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use culvert_tests::geneve::{Fixture, VNI};
use culvert_tests::netns::{ip, run};

use super::Setup;

/// The device.
const DEVICE: &str = "cvbench0";
/// The other end of the lab's.
const INSIDE: &str = "cvbench0p";

/// A tunnel's end, which goes when this is dropped.
pub(super) struct Tunnel {
    fixture: Option<(Fixture, PathBuf)>,
}

impl Tunnel {
    /// Makes it.
    pub(super) fn new(setup: &Setup, folder: &Path) -> Result<Self> {
        let _ = ip(&format!("link delete {DEVICE}"));
        let [local, remote] = setup.ends();
        let mac = |number: usize| format!("02:00:00:00:02:{number:02x}");
        let own = mac(setup.number);
        let kernel = ip(&format!(
            "link add {DEVICE} address {own} type geneve id {VNI} remote {remote} dstport 6081 df set"
        ));
        let mut this = Self { fixture: None };
        if kernel.is_err() {
            let pins = folder.join("lab-bpf");
            this.fixture = Some((fixture(setup, &own, [local, remote], &pins)?, pins));
        }
        ip(&format!("link set {DEVICE} mtu {} up", setup.inner_mtu))?;
        let [inner, other] = [setup.number, 1 - setup.number].map(Setup::inner);
        ip(&format!("address add {inner}/24 dev {DEVICE}"))?;
        ip(&format!(
            "neigh add {other} lladdr {} dev {DEVICE}",
            mac(1 - setup.number)
        ))?;
        Ok(this)
    }

    /// What makes Geneve.
    pub(super) fn kind() -> &'static str {
        let probe = Command::new("unshare")
            .args([
                "--net",
                "ip",
                "link",
                "add",
                "type",
                "geneve",
                "id",
                "1",
                "remote",
                "192.0.2.1",
            ])
            .output();
        match probe {
            Ok(output) if output.status.success() => "kernel",
            _ => "fixture",
        }
    }

    /// Takes Geneve that arrives at `interface`, too.
    pub(super) fn listen_on(&mut self, interface: &str) -> Result<()> {
        match &mut self.fixture {
            Some((fixture, pins)) => fixture.decap_on(interface, pins),
            None => Ok(()),
        }
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        let _ = ip(&format!("link delete {DEVICE}"));
    }
}

/// The lab's: the same as [`culvert_tests::lab`] has.
fn fixture(setup: &Setup, mac: &str, ends: [IpAddr; 2], pins: &Path) -> Result<Fixture> {
    ip(&format!(
        "link add {DEVICE} address {mac} type veth peer name {INSIDE}"
    ))?;
    // The outer headers must fit the IP length field, too.
    ip(&format!("link set {DEVICE} gso_max_size 60000"))?;
    run(Command::new("ethtool").args(["-K", DEVICE, "gro", "on"]))?;
    ip(&format!("link set {INSIDE} mtu 9216 up"))?;
    std::fs::create_dir_all(pins)?;
    run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(pins))?;
    Fixture::new(INSIDE, &setup.wire, ends[0], ends[1], true, pins)
}

//! WireGuard in userspace: wireguard-go or boringtun. Secrets: the private keys of both sides, and their public ones.

use std::process::{Child, Command};
use std::time::Duration;

use anyhow::Result;
use culvert_tests::keys::write_private;
use culvert_tests::netns::{Home, ip, run, wait_for};

use super::Setup;
use crate::way::Way;

/// UDP port of both sides.
const PORT: u16 = 51820;

/// The program and its TUN device, which goes with it.
pub(super) struct Wireguard {
    name: &'static str,
    process: Child,
}

impl Wireguard {
    /// Starts it.
    pub(super) fn start(setup: &Setup, home: &Home) -> Result<Self> {
        // Their control sockets are in a folder that both sides may share.
        let device = format!("cvwg{}", setup.number);
        let (name, options): (_, &[&str]) = match setup.way {
            Way::WireguardGo => ("wireguard-go", &["--foreground"]),
            _ => (
                "boringtun-cli",
                &["--foreground", "--disable-drop-privileges"],
            ),
        };
        let mut command = Command::new(name);
        command.args(options).arg(&device);
        let process = home.spawn(command, &home.path().join("wireguard.log"))?;
        let this = Self { name, process };
        let socket = format!("/var/run/wireguard/{device}.sock");
        wait_for(name, Duration::from_secs(10), || {
            std::path::Path::new(&socket).exists() && ip(&format!("link show {device}")).is_ok()
        })?;
        let key = home.path().join("wireguard.key");
        write_private(&key, &setup.secrets[setup.number])?;
        let [_, remote] = setup.ends();
        let other = Setup::inner(1 - setup.number);
        run(Command::new("wg")
            .args([
                "set",
                &device,
                "listen-port",
                &PORT.to_string(),
                "private-key",
            ])
            .arg(&key)
            .args(["peer", &setup.secrets[3 - setup.number]])
            .args(["endpoint", &format!("{remote}:{PORT}")])
            .args(["allowed-ips", &format!("{other}/32")]))?;
        ip(&format!("link set {device} mtu {} up", setup.inner_mtu))?;
        let inner = Setup::inner(setup.number);
        ip(&format!("address add {inner}/24 dev {device}"))?;
        Ok(this)
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Wireguard {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

//! strongSwan's ESP in userspace: charon with its plugin kernel-libipsec. Secrets: the pre-shared key.
//!
//! It does tunnel mode only, over a TUN device, and only in UDP.

use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_tests::keys::write_private;
use culvert_tests::netns::{Home, ip, run, wait_for};

use super::Setup;

/// Its device.
const DEVICE: &str = "ipsec0";
/// The longest packets that it reads from there.
const MTU: u32 = 1400;
/// Plugins: kernel-libipsec comes before the one that it takes the place of.
const PLUGINS: &str = "random nonce openssl aes sha1 sha2 hmac kdf gcm curve25519 chapoly pem pkcs1 x509 \
                       kernel-libipsec kernel-netlink socket-default vici";

/// charon, on its own configuration.
pub(super) struct Charon {
    process: Child,
    folder: PathBuf,
    number: usize,
    mtu: u32,
}

impl Charon {
    /// Starts it, with a connection that nobody has initiated yet.
    pub(super) fn start(setup: &Setup, home: &Home) -> Result<Self> {
        let folder = home.path();
        let socket = folder.join("charon.vici");
        let settings = format!(
            "charon-systemd {{\n load = {PLUGINS}\n install_virtual_ip = no\n\
             plugins {{ vici {{ socket = unix://{} }} }}\n\
             filelog {{ log {{ path = {} }} }}\n}}\n",
            socket.display(),
            folder.join("charon.log").display()
        );
        write_private(&folder.join("strongswan.conf"), &settings)?;
        let [local, remote] = setup.ends();
        let [inner, other] = [setup.number, 1 - setup.number].map(Setup::inner);
        let proposal = match setup.cipher()? {
            "aes128gcm16" => "aes128gcm16-x25519",
            "aes256gcm16" => "aes256gcm16-x25519",
            _ => "chacha20poly1305-x25519",
        };
        let connection = format!(
            "connections {{ bench {{\n version = 2\n local_addrs = {local}\n remote_addrs = {remote}\n\
             proposals = aes256gcm16-prfsha256-x25519\n\
             local {{ auth = psk\n id = {local} }}\n remote {{ auth = psk\n id = {remote} }}\n\
             children {{ bench {{\n local_ts = {inner}/32\n remote_ts = {other}/32\n mode = tunnel\n\
             esp_proposals = {proposal}\n start_action = none\n }} }}\n}} }}\n\
             secrets {{ ike-bench {{ secret = {} }} }}\n",
            setup.secrets[0]
        );
        write_private(&folder.join("swanctl.conf"), &connection)?;
        let mut command = Command::new("charon-systemd");
        command.env("STRONGSWAN_CONF", folder.join("strongswan.conf"));
        let process = home.spawn(command, &folder.join("charon.out"))?;
        let this = Self {
            process,
            folder,
            number: setup.number,
            mtu: setup.inner_mtu.min(MTU),
        };
        // What an agent that was killed has left.
        let _ = ip(&format!("address delete {inner}/32 dev lo"));
        ip(&format!("address add {inner}/32 dev lo"))?;
        wait_for("charon", Duration::from_secs(10), || socket.exists())
            .with_context(|| this.log())?;
        run(this
            .swanctl("--load-all")
            .arg("--file")
            .arg(this.folder.join("swanctl.conf")))?;
        ip(&format!("link set {DEVICE} mtu {}", this.mtu))?;
        Ok(this)
    }

    /// Side 0 initiates, and the other one waits for it.
    pub(super) fn wait(&mut self) -> Result<()> {
        if self.number == 0 {
            run(self.swanctl("--initiate").args(["--child", "bench"]))
                .with_context(|| self.log())?;
        }
        Ok(())
    }

    fn swanctl(&self, what: &str) -> Command {
        let mut command = Command::new("swanctl");
        let uri = format!("unix://{}", self.folder.join("charon.vici").display());
        command.args([what, "--uri", &uri]);
        command.env("STRONGSWAN_CONF", self.folder.join("strongswan.conf"));
        command
    }

    fn log(&self) -> String {
        let read = |name| std::fs::read_to_string(self.folder.join(name)).unwrap_or_default();
        read("charon.log") + &read("charon.out")
    }

    pub(super) fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Charon {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
        let _ = ip(&format!(
            "address delete {}/32 dev lo",
            Setup::inner(self.number)
        ));
    }
}

//! Settings of `culvert-datapath`, from a TOML file.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use culvert_esp::Choice;
use serde::Deserialize;

/// Where the settings are, unless told otherwise.
pub const PATH: &str = "/etc/culvert/datapath.toml";

/// The file as written. [`Settings::load`] checks it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The underlay NIC.
    pub wire: String,
    /// Which kind of host port.
    #[serde(default)]
    pub host_port: HostPort,
    /// Name of the host port, which Culvert makes; the inner end of a veth pair has an `i` behind it.
    #[serde(default = "default_host_interface")]
    pub host_interface: String,
    /// Number of workers; as many as the NIC has queues, but no more than cores, unless set.
    pub workers: Option<u32>,
    /// Cores to bind the workers to, in their order; the first ones that this process may use, unless set.
    pub cores: Option<Vec<usize>>,
    /// Folder on a bpffs where programs and maps stay while the datapath is away.
    #[serde(default = "default_pins")]
    pub pins: PathBuf,
    /// XDP mode of the NIC.
    #[serde(default)]
    pub xdp: Xdp,
    /// Whether workers poll the NIC's queues themselves, instead of being interrupted by them.
    #[serde(default)]
    pub busy_poll: bool,
    /// AEAD backend, by name; `auto` is the fastest for each cipher.
    #[serde(default = "default_aead")]
    pub aead: String,
}

/// How to attach XDP.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Xdp {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// Native, or fail.
    Native,
    /// Generic, which every driver can, slowly.
    Generic,
}

/// What the host's stack gives and takes Geneve by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HostPort {
    /// A TAP where the kernel hands over superpackets of tunnels by it, else a veth pair.
    #[default]
    Auto,
    /// A veth pair, whose inner end is read by `AF_XDP`.
    Veth,
    /// A TAP.
    Tap,
}

fn default_host_interface() -> String {
    "cvhost0".to_owned()
}

fn default_pins() -> PathBuf {
    "/sys/fs/bpf/culvert".into()
}

fn default_aead() -> String {
    Choice::AUTO.to_owned()
}

impl Settings {
    /// Reads and checks the file.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "cannot read {}: it names the NIC, as in `wire = \"eth1\"`",
                path.display()
            )
        })?;
        let settings: Self =
            toml::from_str(&text).with_context(|| format!("in {}", path.display()))?;
        settings
            .check()
            .with_context(|| format!("in {}", path.display()))?;
        Ok(settings)
    }

    fn check(&self) -> Result<()> {
        ensure!(
            self.host_interface.len() <= 14 && !self.host_interface.is_empty(),
            "host_interface \"{}\": 1 to 14 bytes, as the inner end's name has one more",
            self.host_interface
        );
        ensure!(
            self.wire != self.host_interface,
            "host_interface must not be the NIC's name"
        );
        if let Some(workers) = self.workers {
            ensure!(
                (1..=64).contains(&workers),
                "workers = {workers}: from 1 to 64"
            );
        }
        if let (Some(workers), Some(cores)) = (self.workers, &self.cores) {
            ensure!(
                cores.len() >= workers as usize,
                "{workers} workers, but only {} cores given",
                cores.len()
            );
        }
        self.aead().map(|_| ())
    }

    /// The AEAD backends.
    ///
    /// # Errors
    /// This build has none of that name, or it does not work on this machine.
    pub fn aead(&self) -> Result<Choice> {
        self.aead.parse().context("aead")
    }

    /// Name of the host port's inner end.
    #[must_use]
    pub fn host_inner(&self) -> String {
        format!("{}i", self.host_interface)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings> {
        let settings: Settings = toml::from_str(text)?;
        settings.check()?;
        Ok(settings)
    }

    #[test]
    fn the_nic_is_enough() {
        let settings = parse("wire = 'eth1'").unwrap();
        assert_eq!(settings.host_port, HostPort::Auto);
        assert_eq!(settings.host_interface, "cvhost0");
        assert_eq!(settings.host_inner(), "cvhost0i");
        assert_eq!(settings.xdp, Xdp::Auto);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, wanted) in [
            ("wire = 'eth1'\nwokers = 2", "wokers"),
            ("", "wire"),
            ("wire = 'eth1'\nworkers = 0", "workers = 0"),
            ("wire = 'eth1'\nworkers = 2\ncores = [1]", "only 1 cores"),
            ("wire = 'eth1'\naead = 'rot13'", "rot13"),
            (
                "wire = 'eth1'\nhost_interface = 'a-name-of-fifteen'",
                "1 to 14",
            ),
            // As it was called before there were kinds.
            ("wire = 'eth1'\nhost_port = 'cvhost0'", "auto"),
        ] {
            let error = format!("{:#}", parse(text).unwrap_err());
            assert!(error.contains(wanted), "{error}");
        }
    }
}

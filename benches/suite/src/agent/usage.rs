//! What a machine is, and what a measurement uses up of it.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::process::Command;

use anyhow::{Context, Result};
use culvert_tests::netns::{ip, run};
use culvert_tests::record::{Host, Wire};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Hello, tunnel};
use crate::way::Way;

/// Clock ticks a second of /proc: `USER_HZ`, which Linux has fixed.
const HZ: f64 = 100.0;

/// What was used up until now; differences count.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Usage {
    /// CPU seconds by party.
    pub seconds: BTreeMap<String, f64>,
    /// CPU seconds of the whole machine that it was not idle.
    pub busy: f64,
    /// Packets that it has sealed, where it can be asked.
    pub sealed: Option<u64>,
    /// Packets that have arrived at a sink.
    pub arrived: Option<u64>,
    /// Resident memory of the datapath.
    pub datapath_mib: f64,
    /// Resident memory of the key manager.
    pub keymgr_mib: f64,
    /// Seconds from the key manager's start until the datapath had everything.
    pub filled_in: Option<f64>,
    /// Backend of each cipher.
    pub aead: BTreeMap<String, String>,
    /// XDP mode of the wire port.
    pub xdp: String,
    /// `AF_XDP` mode of the wire port.
    pub af_xdp: String,
    /// Packets dropped, by reason.
    pub drops: BTreeMap<String, u64>,
}

impl Usage {
    /// Of the machine, without any party.
    pub(crate) fn of_machine() -> Result<Self> {
        let text = fs::read_to_string("/proc/stat")?;
        let ticks: Vec<f64> = text
            .lines()
            .next()
            .unwrap_or_default()
            .split_whitespace()
            .skip(1)
            .filter_map(|word| word.parse().ok())
            .collect();
        // user nice system idle iowait irq softirq; not steal, which is others', nor guest, which is in user.
        let busy: f64 = [0, 1, 2, 5, 6].iter().filter_map(|at| ticks.get(*at)).sum();
        Ok(Self {
            busy: busy / HZ,
            ..Self::default()
        })
    }

    /// Adds a process.
    pub(super) fn process(&mut self, name: &str, pid: u32) -> Result<()> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))
            .with_context(|| format!("{name} has ended"))?;
        // Behind the name, which may have anything in it: utime and stime are fields 14 and 15 of all.
        let fields = stat.rsplit_once(") ").context("stat")?.1;
        let ticks: f64 = fields
            .split(' ')
            .skip(11)
            .take(2)
            .filter_map(|word| word.parse::<f64>().ok())
            .sum();
        self.seconds.insert(name.to_owned(), ticks / HZ);
        Ok(())
    }
}

/// Resident memory of a process in MiB.
pub(super) fn memory(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib: f64 = line
        .and_then(|line| line.trim().strip_suffix(" kB")?.parse().ok())
        .context("VmRSS")?;
    Ok(kib / 1024.0)
}

/// What machine this is.
pub(super) fn hello(wire: &str) -> Result<Hello> {
    let ip_json = |what: &str| -> Result<Value> {
        let text = ip(&format!("-j {what} show dev {wire}")).with_context(|| {
            format!("no NIC {wire}; name the underlay's by --wire and --remote-wire")
        })?;
        Ok(serde_json::from_str(&text)?)
    };
    let link = ip_json("link")?;
    let addresses = ip_json("address")?;
    let addresses: Vec<IpAddr> = addresses[0]["addr_info"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|info| info["scope"] == "global")
        .filter_map(|info| info["local"].as_str()?.parse().ok())
        .collect();
    let driver = run(Command::new("ethtool").args(["-i", wire])).unwrap_or_default();
    let driver = driver
        .lines()
        .find_map(|line| line.strip_prefix("driver: "));
    // A veth says 10000, which nothing comes of.
    let speed = fs::read_to_string(format!("/sys/class/net/{wire}/speed"))
        .ok()
        .filter(|_| driver != Some("veth"))
        .and_then(|text| text.trim().parse().ok());
    let mtu = link[0]["mtu"].as_u64().context("no MTU")?;
    Ok(Hello {
        host: Host::this(),
        wire: Wire {
            driver: driver.unwrap_or("unknown").to_owned(),
            speed,
            mtu: u32::try_from(mtu)?,
            geneve: tunnel::Tunnel::kind().to_owned(),
            ..Wire::default()
        },
        addresses,
        lacks: Way::ALL
            .into_iter()
            .filter_map(|way| Some((way, way.missing()?)))
            .collect(),
    })
}

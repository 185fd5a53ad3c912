//! The demo: the same load in clear and sealed, and what was on the wire meanwhile. Keys come from a file, from strongSwan,
//! or from strongSwan as Open vSwitch tells it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use anyhow::Result;
use serde::Serialize;

use crate::charon::Kind;
use crate::ike::{Auth, Connection, Start};
use crate::lab::{Lab, Plan, TUNNEL, WIRE};
use crate::load::{self, Ping, Throughput};
use crate::negotiated::Negotiated;
use crate::switched::Switched;
use crate::wire::{self, Counts};

/// Where the keys come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Keys {
    /// A file of static keys
    File,
    /// strongSwan: a charon on each side, told by swanctl
    Strongswan,
    /// Open vSwitch: its tunnel, with a pre-shared key, and its ovs-monitor-ipsec, which tells strongSwan
    Ovs,
}

/// What to show.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// The lab.
    pub plan: Plan,
    /// Where the keys come from.
    pub keys: Keys,
    /// Length of each iperf3 run.
    pub seconds: u32,
}

/// The lab, with what the keys need.
#[derive(Debug)]
pub enum Stage {
    /// Static keys.
    File(Lab),
    /// With strongSwan.
    Strongswan(Negotiated),
    /// With Open vSwitch.
    Ovs(Switched),
}

impl Stage {
    fn new(options: Options) -> Result<Self> {
        Ok(match options.keys {
            Keys::File => Self::File(Lab::new(options.plan)?),
            Keys::Strongswan => {
                let connection = Connection {
                    esp: format!("{}-x25519-esn", options.plan.cipher),
                    // The first packet is a's.
                    start: [Start::Trap; 2],
                    ..Connection::default()
                };
                Self::Strongswan(Negotiated::new(
                    options.plan,
                    Kind::Systemd,
                    &connection,
                    &[],
                )?)
            }
            Keys::Ovs => Self::Ovs(Switched::new(options.plan)?),
        })
    }

    /// Starts Culvert on both sides, and waits until Geneve is protected.
    fn seal(&mut self) -> Result<()> {
        match self {
            Self::File(lab) => return lab.start_culvert(),
            Self::Strongswan(net) => net.start_all()?,
            Self::Ovs(net) => net.protect(Auth::Psk)?,
        }
        load::wait_for_reply(self.lab(), Duration::from_secs(30))
    }

    /// The lab.
    #[must_use]
    pub fn lab(&self) -> &Lab {
        match self {
            Self::File(lab) => lab,
            Self::Strongswan(net) => &net.lab,
            Self::Ovs(net) => &net.lab,
        }
    }
}

/// What was seen.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// Where the keys came from.
    pub keys: Keys,
    /// Geneve in clear.
    pub plain: Phase,
    /// Geneve sealed by Culvert.
    pub sealed: Phase,
    /// Ping while sealed.
    pub ping: Ping,
    /// The wire while sealed.
    pub wire: WireReport,
    /// Packets dropped on both sides while sealed, by reason.
    pub drops: BTreeMap<String, u64>,
    /// Workers, while iperf3 ran sealed.
    pub workers: Vec<WorkerReport>,
    /// Cipher of the SAs.
    pub cipher: String,
    /// Backend of the ciphers.
    pub aead: String,
    /// Which Geneve endpoint: `kernel` or `fixture`.
    pub geneve_endpoint: String,
    /// How the wire port is attached: XDP mode and AF_XDP mode.
    pub wire_port: String,
}

/// One way of sending.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Phase {
    /// TCP payload that arrived, in 10^9 bits a second.
    pub gbit_per_s: f64,
    /// Segments sent again.
    pub retransmits: u64,
    /// Median round trip of ping in milliseconds.
    pub ping_median_ms: f64,
    /// 99th percentile of the same.
    pub ping_p99_ms: f64,
}

impl Phase {
    fn new(throughput: Throughput, ping: Ping) -> Self {
        Self {
            gbit_per_s: throughput.gbit_per_s,
            retransmits: throughput.retransmits,
            ping_median_ms: ping.median_ms,
            ping_p99_ms: ping.p99_ms,
        }
    }
}

/// What was on the wire, counted by nftables in the middle.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WireReport {
    /// ESP.
    pub esp_packets: u64,
    /// Bytes of ESP.
    pub esp_bytes: u64,
    /// Geneve in clear.
    pub plaintext_geneve_packets: u64,
    /// Bytes of it.
    pub plaintext_geneve_bytes: u64,
    /// Anything else.
    pub other_packets: u64,
    /// Bytes of it.
    pub other_bytes: u64,
}

impl From<Counts> for WireReport {
    fn from(counts: Counts) -> Self {
        Self {
            esp_packets: counts.esp.packets,
            esp_bytes: counts.esp.bytes,
            plaintext_geneve_packets: counts.plaintext_geneve.packets,
            plaintext_geneve_bytes: counts.plaintext_geneve.bytes,
            other_packets: counts.other.packets,
            other_bytes: counts.other.bytes,
        }
    }
}

/// One worker under load.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerReport {
    /// Hypervisor: a or b.
    pub side: String,
    /// Number.
    pub id: u32,
    /// Core.
    pub core: Option<u32>,
    /// Share of the core that its thread took, in percent.
    pub cpu_percent: f64,
}

impl Report {
    /// Whether the demo shows what it should: sealed traffic, nothing lost, nothing in clear.
    #[must_use]
    pub fn good(&self) -> bool {
        self.sealed.gbit_per_s > 0.0
            && self.ping.received == self.ping.sent
            && self.wire.plaintext_geneve_packets == 0
            && self.wire.esp_packets > 0
    }
}

/// Runs it. `say` hears what is going on. Returns the lab too, as it stands.
///
/// # Errors
/// The machine lacks something, or Culvert does not come up.
pub fn run(options: Options, say: impl Fn(&str)) -> Result<(Report, Stage)> {
    say("two hypervisors on a wire");
    let mut stage = Stage::new(options)?;
    let lab = stage.lab();
    say(&format!(
        "plain Geneve: ping, then iperf3 for {} s",
        options.seconds
    ));
    let ping = load::ping(lab, 100)?;
    let plain = Phase::new(load::iperf(lab, options.seconds)?, ping);
    say(match options.keys {
        Keys::File => "starting Culvert on both, with fresh keys",
        Keys::Strongswan => "starting Culvert and strongSwan on both; they negotiate the keys",
        Keys::Ovs => {
            "starting Culvert and ovs-monitor-ipsec on both; the tunnel gets a pre-shared key"
        }
    });
    stage.seal()?;
    let lab = stage.lab();
    wire::take_counts(&lab.underlay)?;
    say(&format!(
        "sealed: ping, then iperf3 for {} s",
        options.seconds
    ));
    let ping = load::ping(lab, 100)?;
    let before = workers(lab)?;
    let start = std::time::Instant::now();
    let throughput = load::iperf(lab, options.seconds)?;
    let elapsed = start.elapsed().as_secs_f64();
    let mut after = workers(lab)?;
    for (worker, before) in after.iter_mut().zip(before) {
        worker.cpu_percent = (worker.cpu_percent - before.cpu_percent) * 100.0 / elapsed;
    }
    let wire = WireReport::from(wire::take_counts(&lab.underlay)?);
    let mut drops = BTreeMap::new();
    for side in &lab.sides {
        for (reason, count) in side.datapath_status()?.drops {
            *drops.entry(reason).or_default() += count;
        }
    }
    let mut status = lab.sides[0].datapath_status()?;
    let cipher = status.sas.first().map(|sa| sa.cipher);
    let aead = cipher.and_then(|cipher| status.aead.remove(cipher.algorithm().name()));
    let report = Report {
        keys: options.keys,
        plain,
        sealed: Phase::new(throughput, ping),
        ping,
        wire,
        drops,
        workers: after,
        cipher: cipher.map_or_else(String::new, |cipher| cipher.to_string()),
        aead: aead.unwrap_or_default(),
        geneve_endpoint: match options.keys {
            Keys::Ovs => "Open vSwitch, userspace datapath".to_owned(),
            _ => lab.endpoint.to_owned(),
        },
        wire_port: status
            .ports
            .iter()
            .filter(|port| port.role == "wire")
            .map(|port| format!("XDP {}, AF_XDP {}", port.xdp, port.af_xdp))
            .collect(),
    };
    Ok((report, stage))
}

/// CPU seconds of each worker, in the place of the share.
fn workers(lab: &Lab) -> Result<Vec<WorkerReport>> {
    let mut workers = Vec::new();
    for (side, name) in lab.sides.iter().zip(["a", "b"]) {
        workers.extend(
            side.datapath_status()?
                .workers
                .into_iter()
                .map(|worker| WorkerReport {
                    side: name.to_owned(),
                    id: worker.id,
                    core: worker.core,
                    cpu_percent: worker.cpu_seconds,
                }),
        );
    }
    Ok(workers)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "Culvert: two hypervisors, Geneve sealed with {} by {}",
            self.cipher, self.aead
        )?;
        writeln!(
            f,
            "({}; Geneve endpoint: {}; keys from {})\n",
            self.wire_port,
            self.geneve_endpoint,
            match self.keys {
                Keys::File => "a file",
                Keys::Strongswan => "strongSwan",
                Keys::Ovs => "strongSwan, told by ovs-monitor-ipsec",
            }
        )?;
        writeln!(f, "                     plain      sealed")?;
        writeln!(
            f,
            "  TCP, one stream  {:7.2}     {:7.2}  Gbit/s",
            self.plain.gbit_per_s, self.sealed.gbit_per_s
        )?;
        writeln!(
            f,
            "  retransmits      {:7}     {:7}",
            self.plain.retransmits, self.sealed.retransmits
        )?;
        writeln!(
            f,
            "  ping, median     {:7.3}     {:7.3}  ms",
            self.plain.ping_median_ms, self.sealed.ping_median_ms
        )?;
        writeln!(
            f,
            "  ping, 99 %       {:7.3}     {:7.3}  ms",
            self.plain.ping_p99_ms, self.sealed.ping_p99_ms
        )?;
        writeln!(
            f,
            "  ping, lost                   {:5} of {}\n",
            self.ping.sent - self.ping.received,
            self.ping.sent
        )?;
        writeln!(
            f,
            "  On the wire while sealed        packets          bytes"
        )?;
        for (kind, packets, bytes) in [
            ("ESP", self.wire.esp_packets, self.wire.esp_bytes),
            (
                "Geneve in clear",
                self.wire.plaintext_geneve_packets,
                self.wire.plaintext_geneve_bytes,
            ),
            ("other", self.wire.other_packets, self.wire.other_bytes),
        ] {
            writeln!(f, "    {kind:<24} {packets:>12} {bytes:>14}")?;
        }
        let lost: Vec<_> = self.drops.iter().filter(|(_, count)| **count > 0).collect();
        if lost.is_empty() {
            writeln!(f, "\n  Dropped: nothing")?;
        } else {
            writeln!(f, "\n  Dropped")?;
            for (reason, count) in lost {
                writeln!(f, "    {reason:<24} {count:>12}")?;
            }
        }
        writeln!(f)?;
        for worker in &self.workers {
            let core = worker.core.map_or("?".to_owned(), |core| core.to_string());
            writeln!(
                f,
                "  Worker {} of {}, core {core}: {:.0} % CPU (with what the kernel does in its calls)",
                worker.id, worker.side, worker.cpu_percent
            )?;
        }
        Ok(())
    }
}

/// What to look at in a lab that was kept.
#[must_use]
pub fn hints(lab: &Lab) -> String {
    let [a, b] = &lab.sides;
    let (a_name, u_name) = (a.namespace.name(), lab.underlay.name());
    format!(
        "The lab stands. To look at it:\n\
         \x20 culvert --run-dir {a} status          (the other side: {b})\n\
         \x20 ip netns exec {a_name} ping {inner}\n\
         \x20 ip netns exec {a_name} iperf3 -c {inner}    (after: ip netns exec {b_name} iperf3 -s)\n\
         \x20 ip netns exec {u_name} tcpdump -ni a0      (the wire)\n\
         \x20 ip -n {a_name} -d link show {WIRE}, {TUNNEL}\n\
         To remove it: ./dev clean\n",
        a = a.folder.display(),
        b = b.folder.display(),
        b_name = b.namespace.name(),
        inner = b.inner,
    )
}

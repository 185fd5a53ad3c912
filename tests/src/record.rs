//! What is kept of a run: one file in `bench-results/`, which has everything that the report is made of.
//!
//! Nothing is summed up here: a record has every round, and whoever reads it takes the median. `schema.json` beside the
//! records is made from these types.

mod host;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Version of the records' shape.
pub const SCHEMA: u32 = 1;

/// One run of one part of the suite.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Version of this shape: [`SCHEMA`].
    pub schema: u32,
    /// Day of the run, as in 2026-11-28.
    pub date: String,
    /// Commit, as `git describe --always --dirty` has it.
    pub commit: String,
    /// Whether the run came to its end. If not, it was interrupted, and what is there is what was measured until then.
    pub complete: bool,
    /// The machine.
    pub host: Host,
    /// The commands that repeat it.
    pub commands: Vec<String>,
    /// What a reader must know beside that: what else the machine did, what was done by hand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// What was measured.
    pub results: Results,
}

impl Record {
    /// What was measured today, by the code as it is here.
    #[must_use]
    pub fn new(host: Host, commands: Vec<String>, complete: bool, results: Results) -> Self {
        Self {
            schema: SCHEMA,
            date: host::today(),
            commit: host::commit(),
            complete,
            host,
            commands,
            note: None,
            results,
        }
    }

    /// Name of its file. One day has one record of a kind of machine and of what was measured.
    #[must_use]
    pub fn file_name(&self) -> String {
        let what = self.results.what();
        format!("{}-{}-{what}.json", self.date, self.host.class)
    }
}

/// A machine.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Host {
    /// Short name of its kind, as in a record's file name: `amd-epyc-2`, `guest`.
    pub class: String,
    /// Model of the CPU.
    pub cpu: String,
    /// CPU features that ciphers use, of those that it has.
    pub features: Vec<String>,
    /// Number of cores.
    pub cores: u32,
    /// Frequency of its time stamp counter in 10^9 a second, which clocks are counted by; if known.
    pub tsc_ghz: Option<f64>,
    /// Kernel: `uname -sr`.
    pub kernel: String,
    /// Compiler.
    pub rustc: String,
}

/// What was measured.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "what", rename_all = "kebab-case")]
#[expect(clippy::large_enum_variant, reason = "there is one of it in a process")]
pub enum Results {
    /// Pieces of the packet's way in memory: times and clocks.
    Micro(Micro),
    /// Throughput, CPU and latency beside other ways of protecting the same tunnel.
    Iperf(Iperf),
    /// More SAs, more workers.
    Scale(Scale),
    /// Two workers of one process, whose host ports are TAPs and whose wire is memory.
    Loop(Loop),
    /// The fault campaign.
    Faults(Faults),
}

impl Results {
    /// What it is, in a file's name: `iperf-remote` is another thing than `iperf` on the same kind of machine.
    #[must_use]
    pub fn what(&self) -> &'static str {
        match self {
            Self::Micro(_) => "micro",
            Self::Iperf(iperf) if iperf.place == Place::Remote => "iperf-remote",
            Self::Iperf(_) => "iperf",
            Self::Scale(_) => "scale",
            Self::Loop(_) => "loop",
            Self::Faults(_) => "faults",
        }
    }
}

/// Pieces in memory.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Micro {
    /// By criterion.
    pub times: Vec<Time>,
    /// By the time stamp counter; each pass, so that one thing may be there several times.
    pub clocks: Vec<Clocks>,
}

/// One of criterion's benchmarks.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Time {
    /// Its name: `seal/aes256gcm16/aws-lc-rs/esp/1400`.
    pub id: String,
    /// Median of a packet in nanoseconds, each pass.
    pub ns: Vec<f64>,
}

/// Clocks that a packet takes.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Clocks {
    /// What: `seal`, `open` (the cipher alone), `pipeline/out`, `pipeline/in`.
    pub what: String,
    /// Cipher: `aes256gcm16`.
    pub cipher: String,
    /// Backend of the cipher: `aws-lc-rs`.
    pub backend: String,
    /// Bytes of the payload.
    pub bytes: u32,
    /// Packets that are worked on together.
    pub batch: u32,
    /// Best of many.
    pub best: f64,
    /// Median.
    pub median: f64,
    /// Best of the bare cipher on a text of the same length in the same run.
    pub bare: Option<f64>,
}

/// Where a run took place.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// Two hypervisors as namespaces of one machine.
    Namespaces,
    /// The same in a guest whose CPU is emulated, with its clock driven by instructions.
    Guest,
    /// Two machines.
    Remote,
}

/// Throughput, CPU and latency.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Iperf {
    /// Where.
    pub place: Place,
    /// The other machine, if there is one.
    pub peer: Option<Host>,
    /// The underlay.
    pub wire: Wire,
    /// Seconds of each run.
    pub seconds: u32,
    /// Backend of each of Culvert's ciphers.
    #[serde(default)]
    pub aead: BTreeMap<String, String>,
    /// What was not measured, and why: `wireguard-go: there is no wireguard-go`.
    pub left_out: Vec<String>,
    /// What was.
    pub series: Vec<Series>,
}

/// The underlay.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Wire {
    /// Driver of the NIC.
    pub driver: String,
    /// Its speed in Mbit/s, if it says so.
    pub speed: Option<u32>,
    /// XDP mode: `native` or `generic`.
    pub xdp: String,
    /// AF_XDP mode: `copy` or `zero-copy`.
    pub af_xdp: String,
    /// MTU.
    pub mtu: u32,
    /// MTU of the tunnel's inner side.
    pub inner_mtu: u32,
    /// What makes Geneve: `kernel` or `fixture`.
    pub geneve: String,
    /// Whether there was a bridge in its middle, which counted packets and took its time for that. Otherwise what is on the wire
    /// was looked at before the first round, with the bridge, and what [`OnWire`] says is by the sides' own counters.
    pub bridge: bool,
}

/// One side under one load: the rounds of it.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Series {
    /// Who protects: `plain` (nobody), `null` (Culvert's steering and forwarding without ESP), `culvert`, `null-tap` and `culvert-tap` (both with a TAP as the host port), `culvert-busy` (the latter, whose workers poll the NIC), `kernel-xfrm`,
    /// `strongswan-libipsec`, `wireguard-go`, `boringtun`.
    pub side: String,
    /// Cipher, where there is one.
    pub cipher: Option<String>,
    /// Load: `tcp-85k` (one stream, window of 85 KB), `tcp`, `tcp-4` (four streams), `tcp-tenth` (held to 150 Mbit/s), `udp-64`, `udp-512`, `udp-1400` (bytes
    /// of payload, at the highest rate that loses no more than 0.1 %).
    pub load: String,
    /// Each round.
    pub rounds: Vec<Round>,
}

/// One run.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Round {
    /// Payload that arrived, in 10^9 bits a second.
    pub gbit_per_s: f64,
    /// Packets of payload that arrived, in 10^6 a second; of UDP.
    pub mpps: Option<f64>,
    /// Segments that TCP sent again.
    pub retransmits: Option<u64>,
    /// UDP that did not arrive, in percent.
    pub lost_percent: Option<f64>,
    /// Cores that each party kept busy, on average: `worker a`, `worker b`, `iperf3 a`, `iperf3 b`, `machine` (all of it,
    /// kernel and interrupts included).
    pub cores: BTreeMap<String, f64>,
    /// Round trips under that load.
    pub latency: Option<Latency>,
    /// What was on the wire.
    pub wire: OnWire,
    /// How large the superpackets of the host ports were; of a memory wire.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub superpackets: Option<Superpackets>,
    /// In an emulated guest: instructions of the whole guest for a byte of payload.
    pub instructions_per_byte: Option<f64>,
}

/// Round trips in microseconds.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Latency {
    /// Probes sent.
    pub sent: u32,
    /// Probes that came back.
    pub received: u32,
    /// Median.
    pub p50: f64,
    /// 99th percentile.
    pub p99: f64,
    /// 99.9th percentile.
    pub p999: f64,
}

/// Packets on the wire, counted by the bridge in the middle of it; without one, what the sides say they have sealed, and nothing else.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct OnWire {
    /// ESP, also in UDP.
    pub esp: u64,
    /// Geneve in clear.
    pub geneve: u64,
    /// Anything else: other tunnels.
    pub other: u64,
}

/// Packets of a superpacket, on average.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Superpackets {
    /// That one that a worker has read was cut into.
    pub cut: f64,
    /// That one that a worker has written was joined of.
    pub joined: f64,
}

/// A memory wire: TCP from one host port over both workers to the other.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Loop {
    /// Seconds of each run.
    pub seconds: u32,
    /// Threads: one that takes turns with both workers, or one for each.
    pub threads: u32,
    /// MTU that the wire is taken to have.
    pub mtu: u32,
    /// MTU of the tunnel's inner side.
    pub inner_mtu: u32,
    /// What makes Geneve: `kernel` or `fixture`.
    pub geneve: String,
    /// Backend of each cipher.
    pub aead: BTreeMap<String, String>,
    /// What was measured: sides `null-tap` and `culvert-tap`. Each round's `wire` is what the workers say of themselves.
    pub series: Vec<Series>,
}

/// More SAs, more workers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Scale {
    /// Cipher.
    pub cipher: String,
    /// Each point.
    pub points: Vec<Point>,
}

/// One number of SAs and workers.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Point {
    /// Outbound SAs, and as many inbound, on each side; all of them are used in turn.
    pub sas: u32,
    /// Workers on each side.
    pub workers: u32,
    /// Sealed packets that arrived, in 10^6 a second, each round.
    pub mpps: Vec<f64>,
    /// TCP payload over one SA while the others are there, in 10^9 bits a second, each round.
    pub gbit_per_s: Vec<f64>,
    /// Resident memory of the datapath of one side in MiB.
    pub datapath_mib: f64,
    /// Resident memory of the key manager of one side in MiB.
    pub keymgr_mib: f64,
    /// Seconds from the key manager's start until the datapath has all of them.
    pub filled_in_s: f64,
    /// CPU of a datapath with nothing to do, in percent of a core.
    pub idle_percent: f64,
}

/// The fault campaign: how long nothing came after each event.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Faults {
    /// Seed that stands for all that happened.
    pub seed: u64,
    /// Packets of ESP that were looked at.
    pub esp_packets: u64,
    /// What flowed meanwhile.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traffic: Option<Traffic>,
    /// What the peer counted: name and number.
    pub peer: BTreeMap<String, u64>,
    /// Each event.
    pub events: Vec<Fault>,
}

/// What flows while things break.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Traffic {
    /// SAs that the packets were of.
    pub sas: u64,
    /// Numbered UDP packets sent, both ways.
    pub udp_sent: u64,
    /// Those that came.
    pub udp_received: u64,
    /// TCP bytes that came.
    pub tcp_bytes: u64,
    /// TCP connections that were made because another did not go on.
    pub tcp_anew: u64,
}

/// One event.
#[derive(Clone, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What was done.
    pub kind: String,
    /// To which side: a or b.
    pub side: String,
    /// How long it lasted, in milliseconds.
    pub length_ms: f64,
    /// Longest time without a numbered UDP packet, in milliseconds.
    pub gap_ms: f64,
    /// From the event to the next numbered packet, in milliseconds.
    pub udp_ms: Option<f64>,
    /// From the event to the next progress of TCP, in milliseconds.
    pub tcp_ms: Option<f64>,
}

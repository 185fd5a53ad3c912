//! What is reported: `culvert status --json` is these, as they are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::event::Event;
use crate::message::Changes;
use crate::policy::{Mode, Place};
use crate::sa::{Action, Cipher, Direction, Lifetime, Selector, Spi, UdpEncapsulation};

/// State of the datapath.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DatapathStatus {
    /// Name and release.
    pub program: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// AEAD backend of each cipher, as in `"AES-256-GCM": "ipsec-mb"`.
    pub aead: BTreeMap<String, String>,
    /// Features of the CPU that ciphers make use of.
    pub cpu_features: Vec<String>,
    /// Ports.
    pub ports: Vec<PortStatus>,
    /// Workers.
    pub workers: Vec<WorkerStatus>,
    /// SAs.
    pub sas: Vec<SaStatus>,
    /// Policies.
    pub policies: Vec<PolicyStatus>,
    /// Dropped packets by reason, eBPF programs and workers together; every reason is there, most 0.
    pub drops: BTreeMap<String, u64>,
}

/// State of one port.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PortStatus {
    /// `wire` or `host`.
    pub role: String,
    /// Name of the interface.
    pub interface: String,
    /// What it is, and why: `NIC`; of the host port, `TAP with superpackets: …`, `TAP: …` or `veth: …`.
    pub kind: String,
    /// How XDP is attached: `native` or `generic`; `none` on a TAP.
    pub xdp: String,
    /// How the AF_XDP sockets are bound: `zero-copy` or `copy`; `none` on a TAP.
    pub af_xdp: String,
    /// Queues of the interface, all bound.
    pub queues: u32,
    /// MTU in bytes.
    pub mtu: u32,
}

/// State of one worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Number, from 0.
    pub id: u32,
    /// Core it is bound to.
    pub core: Option<u32>,
    /// CPU time in seconds since it started.
    pub cpu_seconds: f64,
    /// Packets received from the host.
    pub from_host: u64,
    /// Packets received from the wire.
    pub from_wire: u64,
    /// Packets sealed and sent.
    pub sealed: u64,
    /// Packets opened and handed to the host.
    pub opened: u64,
    /// Packets that policies left in clear, either way.
    pub bypassed: u64,
    /// Times it went to sleep in poll(2).
    pub sleeps: u64,
}

/// State of one SA.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SaStatus {
    /// Direction.
    pub direction: Direction,
    /// SPI.
    pub spi: Spi,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Cipher.
    pub cipher: Cipher,
    /// Extended sequence numbers.
    pub esn: bool,
    /// UDP encapsulation.
    pub encapsulation: Option<UdpEncapsulation>,
    /// Packets sealed or opened.
    pub packets: u64,
    /// Bytes sealed or opened, counted as the kernel does: the ESP payload in clear.
    pub bytes: u64,
    /// Outbound: the last number used. Inbound: the highest one authenticated.
    pub sequence: u64,
    /// Size of the replay window in packets; 0 outbound.
    pub replay_window: u32,
    /// Inbound: packets whose number had been received before.
    pub replayed: u64,
    /// Inbound: packets whose number was left of the window.
    pub late: u64,
    /// Inbound: packets that did not authenticate.
    pub failed: u64,
    /// Inbound: numbers up to the highest that have not come. Those within the window still may.
    pub lost: u64,
    /// Lifetimes.
    pub lifetime: Lifetime,
    /// Seconds since it was added; since its first packet, if there was one.
    pub age_seconds: u64,
    /// See [`SaStatus::age_seconds`].
    pub use_seconds: Option<u64>,
    /// `alive`, `expiring` once a soft limit is reached, `expired` once a hard one is.
    pub state: String,
}

/// State of one policy.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// Which packets.
    pub selector: Selector,
    /// Place among the policies, of which the first that a packet matches counts.
    pub order: u32,
    /// What is done with them.
    pub action: Action,
    /// Packets from this host that were dropped because it has no outbound SA.
    pub blocked: u64,
    /// `culvert`, `none (dropping)` where an SA is missing, or what the policy does instead of protecting.
    pub protected_by: String,
}

/// State of the key manager.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeymgrStatus {
    /// Name and release.
    pub program: String,
    /// Process id.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_seconds: f64,
    /// Where keys come from: the configuration file's path.
    pub source: String,
    /// SAs wanted.
    pub sas: usize,
    /// Policies wanted.
    pub policies: usize,
    /// Whether the datapath is connected and has all of them.
    pub datapath_in_sync: bool,
    /// Why it is not, if it is not.
    pub datapath_problem: Option<String>,
    /// What the last successful load changed.
    pub last_load: Changes,
    /// Text of the last load that was refused, if nothing was loaded since.
    pub refused: Option<String>,
    /// The last events, oldest first.
    pub events: Vec<Event>,
    /// The charon that gives keys, if there is one.
    pub charon: Option<CharonStatus>,
    /// Where the policies come from.
    pub tunnels: Vec<TunnelStatus>,
    /// Peers that had policies of a charon and have none any more: Geneve to them is dropped until there is one
    /// again, or they are released.
    pub held: Vec<IpNet>,
    /// What a charon wanted and did not get, by the peer: the last of each.
    pub charon_refused: BTreeMap<String, String>,
    /// Whether `culvert drain` has handed everything over to the kernel.
    pub drained: bool,
    /// Why the kernel's IPsec could not stand in, if it could not.
    pub kernel_problem: Option<String>,
    /// SAs that the kernel serves.
    pub kernel_sas: Vec<KernelSaStatus>,
    /// Policies that the kernel serves beside the tunnels: what is not Geneve.
    pub kernel_policies: Vec<String>,
    /// Times that SAs went from the datapath to the kernel, and back.
    pub handovers: Handovers,
}

/// How often SAs changed hands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handovers {
    /// Times that the kernel has taken over.
    pub to_kernel: u64,
    /// Times that the datapath has.
    pub to_culvert: u64,
    /// Milliseconds that the last one took, from when it was begun.
    pub last_milliseconds: u64,
}

/// An SA that the kernel serves.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KernelSaStatus {
    /// Direction.
    pub direction: Direction,
    /// SPI.
    pub spi: Spi,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Algorithms, as the kernel calls them.
    pub algorithm: String,
    /// Packets sealed or opened, also by the datapath before.
    pub packets: u64,
    /// Bytes sealed or opened, also by the datapath before.
    pub bytes: u64,
    /// Outbound: the last number used. Inbound: the highest one authenticated.
    pub sequence: u64,
}

/// A charon.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CharonStatus {
    /// Name and release, of it and of the plugin.
    pub program: String,
    /// Whether it is connected; if not, what it has installed goes on until it comes back.
    pub connected: bool,
    /// SAs that it has installed.
    pub sas: usize,
    /// Policies that it has installed, both directions counted.
    pub policies: usize,
}

/// Where a policy comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TunnelStatus {
    /// The policy.
    pub selector: Selector,
    /// Source of its keys: `file` or `strongSwan`; `held` if it only blocks what had a policy before.
    pub source: String,
    /// The peer that the keys were negotiated with.
    pub ike_peer: Option<IpAddr>,
    /// What ties its SAs to it in IKE.
    pub reqid: Option<u32>,
    /// Whether a first packet starts the negotiation.
    pub trap: bool,
    /// Who may serve it.
    pub mode: Mode,
    /// Who serves it.
    pub place: Place,
    /// Why it is not the datapath, or why it is nobody.
    pub why: Option<String>,
}

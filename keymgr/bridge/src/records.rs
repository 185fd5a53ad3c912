//! What is said. Everything is as charon gives it: the key manager decides what Culvert serves, so that one process
//! says so in its log and its status.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use crate::wire::{Wire, choice, read_bytes, record, write_length};

record! {
    /// First message of each side.
    Hello {
        /// [`crate::VERSION`] of the sender.
        version: u16,
        /// The sender's name and release: `strongSwan 5.9.8, plugin kernel-culvert 0.1.0`.
        program: String,
        /// A random number of the sender's process.
        instance: u64,
    }
}

choice! {
    /// From the plugin.
    Request {
        /// Begins the session, with all policies that stand.
        0 Session(Vec<Policy>),
        /// An SPI for an inbound SA to this address, that nobody else on this host has. Answered by `Spi`.
        1 AllocateSpi(IpAddr),
        /// Installs an SA. `Done` means that the datapath has it.
        2 AddSa(Box<Sa>),
        /// Gives an SA other ends; its sequence numbers go on.
        3 UpdateSa(SaUpdate),
        /// How much an SA was used. Answered by `Usage`.
        4 QuerySa(SaName),
        /// Removes an SA.
        5 DeleteSa(SaName),
        /// Removes all SAs of this charon.
        6 FlushSas,
        /// Installs a policy. One that stands already is not installed twice.
        7 AddPolicy(Box<Policy>),
        /// Removes a policy: the one that is the same in all.
        8 DeletePolicy(Box<Policy>),
        /// When the SAs of a policy were used last. Answered by `Usage`, with no packets and bytes.
        9 QueryPolicy(PolicyName),
        /// Removes all policies of this charon.
        10 FlushPolicies,
        /// This charon is not served, for this reason: nothing else will come from it.
        11 Unserved(String),
        /// This charon ends. What it takes out from now on is not taken out because somebody wants it so.
        12 Ending,
    }
}

choice! {
    /// From the key manager.
    Reply {
        /// Done.
        0 Done,
        /// The SPI, in host byte order.
        1 Spi(u32),
        /// Usage.
        2 Usage(Usage),
        /// Not done.
        3 Refused(Refused),
    }
}

record! {
    /// Why something was not done.
    Refused {
        /// What charon is told.
        refusal: Refusal,
        /// What and why, and what to do, for charon's log.
        text: String,
    }
}

choice! {
    /// A kind of refusal.
    #[derive(Copy)]
    Refusal {
        /// It failed.
        0 Failed,
        /// Culvert does not serve this; kernel IPsec would.
        1 NotSupported,
        /// There is no such SA or policy.
        2 NotFound,
        /// The session has not begun yet.
        3 Away,
    }
}

choice! {
    /// To the plugin, without being asked.
    Event {
        /// A lifetime was reached.
        0 Expired(Expired),
        /// A packet wants a policy that has no SA.
        1 Acquire(Acquire),
        /// A peer behind NAT sends from elsewhere.
        2 Moved(Moved),
    }
}

record! {
    /// A lifetime that was reached.
    Expired {
        /// SPI.
        spi: u32,
        /// Destination of the SA.
        destination: IpAddr,
        /// Hard: nothing goes under it any more. Else it is to be replaced.
        hard: bool,
    }
}

record! {
    /// What wants an SA.
    Acquire {
        /// The policy's.
        reqid: u32,
    }
}

record! {
    /// Where a peer is now.
    Moved {
        /// SPI of the inbound SA that it sends under.
        spi: u32,
        /// Destination of that SA.
        destination: IpAddr,
        /// Where it sends from.
        remote: SocketAddr,
    }
}

record! {
    /// What names an SA.
    #[derive(Hash)]
    SaName {
        /// SPI, in host byte order.
        spi: u32,
        /// Destination.
        destination: IpAddr,
    }
}

record! {
    /// One SA.
    Sa {
        /// SPI and destination.
        name: SaName,
        /// IP protocol: 50 for ESP.
        protocol: u8,
        /// Whether it is for what arrives.
        inbound: bool,
        /// Source, with the port of UDP encapsulation.
        source: SocketAddr,
        /// Port of UDP encapsulation at the destination. Ports count only with `encapsulated`.
        destination_port: u16,
        /// Ties it to policies.
        reqid: u32,
        /// `ipsec_mode_t`: 1 for transport.
        mode: u32,
        /// IKEv2 transform ID of the encryption algorithm.
        encryption: u16,
        /// Key, then salt.
        key: Secret,
        /// IKEv2 transform ID of the integrity algorithm; 0 with an AEAD.
        integrity: u16,
        /// Key of the integrity algorithm; empty with an AEAD.
        integrity_key: Secret,
        /// Extended sequence numbers.
        esn: bool,
        /// Replay window in packets.
        replay_window: u32,
        /// Bytes to which payloads are padded; 0: they are not.
        tfc: u32,
        /// UDP encapsulation.
        encapsulated: bool,
        /// IPComp transform; 0: none.
        ipcomp: u16,
        /// Lifetimes.
        lifetimes: Lifetimes,
        /// Whether a mark, an interface ID, an interface or a security label is asked for; the text names which.
        restriction: Option<String>,
    }
}

record! {
    /// Lifetimes; 0: none.
    #[derive(Copy, Default)]
    Lifetimes {
        /// Seconds until rekeying.
        soft_seconds: u64,
        /// Seconds until the end.
        hard_seconds: u64,
        /// Bytes until rekeying.
        soft_bytes: u64,
        /// Bytes until the end.
        hard_bytes: u64,
        /// Packets until rekeying.
        soft_packets: u64,
        /// Packets until the end.
        hard_packets: u64,
    }
}

record! {
    /// Other ends for an SA.
    SaUpdate {
        /// Which.
        name: SaName,
        /// New source, with its port.
        source: SocketAddr,
        /// New destination, with its port.
        destination: SocketAddr,
        /// Whether there is UDP encapsulation from now on.
        encapsulated: bool,
        /// New reqid; 0: as it was.
        reqid: u32,
    }
}

record! {
    /// How much something was used.
    #[derive(Copy, Default)]
    Usage {
        /// Bytes.
        bytes: u64,
        /// Packets.
        packets: u64,
        /// Seconds of the monotonic clock at the last use; 0: never.
        last_use: u64,
    }
}

choice! {
    /// Direction of a policy.
    #[derive(Copy, Hash)]
    Direction {
        /// What arrives.
        0 In,
        /// What leaves.
        1 Out,
        /// What is forwarded.
        2 Forward,
    }
}

choice! {
    /// What a policy does.
    #[derive(Copy, Hash)]
    Kind {
        /// Protects.
        1 Protect,
        /// Lets pass.
        2 Bypass,
        /// Drops.
        3 Discard,
    }
}

choice! {
    /// Priority class of a policy, highest first.
    #[derive(Copy, Hash, PartialOrd, Ord)]
    Priority {
        /// Of policies that let pass.
        0 Pass,
        /// Of policies with SAs.
        1 Default,
        /// Of traps.
        2 Routed,
        /// Of policies that drop what nothing else is for.
        3 Fallback,
    }
}

record! {
    /// Which packets, at one end.
    #[derive(Hash)]
    TrafficSelector {
        /// IP protocol; 0: any.
        protocol: u8,
        /// Network.
        network: IpAddr,
        /// Length of its prefix.
        prefix: u8,
        /// First port.
        first_port: u16,
        /// Last port.
        last_port: u16,
    }
}

record! {
    /// What names a policy.
    #[derive(Hash)]
    PolicyName {
        /// Direction.
        direction: Direction,
        /// Source of the packets.
        source: TrafficSelector,
        /// Destination of the packets.
        destination: TrafficSelector,
    }
}

record! {
    /// One policy.
    #[derive(Hash)]
    Policy {
        /// Direction and selectors.
        name: PolicyName,
        /// What it does.
        kind: Kind,
        /// Class.
        priority: Priority,
        /// Priority that was set by hand; 0: none.
        manual_priority: u32,
        /// Source of its SA.
        source: IpAddr,
        /// Destination of its SA.
        destination: IpAddr,
        /// `ipsec_mode_t` of its SA: 1 for transport.
        mode: u32,
        /// Ties it to SAs.
        reqid: u32,
        /// SPI of its SA in host byte order; 0: none yet.
        spi: u32,
        /// Whether a mark, an interface ID, an interface or a security label is asked for; the text names which.
        restriction: Option<String>,
    }
}

/// Keying material. Overwritten when dropped, never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// Takes over the bytes.
    #[must_use]
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

impl Wire for Secret {
    fn write(&self, to: &mut Vec<u8>) {
        write_length(self.0.len(), to);
        to.extend_from_slice(&self.0);
    }
    fn read(from: &mut &[u8]) -> Option<Self> {
        Some(Self(read_bytes(from)?.to_vec()))
    }
}

/// Overwrites what was a secret. The compiler must take it that somebody looks.
pub fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

impl<T: Wire> Wire for Box<T> {
    fn write(&self, to: &mut Vec<u8>) {
        T::write(self, to);
    }
    fn read(from: &mut &[u8]) -> Option<Self> {
        T::read(from).map(Box::new)
    }
}

impl fmt::Display for SaName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SA {:#010x} to {}", self.spi, self.destination)
    }
}

impl fmt::Display for TrafficSelector {
    /// As strongSwan writes them: `192.0.2.1/32[udp/6081]`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)?;
        let protocol = match self.protocol {
            0 => "any".to_owned(),
            6 => "tcp".to_owned(),
            17 => "udp".to_owned(),
            other => other.to_string(),
        };
        match (self.first_port, self.last_port) {
            (0, u16::MAX) if self.protocol == 0 => Ok(()),
            (0, u16::MAX) => write!(f, "[{protocol}]"),
            (u16::MAX, 0) => write!(f, "[{protocol}/OPAQUE]"),
            (first, last) if first == last => write!(f, "[{protocol}/{first}]"),
            (first, last) => write!(f, "[{protocol}/{first}-{last}]"),
        }
    }
}

impl fmt::Display for PolicyName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let direction = match self.direction {
            Direction::In => "in",
            Direction::Out => "out",
            Direction::Forward => "fwd",
        };
        write!(
            f,
            "policy {} === {} {direction}",
            self.source, self.destination
        )
    }
}

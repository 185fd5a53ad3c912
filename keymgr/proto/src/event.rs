//! What the datapath tells the key manager without being asked for anything in particular.

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

use crate::sa::{SaId, Selector};

/// Something that happened to an SA, or for lack of one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Event {
    /// A lifetime was reached.
    Expired {
        /// Which SA.
        sa: SaId,
        /// Hard: nothing goes under it any more. Else it is to be replaced soon.
        hard: bool,
        /// Which limit.
        limit: Limit,
    },
    /// A peer behind NAT sends from another port or address than before (RFC 3948, RFC 7296 §2.23), and
    /// authenticated so.
    Moved {
        /// The inbound SA that it sends under.
        sa: SaId,
        /// Address that it sends from now.
        address: IpAddr,
        /// Port that it sends from now.
        port: u16,
    },
    /// Packets want a policy that has no outbound SA. Said again every second while they do.
    Wanted {
        /// The policy.
        selector: Selector,
    },
    /// This datapath is about to end: who takes over for it should do so now.
    Leaving,
}

/// A limit of an SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Limit {
    /// Bytes.
    Bytes,
    /// Packets.
    Packets,
    /// Seconds since it was added.
    Seconds,
    /// Seconds since its first packet.
    SecondsInUse,
    /// The sequence numbers come to their end.
    Sequence,
    /// The kernel, which serves the SA, does not say which.
    Kernel,
}

impl Limit {
    /// What was reached, for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Packets => "packets",
            Self::Seconds => "time",
            Self::SecondsInUse => "time in use",
            Self::Sequence => "sequence numbers",
            Self::Kernel => "counted by the kernel",
        }
    }
}

/// Events in a row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Events {
    /// Number of the last event that there is, to be given when asking for those after it; each datapath
    /// counts from 1.
    pub last: u64,
    /// How many came after those that were known and are forgotten: nobody asked in time.
    pub lost: u64,
    /// The events, oldest first.
    pub list: Vec<Event>,
}

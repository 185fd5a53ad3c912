//! Requests and replies.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::event::Events;
use crate::sa::{PolicySpec, SaId, SaSpec, Selector};
use crate::status::{DatapathStatus, KeymgrStatus};

/// First message of each side.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`crate::VERSION`] of the sender.
    pub version: u16,
    /// The sender's name and release, for error texts: `culvert-keymgr 0.1.0`.
    pub program: String,
}

/// To the datapath.
#[derive(Debug, Serialize, Deserialize)]
pub enum DatapathRequest {
    /// Version check. Answered by [`DatapathReply::Hello`].
    Hello(Hello),
    /// The SA state region, whose file descriptor comes with this message. Answered by `Done`. Before
    /// the first one, an [`Update`] with SAs is refused.
    Region,
    /// Change SAD and SPD. All of it is applied, or none and the reply is `Refused`.
    Update(Update),
    /// Report.
    Status,
    /// Events after the one with that number; 0: all that are remembered. Answered by `Events`, at once if
    /// there are any, else when there are, but within a second.
    Events(u64),
    /// End, as by SIGTERM. Answered by `Done`.
    End,
}

/// From the datapath.
#[derive(Debug, Serialize, Deserialize)]
pub enum DatapathReply {
    /// Version check.
    Hello(Hello),
    /// Done.
    Done,
    /// Not done; nothing was changed. The text says what and why.
    Refused(String),
    /// Report.
    Status(Box<DatapathStatus>),
    /// Events.
    Events(Events),
}

/// A transaction on SAD and SPD. Removals come before additions, so that an SA can be replaced; an SA
/// or policy that is removed need not exist. What is too long for one message goes in several, all but the
/// last with `more`; they are applied together.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Update {
    /// More of this transaction follows in the next message; nothing is applied before.
    pub more: bool,
    /// Begin from nothing: what this update does not add is removed. The first update that a datapath gets
    /// must be one.
    pub reset: bool,
    /// SAs to remove.
    pub remove_sas: Vec<SaId>,
    /// Policies to remove.
    pub remove_policies: Vec<Selector>,
    /// SAs to add; one that stands already is replaced.
    pub add_sas: Vec<SaSpec>,
    /// Policies to add; one with the same selector is replaced.
    pub add_policies: Vec<PolicySpec>,
}

/// To the key manager.
#[derive(Debug, Serialize, Deserialize)]
pub enum KeymgrRequest {
    /// Version check.
    Hello(Hello),
    /// Read the sources of keys again and reconcile.
    Reload,
    /// Report.
    Status,
    /// Let go of peers that are held: Geneve to them is in clear then, unless other policies say otherwise. `None`:
    /// all of them. Answered by `Released`.
    Release(Option<IpNet>),
    /// Hand everything over to the kernel's IPsec, until `Resume`. Answered by `Done` when it is, or `Refused`.
    Drain,
    /// Let the datapath serve again. Answered by `Done` when it does, or `Refused`.
    Resume,
    /// End, as by SIGTERM. Answered by `Done`.
    End,
}

/// From the key manager.
#[derive(Debug, Serialize, Deserialize)]
pub enum KeymgrReply {
    /// Version check.
    Hello(Hello),
    /// Reloaded; what changed.
    Reloaded(Changes),
    /// Refused; what ran goes on. The text says what and why, one problem a line.
    Refused(String),
    /// Report.
    Status(Box<KeymgrStatus>),
    /// Let go of these.
    Released(Vec<IpNet>),
    /// Done.
    Done,
}

/// What a reload changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changes {
    /// SAs added.
    pub sas_added: usize,
    /// SAs replaced.
    pub sas_changed: usize,
    /// SAs removed.
    pub sas_removed: usize,
    /// Policies added.
    pub policies_added: usize,
    /// Policies replaced.
    pub policies_changed: usize,
    /// Policies removed.
    pub policies_removed: usize,
}

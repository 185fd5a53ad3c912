//! What is wanted of all sources together, and how each policy may be served.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use culvert_proto::policy::{Mode, Selector};
use culvert_proto::sa::{SaId, StateRef};

use crate::kernel::{KernelPolicy, KernelSa};
use crate::wanted::Wanted;

/// All SAs and policies.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Goal {
    /// SAs that Culvert can serve, and every policy for Geneve. A policy may name SAs of `kernel_only`, too.
    pub(crate) wanted: Wanted,
    /// How policies may be served; one that is not there may be so by whoever can.
    pub(crate) hows: BTreeMap<Selector, How>,
    /// What ties negotiated SAs to their policies.
    pub(crate) reqids: BTreeMap<SaId, u32>,
    /// SAs that only the kernel can serve.
    pub(crate) kernel_only: BTreeMap<SaId, KernelOnly>,
    /// Policies for what is not Geneve, which are the kernel's.
    pub(crate) others: BTreeSet<KernelPolicy>,
}

/// How a policy may be served.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct How {
    /// By whom.
    pub(crate) mode: Mode,
    /// What its SAs would be, as negotiated for the first packet.
    pub(crate) trap: Option<Trap>,
}

/// What the kernel asks for when a packet finds no SA.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Trap {
    /// The policy's.
    pub(crate) reqid: u32,
    /// This host's end of the SAs.
    pub(crate) local: IpAddr,
    /// The peer's.
    pub(crate) remote: IpAddr,
}

/// An SA that only the kernel can serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct KernelOnly {
    /// The SA.
    pub(crate) sa: KernelSa,
    /// Where it is counted.
    pub(crate) state: StateRef,
    /// Why Culvert cannot.
    pub(crate) why: String,
}

//! What is wanted of all sources together, and how each policy may be served.

use std::collections::{BTreeMap, BTreeSet};

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
    /// The reqid by which charon is asked when a packet finds no SA.
    pub(crate) trap: Option<u32>,
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

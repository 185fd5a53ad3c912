//! An SA as it stands, whoever can serve it.

use std::net::IpAddr;
use std::time::Instant;

use culvert_proto::sa::{SaId, SaSpec, StateRef, UdpEncapsulation};
use culvert_state::region::Fingerprint;

use crate::goal::KernelOnly;
use crate::keys;

/// An SA that charon has installed, by whom it can be served.
#[derive(Clone, Debug)]
pub(super) enum Served {
    /// By Culvert.
    Culvert(SaSpec),
    /// By the kernel only.
    Kernel(KernelOnly),
}

/// An SA that charon has installed.
#[derive(Clone, Debug)]
pub(super) struct Installed {
    pub(super) served: Served,
    pub(super) reqid: u32,
    /// The lifetime that it has reached: true for the hard one.
    pub(super) reached: Option<bool>,
    /// Its packets when it was looked at last, and the second of the monotonic clock at which they had grown.
    pub(super) packets: u64,
    pub(super) last_use: u64,
    /// Until when it stays although charon has removed it.
    pub(super) leaves: Option<Instant>,
}

impl Installed {
    pub(super) fn id(&self) -> SaId {
        match &self.served {
            Served::Culvert(spec) => spec.id,
            Served::Kernel(only) => only.sa.id,
        }
    }

    pub(super) fn source(&self) -> IpAddr {
        match &self.served {
            Served::Culvert(spec) => spec.source,
            Served::Kernel(only) => only.sa.source,
        }
    }

    pub(super) fn state(&self) -> StateRef {
        match &self.served {
            Served::Culvert(spec) => spec.state,
            Served::Kernel(only) => only.state,
        }
    }

    pub(super) fn fingerprint(&self) -> Fingerprint {
        match &self.served {
            Served::Culvert(spec) => keys::fingerprint(spec),
            Served::Kernel(only) => only.sa.fingerprint(),
        }
    }

    /// Gives it other ends.
    pub(super) fn move_to(
        &mut self,
        source: IpAddr,
        destination: IpAddr,
        encapsulation: Option<UdpEncapsulation>,
    ) {
        match &mut self.served {
            Served::Culvert(spec) => {
                (spec.source, spec.id.destination) = (source, destination);
                spec.encapsulation = encapsulation;
            }
            Served::Kernel(only) => {
                (only.sa.source, only.sa.id.destination) = (source, destination);
                only.sa.encapsulation =
                    encapsulation.map(|ports| (ports.source_port, ports.destination_port));
            }
        }
    }
}

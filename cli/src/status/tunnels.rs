//! Who protects what: the datapath's policies and the key manager's tunnels, joined by their selectors. Either may be
//! missing: a daemon that does not answer, or policies that the kernel serves and the datapath need not know.

use std::collections::HashMap;

use culvert_proto::policy::{Action, Mode, Place, Selector};
use culvert_proto::status::{DatapathStatus, KeymgrStatus, PolicyStatus, TunnelStatus};

/// One policy, as far as somebody speaks of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tunnel<'a> {
    pub(super) selector: &'a Selector,
    pub(super) policy: Option<&'a PolicyStatus>,
    pub(super) tunnel: Option<&'a TunnelStatus>,
}

/// All of them: those of the datapath in their order, then those that only the key manager has.
pub(super) fn join<'a>(
    datapath: Option<&'a DatapathStatus>,
    keymgr: Option<&'a KeymgrStatus>,
) -> Vec<Tunnel<'a>> {
    let mut tunnels: Vec<Tunnel<'a>> = datapath
        .into_iter()
        .flat_map(|status| &status.policies)
        .map(|policy| Tunnel {
            selector: &policy.selector,
            policy: Some(policy),
            tunnel: None,
        })
        .collect();
    let mut places: HashMap<&Selector, usize> = tunnels
        .iter()
        .enumerate()
        .map(|(at, tunnel)| (tunnel.selector, at))
        .collect();
    for tunnel in keymgr.into_iter().flat_map(|status| &status.tunnels) {
        let selector = &tunnel.selector;
        let at = *places.entry(selector).or_insert_with(|| {
            tunnels.push(Tunnel {
                selector,
                policy: None,
                tunnel: None,
            });
            tunnels.len() - 1
        });
        tunnels[at].tunnel = Some(tunnel);
    }
    tunnels
}

impl Tunnel<'_> {
    /// Source of its keys, if it is known.
    pub(super) fn source(&self) -> Option<&str> {
        self.tunnel.map(|tunnel| &*tunnel.source)
    }

    /// Why the key manager says that it is where it is.
    pub(super) fn why(&self) -> Option<&str> {
        self.tunnel?.why.as_deref()
    }

    /// Whether it leaves in clear or drops because it says so.
    fn protects(&self) -> bool {
        self.policy
            .is_none_or(|policy| matches!(policy.action, Action::Protect { .. }))
    }

    fn place(&self) -> Option<Place> {
        self.tunnel.map(|tunnel| tunnel.place)
    }

    /// Whether the datapath has SAs for it that live.
    fn is_served_by_datapath(&self) -> bool {
        self.policy
            .is_some_and(|policy| policy.protected_by == "culvert")
    }

    /// Whether the kernel's IPsec serves it.
    pub(super) fn is_with_kernel(&self) -> bool {
        self.protects() && self.place() == Some(Place::Kernel)
    }

    /// Whether packets are dropped that should go.
    pub(super) fn is_blocked(&self) -> bool {
        if !self.protects() {
            return false;
        }
        match self.place() {
            Some(Place::Kernel) => false,
            Some(Place::Nobody) => true,
            Some(Place::Culvert) | None => self.policy.is_some() && !self.is_served_by_datapath(),
        }
    }

    /// Whether it waits for the first packet, as it should.
    pub(super) fn waits(&self) -> bool {
        let trap = self.tunnel.is_some_and(|tunnel| tunnel.trap);
        let lacks_sas = match self.policy {
            Some(policy) => {
                policy.blocked == 0
                    && matches!(&policy.action, Action::Protect { outbound, inbound }
                        if outbound.is_none() || inbound.is_empty())
            }
            None => self.why().is_none(),
        };
        trap && lacks_sas && self.is_blocked()
    }

    /// Whether the one that serves it is one that its mode forbids.
    pub(super) fn is_misplaced(&self) -> bool {
        match self.mode() {
            Some(Mode::CulvertOnly) => self.is_with_kernel(),
            Some(Mode::KernelOnly) => {
                self.place() == Some(Place::Culvert) && self.is_served_by_datapath()
            }
            Some(Mode::PreferCulvert) | None => false,
        }
    }

    /// Who may serve it; `None` if it does not protect.
    pub(super) fn mode(&self) -> Option<Mode> {
        let tunnel = self.tunnel.filter(|_| self.protects())?;
        Some(tunnel.mode)
    }

    /// Who protects it, in words.
    pub(super) fn protected_by(&self) -> String {
        if self.waits() {
            return "none (waits for a packet)".to_owned();
        }
        let because = |what: &str| match self.why() {
            Some(why) => format!("{what} ({why})"),
            None => what.to_owned(),
        };
        match (self.place(), self.policy) {
            (_, Some(policy)) if !self.protects() => policy.protected_by.clone(),
            (Some(Place::Kernel), _) => because("kernel"),
            (Some(Place::Nobody), _) => match self.why() {
                Some(why) => format!("none ({why}; dropping)"),
                None => "none (dropping)".to_owned(),
            },
            (_, Some(policy)) => policy.protected_by.clone(),
            // It may be on the way to the datapath, or the datapath does not answer.
            (_, None) => "? (the datapath does not say)".to_owned(),
        }
    }
}

//! What charon hears: lifetimes that are reached, peers that have moved, traps that have a packet.

use culvert_bridge::Event;
use culvert_bridge::records::{Expired, Moved};
use culvert_proto::event;
use culvert_proto::sa::{Direction, SaId};

use super::{Charon, Installed};

impl Charon {
    /// Passes on what the datapath tells; false: it is not about anything of charon's.
    pub(crate) fn hear(&mut self, event: &event::Event) -> bool {
        let told = match event {
            event::Event::Expired { sa, hard, .. } => {
                let Some(sa) = self.sas.get_mut(sa) else {
                    return false;
                };
                // What charon has removed is nothing to it.
                if sa.leaves.is_some() {
                    return true;
                }
                // A datapath that has started again says it again.
                (sa.reached.is_none_or(|before| *hard && !before)).then(|| {
                    sa.reached = Some(*hard);
                    expired(sa, *hard)
                })
            }
            event::Event::Moved { sa, address, port } => {
                if !self.sas.contains_key(sa) {
                    return false;
                }
                Some(Event::Moved(Moved {
                    spi: sa.spi.get(),
                    destination: sa.destination,
                    remote: (*address, *port).into(),
                }))
            }
            event::Event::Wanted { selector } => {
                if let Some(reqid) = self.trap(selector) {
                    self.ask_for(reqid);
                }
                None
            }
            event::Event::Leaving => None,
        };
        if let Some(event) = told {
            self.tell(event);
        }
        true
    }

    /// The kernel has a packet for which there is no SA.
    pub(crate) fn acquire(&mut self, reqid: u32) {
        let trapped =
            |entry: &super::leaving::Entry| entry.policy.reqid == reqid && entry.leaves.is_none();
        let others = self.others.iter().any(|(policy, _)| policy.reqid == reqid);
        if others || self.policies.iter().any(trapped) {
            self.ask_for(reqid);
        }
    }

    /// Has charon replace an SA that both the kernel and the datapath have sealed under: each has a way of its own to
    /// make IVs of numbers.
    pub(crate) fn replace_soon(&mut self, id: &SaId) {
        if id.direction == Direction::Out {
            self.hear(&event::Event::Expired {
                sa: *id,
                hard: false,
                limit: event::Limit::Kernel,
            });
        }
    }

    /// Tells charon, if it is there. It may have just ended: what matters of it is told when it comes back.
    pub(super) fn tell(&self, event: Event) {
        let session = self.session.as_ref();
        if let Some(events) = session.and_then(|session| session.events.as_ref()) {
            let _ = events.send(event);
        }
    }
}

/// That an SA has reached a lifetime.
pub(super) fn expired(sa: &Installed, hard: bool) -> Event {
    Event::Expired(Expired {
        spi: sa.id().spi.get(),
        destination: sa.id().destination,
        hard,
    })
}

//! How much SAs were used, and when last: what charon asks for its lists, for DPD and for inactivity.

use culvert_bridge::records::PolicyName;
use culvert_bridge::{SaName, Usage};
use culvert_proto::sa::Direction;

use super::leaving::Entry;
use super::{Charon, Installed};
use crate::state::State;

impl Charon {
    pub(super) fn query_sa(&mut self, name: &SaName, state: &State) -> Option<Usage> {
        let sa = self.find(name).and_then(|id| self.sas.get_mut(&id))?;
        Some(look(sa, state))
    }

    /// When the SAs of a policy were used last.
    pub(super) fn query_policy(&mut self, name: &PolicyName, state: &State) -> Option<Usage> {
        let direction = match name.direction {
            culvert_bridge::Direction::Out => Direction::Out,
            _ => Direction::In,
        };
        let of_name = |entry: &&Entry| entry.policy.name == *name;
        let reqids: Vec<u32> = self
            .policies
            .iter()
            .filter(of_name)
            .map(|entry| entry.policy.reqid)
            .collect();
        if reqids.is_empty() {
            return None;
        }
        let sas = self
            .sas
            .values_mut()
            .filter(|sa| sa.id().direction == direction && reqids.contains(&sa.reqid));
        let last_use = sas.map(|sa| look(sa, state).last_use).max();
        Some(Usage {
            last_use: last_use.unwrap_or_default(),
            ..Usage::default()
        })
    }
}

/// How much an SA was used, and when last: to a second, as somebody looks more often.
pub(super) fn look(sa: &mut Installed, state: &State) -> Usage {
    let (packets, bytes) = state.counts(sa.state());
    if packets > sa.packets {
        sa.packets = packets;
        sa.last_use = crate::state::now() / 1000;
    }
    Usage {
        bytes,
        packets,
        last_use: sa.last_use,
    }
}

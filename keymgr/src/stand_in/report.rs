//! What is said of the kernel's part, and counted for it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::time::Instant;

use culvert_proto::policy::{Place, Selector};
use culvert_proto::sa::{Direction, SaId, Spi};
use culvert_proto::status::KernelSaStatus;
use culvert_state::layout::both;
use log::info;

use super::hands::note;
use super::{Held, StandIn};
use crate::kernel::Numbers;
use crate::shared::Shared;

impl StandIn {
    /// Says in the status what is where.
    pub(crate) fn tell(
        &mut self,
        shared: &Shared,
        mut places: BTreeMap<Selector, (Place, Option<String>)>,
        moved: usize,
        returned: Vec<SaId>,
        began: Instant,
    ) {
        if moved > 0 {
            self.handovers.to_kernel += 1;
        }
        if !returned.is_empty() {
            self.handovers.to_culvert += 1;
        }
        if moved > 0 || !returned.is_empty() {
            let took = began.elapsed();
            self.handovers.last_milliseconds = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            info!(
                "SAs to the kernel: {moved}, back from it: {}, in {took:?}",
                returned.len()
            );
        }
        if !self.refused.is_empty() {
            for (place, why) in places.values_mut() {
                if *place == Place::Kernel {
                    // Which policy it is of, the text says by its SA.
                    let first = self.refused.values().next().cloned();
                    *why = why
                        .take()
                        .into_iter()
                        .chain(first)
                        .reduce(|a, b| a + "; " + &b);
                }
            }
        }
        let mut inner = shared.lock();
        inner.kernel.problem = self.ready.clone().err();
        inner.kernel.places = places;
        inner.kernel.refused = self.refused.clone();
        inner.kernel.handovers = self.handovers;
        inner.kernel.returned.extend(returned);
    }

    /// The SAs that the kernel serves.
    pub(crate) fn status(&mut self) -> Vec<KernelSaStatus> {
        let Some(kernel) = self.kernel.as_mut() else {
            return Vec::new();
        };
        let found = kernel.sas().unwrap_or_default().into_iter();
        found
            .filter_map(|found| {
                let sa = &self
                    .held
                    .get(&id_of(&self.held, found.spi, found.destination)?)?
                    .sa;
                let progress = found.progress(sa.id.direction);
                Some(KernelSaStatus {
                    direction: sa.id.direction,
                    spi: found.spi,
                    source: sa.source,
                    destination: found.destination,
                    algorithm: sa.algorithm.to_string(),
                    packets: progress.packets,
                    bytes: progress.bytes,
                    sequence: match &progress.numbers {
                        Numbers::Sent(last) => *last,
                        Numbers::Received(window) => window.highest,
                    },
                })
            })
            .collect()
    }

    /// Notes how much the kernel's SAs were used: all of them.
    pub(crate) fn count(&mut self) {
        if self.held.is_empty() {
            return;
        }
        let Some(kernel) = self.kernel.as_mut() else {
            return;
        };
        let Ok(found) = kernel.sas() else {
            return;
        };
        for found in found {
            let id = id_of(&self.held, found.spi, found.destination);
            let held = id.and_then(|id| self.held.get(&id));
            if let Some(held) = held
                && let Some(words) = self.words(held.state)
            {
                note(&words, &found.progress(held.sa.id.direction));
            }
        }
    }

    /// Notes how much one SA was used, if the kernel has it.
    pub(crate) fn count_one(&mut self, id: &SaId) {
        let Some(state) = self.held.get(id).map(|held| held.state) else {
            return;
        };
        let progress = self.kernel.as_mut().map(|kernel| kernel.read_sa(id));
        if let Some(Ok(Some(progress))) = progress
            && let Some(words) = self.words(state)
        {
            note(&words, &progress);
        }
    }

    /// A lifetime was reached in the kernel, of which SA of ours.
    pub(crate) fn expired(&mut self, spi: Spi, destination: IpAddr, hard: bool) -> Option<SaId> {
        let id = id_of(&self.held, spi, destination)?;
        let words = self.words(self.held.get(&id)?.state)?;
        let reached = if hard { both::EXPIRED } else { both::EXPIRING };
        words[both::STATE].fetch_max(reached, Ordering::Relaxed);
        Some(id)
    }

    /// The SA of ours that the kernel has under that name.
    pub(crate) fn find_id(&self, spi: Spi, destination: IpAddr) -> Option<SaId> {
        id_of(&self.held, spi, destination)
    }
}

/// The kernel knows no directions.
fn id_of(held: &BTreeMap<SaId, Held>, spi: Spi, destination: IpAddr) -> Option<SaId> {
    let ids = [Direction::In, Direction::Out].map(|direction| SaId {
        direction,
        spi,
        destination,
    });
    ids.into_iter().find(|id| held.contains_key(id))
}

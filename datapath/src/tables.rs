//! The SAD and the SPD as workers read them: an immutable snapshot, built from the key manager's records
//! and handed to each worker whole. Nothing in it is ever locked or changed.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_esp::sa::{Selector, address};
use culvert_esp::{Backend, InboundSa, OutboundSa, SaError};
use culvert_packet::headers::Address;
use culvert_packet::maps::{PeerKey, SpiKey};
use culvert_proto::message::Update;
use culvert_proto::sa::{Direction, PolicyId, PolicySpec, SaId, SaSpec, Spi, StateRef};
use culvert_state::Words;
use hashbrown::{HashMap, HashSet};

/// Where the outbound SA for a packet stands in [`Tables::outbound`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// The SA of that index.
    Sa(u32),
    /// The policy says protect, but there is no SA.
    NoSa,
    /// No policy.
    NoPolicy,
}

/// One snapshot.
#[derive(Debug, Default)]
pub struct Tables {
    policies: HashMap<(Address, Address), Option<u32>>,
    outbound: Vec<Arc<OutboundSa>>,
    by_spi: HashMap<SpiKey, u32>,
    inbound: Vec<Arc<InboundSa>>,
}

impl Tables {
    /// The SA that a packet from `local` to `remote` leaves under.
    #[inline]
    #[must_use]
    pub fn lookup_outbound(&self, local: Address, remote: Address) -> Outbound {
        match self.policies.get(&(local, remote)) {
            Some(Some(index)) => Outbound::Sa(*index),
            Some(None) => Outbound::NoSa,
            None => Outbound::NoPolicy,
        }
    }

    /// Index of the SA that a packet with `spi` to `destination` came under.
    #[inline]
    #[must_use]
    pub fn lookup_inbound(&self, spi: u32, destination: Address) -> Option<u32> {
        self.by_spi.get(&SpiKey { destination, spi }).copied()
    }

    /// The outbound SA of an index that this snapshot gave.
    #[inline]
    #[must_use]
    pub fn outbound(&self, index: u32) -> Option<&OutboundSa> {
        self.outbound.get(index as usize).map(AsRef::as_ref)
    }

    /// The inbound SA of an index that this snapshot gave.
    #[inline]
    #[must_use]
    pub fn inbound(&self, index: u32) -> Option<&InboundSa> {
        self.inbound.get(index as usize).map(AsRef::as_ref)
    }
}

/// The records as the key manager sent them, with the SAs compiled; from which snapshots are made.
#[derive(Clone, Debug, Default)]
pub struct Database {
    sas: HashMap<SaId, Entry>,
    policies: HashMap<PolicyId, PolicySpec>,
    backend: Backend,
}

#[derive(Clone, Debug)]
struct Entry {
    spec: Arc<SaSpec>,
    compiled: Compiled,
}

#[derive(Clone, Debug)]
enum Compiled {
    Outbound(Arc<OutboundSa>),
    Inbound(Arc<InboundSa>),
    /// An inbound SA that no policy names: nothing may come out of it, so it is not served.
    Unused,
}

/// Why an update is refused.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// An SA cannot be compiled.
    #[error(transparent)]
    Sa(#[from] SaError),
    /// An SA's state is not where the key manager says.
    #[error("{id} refused: {problem}")]
    State {
        /// Which SA.
        id: SaId,
        /// What is wrong.
        problem: String,
    },
    /// A policy names an SA that is not there.
    #[error("policy {local} to {remote} refused: there is no SA {spi} {direction}")]
    MissingSa {
        /// The policy's local address.
        local: IpAddr,
        /// The policy's remote address.
        remote: IpAddr,
        /// The SPI.
        spi: Spi,
        /// The direction.
        direction: Direction,
    },
    /// Two policies name the same inbound SA.
    #[error("policy {local} to {remote} refused: SA {spi} in belongs to another policy")]
    SharedSa {
        /// The policy's local address.
        local: IpAddr,
        /// The policy's remote address.
        remote: IpAddr,
        /// The SPI.
        spi: Spi,
    },
}

impl Database {
    /// An empty database whose SAs use `backend`.
    #[must_use]
    pub fn new(backend: Backend) -> Self {
        Self {
            backend,
            ..Self::default()
        }
    }

    /// The database after `update`; this one stays as it is. `words` finds an SA's state.
    ///
    /// # Errors
    /// What in the update is wrong; then nothing has changed.
    pub fn updated(
        &self,
        update: Update,
        words: impl Fn(StateRef) -> Result<Words, String>,
    ) -> Result<Self, UpdateError> {
        let mut next = if update.reset {
            Self::new(self.backend)
        } else {
            self.clone()
        };
        for id in &update.remove_sas {
            next.sas.remove(id);
        }
        for id in &update.remove_policies {
            next.policies.remove(id);
        }
        for spec in update.add_sas {
            let entry = Entry {
                spec: Arc::new(spec),
                compiled: Compiled::Unused,
            };
            next.sas.insert(entry.spec.id, entry);
        }
        for policy in update.add_policies {
            next.policies.insert(policy.id(), policy);
        }
        next.compile(self, words)?;
        Ok(next)
    }

    /// Compiles the SAs, keeping those that `before` has compiled from the same record for the same
    /// selector: their counters and windows are in shared words, but the key schedule costs.
    fn compile(
        &mut self,
        before: &Self,
        words: impl Fn(StateRef) -> Result<Words, String>,
    ) -> Result<(), UpdateError> {
        let mut selectors: HashMap<SaId, Selector> = HashMap::new();
        for policy in self.policies.values() {
            let (local, remote) = (policy.local, policy.remote);
            for &spi in &policy.inbound {
                let id = inbound_id(spi, local);
                let (direction, selector) = (Direction::In, Selector::new(remote, local));
                if !self.sas.contains_key(&id) {
                    return Err(UpdateError::MissingSa {
                        local,
                        remote,
                        spi,
                        direction,
                    });
                }
                if selectors.insert(id, selector).is_some() {
                    return Err(UpdateError::SharedSa { local, remote, spi });
                }
            }
            if let Some(spi) = policy.outbound {
                let direction = Direction::Out;
                if !self.sas.contains_key(&outbound_id(spi, remote)) {
                    return Err(UpdateError::MissingSa {
                        local,
                        remote,
                        spi,
                        direction,
                    });
                }
            }
        }
        for (id, entry) in &mut self.sas {
            let state = || {
                words(entry.spec.state).map_err(|problem| UpdateError::State { id: *id, problem })
            };
            let old = before
                .sas
                .get(id)
                .filter(|old| old.spec == entry.spec)
                .map(|old| &old.compiled);
            entry.compiled =
                match (id.direction, selectors.get(id), old) {
                    (Direction::Out, _, Some(old @ Compiled::Outbound(_))) => old.clone(),
                    (Direction::Out, _, _) => Compiled::Outbound(Arc::new(OutboundSa::new(
                        &entry.spec,
                        state()?,
                        self.backend,
                    )?)),
                    (Direction::In, Some(selector), Some(Compiled::Inbound(sa)))
                        if sa.selector() == *selector =>
                    {
                        Compiled::Inbound(Arc::clone(sa))
                    }
                    (Direction::In, Some(selector), _) => Compiled::Inbound(Arc::new(
                        InboundSa::new(&entry.spec, *selector, state()?, self.backend)?,
                    )),
                    (Direction::In, None, _) => Compiled::Unused,
                };
        }
        Ok(())
    }

    /// The snapshot for workers.
    #[must_use]
    pub fn snapshot(&self) -> Tables {
        let mut tables = Tables::default();
        let mut indices = HashMap::new();
        for (id, entry) in &self.sas {
            match &entry.compiled {
                Compiled::Outbound(sa) => {
                    indices.insert(*id, index(&tables.outbound));
                    tables.outbound.push(Arc::clone(sa));
                }
                Compiled::Inbound(sa) => {
                    let key = SpiKey {
                        destination: address(id.destination),
                        spi: id.spi.get(),
                    };
                    tables.by_spi.insert(key, index(&tables.inbound));
                    tables.inbound.push(Arc::clone(sa));
                }
                Compiled::Unused => {}
            }
        }
        for policy in self.policies.values() {
            let sa = policy
                .outbound
                .and_then(|spi| indices.get(&outbound_id(spi, policy.remote)).copied());
            let selector = (address(policy.local), address(policy.remote));
            tables.policies.insert(selector, sa);
        }
        tables
    }

    /// Keys of the `PEERS` map: whom plaintext Geneve must not go to, nor come from.
    #[must_use]
    pub fn peers(&self) -> HashSet<PeerKey> {
        let remotes = self.policies.values().map(|policy| address(policy.remote));
        remotes.map(|remote| PeerKey { remote }).collect()
    }

    /// Keys of the `SPIS` map: the SAs that the workers open.
    #[must_use]
    pub fn spis(&self) -> HashSet<SpiKey> {
        self.sas
            .iter()
            .filter(|(_, entry)| matches!(entry.compiled, Compiled::Inbound(_)))
            .map(|(id, _)| SpiKey {
                destination: address(id.destination),
                spi: id.spi.get(),
            })
            .collect()
    }

    /// The SAs for a report: record, packets, bytes, sequence number.
    pub fn report(&self) -> impl Iterator<Item = (&SaSpec, (u64, u64), u64)> {
        self.sas.values().map(|entry| {
            let (totals, sequence) = match &entry.compiled {
                Compiled::Outbound(sa) => (sa.totals(), sa.leased()),
                Compiled::Inbound(sa) => (sa.totals(), sa.highest()),
                Compiled::Unused => ((0, 0), 0),
            };
            (&*entry.spec, totals, sequence)
        })
    }

    /// The policies.
    pub fn policies(&self) -> impl Iterator<Item = &PolicySpec> {
        self.policies.values()
    }
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a message bounds the number of SAs far below 2^32"
)]
fn index<T>(list: &[T]) -> u32 {
    list.len() as u32
}

fn inbound_id(spi: Spi, local: IpAddr) -> SaId {
    SaId {
        direction: Direction::In,
        spi,
        destination: local,
    }
}

fn outbound_id(spi: Spi, remote: IpAddr) -> SaId {
    SaId {
        direction: Direction::Out,
        spi,
        destination: remote,
    }
}

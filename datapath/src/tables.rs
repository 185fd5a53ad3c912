//! The SAD and the SPD as workers read them: an immutable snapshot, built from the key manager's records
//! and handed to each worker whole. Nothing in it is ever locked or changed.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use culvert_esp::sa::address;
use culvert_esp::{Choice, InboundSa, OutboundSa, SaError};
use culvert_packet::headers::Address;
use culvert_packet::maps::SpiKey;
use culvert_packet::reason::DropReason;
use culvert_proto::message::Update;
use culvert_proto::sa::{Action, Direction, PolicySpec, SaId, SaSpec, Selector, StateRef};
use culvert_state::Words;
use culvert_state::layout::both;
use hashbrown::{HashMap, HashSet};

use crate::spd::{Query, Spd};

/// What the SPD says of a packet on its way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outbound {
    /// Seal it under the SA of that index.
    Sa(u32),
    /// Let it out in clear.
    Bypass,
    /// Drop it.
    Drop(DropReason),
}

/// One snapshot.
#[derive(Debug, Default)]
pub struct Tables {
    spd: Spd,
    policies: Vec<Policy>,
    outbound: Vec<Arc<OutboundSa>>,
    by_spi: HashMap<SpiKey, u32>,
    inbound: Vec<Arc<InboundSa>>,
    /// For each inbound SA the outbound ones between the same ends: what follows a peer that moves. Empty unless in UDP.
    peers: Vec<Box<[u32]>>,
}

/// What is done with the packets of a policy, SAs by their index.
#[derive(Debug)]
enum Policy {
    Protect {
        outbound: Option<u32>,
        /// Ascending.
        inbound: Box<[u32]>,
        /// Packets that found no outbound SA.
        blocked: Arc<AtomicU64>,
    },
    Bypass,
    Discard,
}

impl Tables {
    #[inline]
    fn policy(&self, query: &Query) -> Option<&Policy> {
        let index = self.spd.lookup(query)?;
        self.policies.get(index as usize)
    }

    // RFC 4303 §3.3.1 [3.3.1-lookup]
    /// What becomes of a packet from this host.
    #[inline]
    #[must_use]
    pub fn lookup_outbound(&self, query: &Query) -> Outbound {
        match self.policy(query) {
            Some(Policy::Protect {
                outbound: Some(index),
                ..
            }) => match self.outbound(*index) {
                // A policy may be for more hosts than its SA is.
                Some(sa) if sa.is_between(&query.local, &query.remote) => Outbound::Sa(*index),
                _ => Outbound::Drop(DropReason::NoSa),
            },
            Some(Policy::Protect {
                outbound: None,
                blocked,
                ..
            }) => {
                blocked.fetch_add(1, Ordering::Relaxed);
                Outbound::Drop(DropReason::NoSa)
            }
            Some(Policy::Bypass) => Outbound::Bypass,
            Some(Policy::Discard) => Outbound::Drop(DropReason::PolicyDiscard),
            None => Outbound::Drop(DropReason::NoPolicy),
        }
    }

    /// Whether a packet that came out of the inbound SA of an index may go on (RFC 4301 §5.2 step 4): the policy
    /// that counts for it must be one that the SA is for.
    ///
    /// # Errors
    /// The reason for which it is to be dropped.
    #[inline]
    pub fn admit(&self, query: &Query, sa: u32) -> Result<(), DropReason> {
        match self.policy(query) {
            Some(Policy::Protect { inbound, .. }) if inbound.binary_search(&sa).is_ok() => Ok(()),
            Some(Policy::Discard) => Err(DropReason::PolicyDiscard),
            _ => Err(DropReason::PolicyMismatch),
        }
    }

    /// Whether a packet that came in clear may go on.
    ///
    /// # Errors
    /// The reason for which it is to be dropped.
    #[inline]
    pub fn admit_clear(&self, query: &Query) -> Result<(), DropReason> {
        match self.policy(query) {
            Some(Policy::Bypass) => Ok(()),
            Some(Policy::Protect { .. }) => Err(DropReason::PlaintextFromPeer),
            Some(Policy::Discard) => Err(DropReason::PolicyDiscard),
            None => Err(DropReason::NoPolicy),
        }
    }

    // RFC 4303 [2.1-unicast-lookup]
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

    /// The outbound SAs in UDP to the peer of the inbound SA of an index.
    #[inline]
    pub fn peers(&self, index: u32) -> impl Iterator<Item = &OutboundSa> {
        let peers = self.peers.get(index as usize).into_iter().flatten();
        peers.filter_map(|peer| self.outbound(*peer))
    }
}

/// The records as the key manager sent them, with the SAs compiled; from which snapshots are made.
#[derive(Clone, Debug, Default)]
pub struct Database {
    sas: HashMap<SaId, Entry>,
    policies: HashMap<Selector, Installed>,
    choice: Choice,
}

#[derive(Clone, Debug)]
struct Entry {
    spec: Arc<SaSpec>,
    compiled: Compiled,
}

/// A policy, and how many packets found no outbound SA there.
#[derive(Clone, Debug)]
pub struct Installed {
    /// The policy.
    pub spec: PolicySpec,
    /// Packets; it goes on when the policy is replaced.
    pub blocked: Arc<AtomicU64>,
}

/// A compiled SA.
#[derive(Clone, Debug)]
pub enum Compiled {
    /// Outbound.
    Outbound(Arc<OutboundSa>),
    /// Inbound.
    Inbound(Arc<InboundSa>),
    /// An inbound SA that no policy names: nothing may come out of it, so it is not served.
    Unused,
}

impl Compiled {
    /// The SA's state; an SA that is not served has none.
    #[must_use]
    pub fn state(&self) -> Option<&Words> {
        match self {
            Self::Outbound(sa) => Some(sa.state()),
            Self::Inbound(sa) => Some(sa.state()),
            Self::Unused => None,
        }
    }
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
    /// A policy names an SA that is not there, or cannot serve it.
    #[error("policy {policy} refused: {problem} {sa}")]
    Named {
        /// The policy.
        policy: Box<Selector>,
        /// The SA.
        sa: SaId,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Database {
    /// An empty database whose SAs use the backends of `choice`.
    #[must_use]
    pub fn new(choice: Choice) -> Self {
        Self {
            choice,
            ..Self::default()
        }
    }

    /// The AEAD backends of its SAs.
    #[must_use]
    pub fn choice(&self) -> Choice {
        self.choice
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
            Self::new(self.choice)
        } else {
            self.clone()
        };
        for id in &update.remove_sas {
            next.sas.remove(id);
        }
        for selector in &update.remove_policies {
            next.policies.remove(selector);
        }
        for spec in update.add_sas {
            let entry = Entry {
                spec: Arc::new(spec),
                compiled: Compiled::Unused,
            };
            next.sas.insert(entry.spec.id, entry);
        }
        for spec in update.add_policies {
            let before = self.policies.get(&spec.selector);
            let blocked = before.map(|policy| Arc::clone(&policy.blocked));
            let policy = Installed {
                blocked: blocked.unwrap_or_default(),
                spec,
            };
            next.policies.insert(policy.spec.selector.clone(), policy);
        }
        let served = next.served()?;
        next.compile(self, &served, words)?;
        Ok(next)
    }

    /// The inbound SAs that policies name.
    fn served(&self) -> Result<HashSet<SaId>, UpdateError> {
        let mut served = HashSet::new();
        for policy in self.policies() {
            let Action::Protect { outbound, inbound } = &policy.action else {
                continue;
            };
            let selector = &policy.selector;
            let named = |sa: &SaId, direction| {
                let problem = match self.sas.get(sa) {
                    None => "there is no",
                    Some(entry) => {
                        let (local, remote) = match sa.direction {
                            Direction::Out => (entry.spec.source, sa.destination),
                            Direction::In => (sa.destination, entry.spec.source),
                        };
                        let between =
                            selector.local.contains(&local) && selector.remote.contains(&remote);
                        if sa.direction == direction && between {
                            return Ok(());
                        }
                        "it is not between the ends of"
                    }
                };
                Err(UpdateError::Named {
                    policy: Box::new(selector.clone()),
                    sa: *sa,
                    problem,
                })
            };
            for sa in inbound {
                named(sa, Direction::In)?;
                served.insert(*sa);
            }
            if let Some(sa) = outbound {
                named(sa, Direction::Out)?;
            }
        }
        Ok(served)
    }

    /// Compiles the SAs, keeping those that `before` has compiled from the same record: their counters and
    /// windows are in shared words, but the key schedule costs.
    fn compile(
        &mut self,
        before: &Self,
        served: &HashSet<SaId>,
        words: impl Fn(StateRef) -> Result<Words, String>,
    ) -> Result<(), UpdateError> {
        for (id, entry) in &mut self.sas {
            let spec = &entry.spec;
            let state =
                || words(spec.state).map_err(|problem| UpdateError::State { id: *id, problem });
            let backend = self.choice.backend(spec.cipher.algorithm());
            let old = before
                .sas
                .get(id)
                .filter(|old| old.spec == *spec)
                .map(|old| &old.compiled);
            entry.compiled = match (id.direction, served.contains(id), old) {
                (Direction::In, false, _) => Compiled::Unused,
                (_, _, Some(old @ (Compiled::Outbound(_) | Compiled::Inbound(_)))) => old.clone(),
                (Direction::Out, _, _) => {
                    Compiled::Outbound(Arc::new(OutboundSa::new(spec, state()?, backend)?))
                }
                (Direction::In, true, _) => {
                    Compiled::Inbound(Arc::new(InboundSa::new(spec, state()?, backend)?))
                }
            };
        }
        Ok(())
    }

    /// The snapshot for workers.
    #[must_use]
    pub fn snapshot(&self) -> Tables {
        let mut tables = Tables::default();
        let mut indices = HashMap::new();
        let peers = self.peers();
        let mut inbound = Vec::new();
        for (id, entry) in &self.sas {
            match &entry.compiled {
                Compiled::Outbound(sa) => {
                    indices.insert(*id, index(&tables.outbound));
                    tables.outbound.push(Arc::clone(sa));
                }
                Compiled::Inbound(sa) => {
                    indices.insert(*id, index(&tables.inbound));
                    tables.by_spi.insert(spi_key(id), index(&tables.inbound));
                    tables.inbound.push(Arc::clone(sa));
                    inbound.push(&entry.spec);
                }
                Compiled::Unused => {}
            }
        }
        for spec in inbound {
            let there = flow(spec, true).and_then(|flow| peers.get(&flow));
            let there = there.into_iter().flatten();
            let there = there.filter_map(|id| indices.get(id).copied()).collect();
            tables.peers.push(there);
        }
        let policies: Vec<_> = self.installed().collect();
        tables.spd = Spd::new(policies.iter().map(|policy| &policy.spec));
        for Installed { spec, blocked } in policies {
            let policy = match &spec.action {
                Action::Bypass => Policy::Bypass,
                Action::Discard => Policy::Discard,
                Action::Protect { outbound, inbound } => {
                    let outbound = outbound.and_then(|id| indices.get(&id).copied());
                    let mut inbound: Box<[u32]> = inbound
                        .iter()
                        .filter_map(|id| indices.get(id).copied())
                        .collect();
                    inbound.sort_unstable();
                    Policy::Protect {
                        outbound,
                        inbound,
                        blocked: Arc::clone(blocked),
                    }
                }
            };
            tables.policies.push(policy);
        }
        tables
    }

    /// The outbound SAs in UDP, by their ends.
    fn peers(&self) -> HashMap<Flow, Vec<SaId>> {
        let mut peers: HashMap<Flow, Vec<SaId>> = HashMap::new();
        for entry in self.sas.values() {
            if let Compiled::Outbound(_) = entry.compiled
                && let Some(flow) = flow(&entry.spec, false)
            {
                peers.entry(flow).or_default().push(entry.spec.id);
            }
        }
        peers
    }

    /// Whether an SA is there, and has not reached the end of its life.
    #[must_use]
    pub fn is_alive(&self, id: &SaId) -> bool {
        let state = self.sas.get(id).and_then(|entry| entry.compiled.state());
        state.is_some_and(|state| state[both::STATE].load(Ordering::Relaxed) != both::EXPIRED)
    }

    /// Keys of the `SPIS` map: the SAs that the workers open.
    #[must_use]
    pub fn spis(&self) -> HashSet<SpiKey> {
        self.sas
            .iter()
            .filter(|(_, entry)| matches!(entry.compiled, Compiled::Inbound(_)))
            .map(|(id, _)| spi_key(id))
            .collect()
    }

    /// The SAs: as they were given, and compiled.
    pub fn sas(&self) -> impl Iterator<Item = (&Arc<SaSpec>, &Compiled)> {
        self.sas
            .values()
            .map(|entry| (&entry.spec, &entry.compiled))
    }

    /// The policies.
    pub fn policies(&self) -> impl Iterator<Item = &PolicySpec> + Clone {
        self.installed().map(|policy| &policy.spec)
    }

    /// The policies with their counters.
    pub fn installed(&self) -> impl Iterator<Item = &Installed> + Clone {
        self.policies.values()
    }
}

/// Both ends of an SA in UDP, the sender's first.
type Flow = [(IpAddr, u16); 2];

/// The ends of an SA, if it is in UDP; `reversed`, those of an SA of the other direction.
fn flow(spec: &SaSpec, reversed: bool) -> Option<Flow> {
    let ports = spec.encapsulation?;
    let from = (spec.source, ports.source_port);
    let to = (spec.id.destination, ports.destination_port);
    Some(if reversed { [to, from] } else { [from, to] })
}

#[expect(
    clippy::cast_possible_truncation,
    reason = "a message bounds the number of SAs far below 2^32"
)]
fn index<T>(list: &[T]) -> u32 {
    list.len() as u32
}

fn spi_key(id: &SaId) -> SpiKey {
    SpiKey {
        destination: address(id.destination),
        spi: id.spi.get(),
    }
}

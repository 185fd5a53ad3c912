//! The kernel's IPsec in the datapath's place: SAs go there and come back, with their numbers.
//!
//! Whoever takes an SA over begins where the one before it was stopped. The datapath is stopped by a fence in the SA's
//! state ([`culvert_state::handover`]): from then on no worker gets another number or accepts another packet, even one
//! of a process that hangs and wakes up later. The kernel is stopped by removing its SA, of which it says then how
//! far it was. An SA's state says whether the kernel may have used numbers that nobody else knows
//! ([`Holder::Kernel`]): if such an SA is not in the kernel any more, its key is lost.

mod hands;
mod report;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::Path;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use culvert_proto::sa::{Direction, SaId, Spi, StateRef};
use culvert_proto::status::Handovers;
use culvert_state::handover::{self, Holder};
use culvert_state::layout::{both, outbound};
use culvert_state::region::Fingerprint;
use culvert_state::{Region, Words};
use log::{info, warn};

use self::hands::{go_on, keep, note, stop};
use crate::kernel::{Kernel, KernelPolicy, KernelSa, Progress};
use crate::keys;
use crate::place::KernelPart;
use crate::spis::Spis;
use crate::wanted::Wanted;

/// How often a kernel that could not serve is asked again: a module may have been loaded.
const AGAIN: Duration = Duration::from_secs(10);

/// How long after the steering was turned no packet is on its way through the kernel any more.
const SETTLE: Duration = Duration::from_millis(3);

/// An SA in the kernel.
#[derive(Debug)]
struct Held {
    sa: KernelSa,
    state: StateRef,
}

/// What of ours is in the kernel.
#[derive(Debug)]
pub(crate) struct StandIn {
    kernel: Option<Kernel>,
    ready: Result<(), String>,
    asked: Instant,
    region: Region,
    spis: Spis,
    held: BTreeMap<SaId, Held>,
    /// What a key manager before this one has left there, with the state of its key.
    left: BTreeMap<(Spi, IpAddr), (Fingerprint, StateRef)>,
    policies: BTreeSet<KernelPolicy>,
    refused: BTreeMap<SaId, String>,
    handovers: Handovers,
}

impl StandIn {
    /// Takes up what a key manager before this one has left in the kernel, whose state `find` knows by their keys.
    pub(crate) fn new(
        region: Region,
        pins: &Path,
        find: impl Fn(&Fingerprint) -> Option<StateRef>,
    ) -> Self {
        let mut this = Self {
            kernel: None,
            ready: Err(String::new()),
            asked: Instant::now(),
            region,
            spis: Spis::new(pins),
            held: BTreeMap::new(),
            left: BTreeMap::new(),
            policies: BTreeSet::new(),
            refused: BTreeMap::new(),
            handovers: Handovers::default(),
        };
        this.ask();
        if let Err(problem) = this.find(find) {
            warn!("what the kernel has of ours is not known: {problem}");
        }
        this
    }

    fn find(&mut self, find: impl Fn(&Fingerprint) -> Option<StateRef>) -> Result<(), String> {
        let Some(kernel) = self.kernel.as_mut() else {
            return Ok(());
        };
        for found in kernel.sas().map_err(|error| error.to_string())? {
            let Some(fingerprint) = found.fingerprint else {
                continue;
            };
            if let Some(state) = find(&fingerprint) {
                let name = (found.spi, found.destination);
                self.left.insert(name, (fingerprint, state));
            }
        }
        self.policies = kernel
            .policies()
            .map_err(|error| error.to_string())?
            .into_iter()
            .collect();
        if !self.left.is_empty() || !self.policies.is_empty() {
            info!(
                "the kernel has {} SAs and {} policies of ours",
                self.left.len(),
                self.policies.len()
            );
        }
        Ok(())
    }

    fn ask(&mut self) {
        self.asked = Instant::now();
        if self.kernel.is_none() {
            match Kernel::open() {
                Ok(kernel) => self.kernel = Some(kernel),
                Err(error) => self.ready = Err(format!("no XFRM: {error}")),
            }
        }
        if let Some(kernel) = &mut self.kernel {
            // With the module for one version of IP the other's may be missing: that is seen when it is wanted.
            self.ready = kernel
                .probe(false)
                .or_else(|why| kernel.probe(true).map_err(|_| why));
        }
    }

    /// Whether the kernel can serve anything; if not, why.
    pub(crate) fn ready(&self) -> Result<(), String> {
        self.ready.clone()
    }

    /// Asks a kernel that could not serve again, now and then.
    pub(crate) fn look_again(&mut self) {
        if self.ready.is_err() && self.asked.elapsed() > AGAIN {
            self.ask();
        }
    }

    fn words(&self, state: StateRef) -> Option<Words> {
        self.region.words(state.offset, state.words).ok()
    }

    /// Gives the kernel what it does not have yet. Returns how many SAs it took over from the datapath.
    pub(crate) fn take_over(&mut self, part: &KernelPart) -> usize {
        self.refused.retain(|id, _| part.sas.contains_key(id));
        let mut moved = 0;
        // What comes in first, and its policies: what goes out may be answered at once.
        let (inbound, outbound): (Vec<_>, Vec<_>) = part
            .sas
            .iter()
            .partition(|(id, _)| id.direction == Direction::In);
        for (id, (sa, state)) in inbound.into_iter().chain(outbound) {
            match self.take_one(id, sa, *state) {
                Ok(from_datapath) => {
                    moved += usize::from(from_datapath);
                    self.refused.remove(id);
                }
                Err(problem) => {
                    if self.refused.insert(*id, problem.clone()) != Some(problem.clone()) {
                        warn!("{problem}");
                    }
                }
            }
        }
        let Some(kernel) = self.kernel.as_mut() else {
            return moved;
        };
        for policy in part.policies.difference(&self.policies.clone()) {
            match kernel.set_policy(policy) {
                Ok(()) => {
                    // It has taken the place of another one, if there was one of its name.
                    self.policies.retain(|other| other.name() != policy.name());
                    self.policies.insert(*policy);
                }
                Err(error) => warn!("{error}"),
            }
        }
        moved
    }

    /// Whether the SA was the datapath's.
    fn take_one(&mut self, id: &SaId, sa: &KernelSa, state: StateRef) -> Result<bool, String> {
        let words = self.words(state).ok_or("no state")?;
        let fingerprint = sa.fingerprint();
        if self.left.get(&(id.spi, id.destination)) == Some(&(fingerprint, state)) {
            info!("{id}: found in the kernel");
            self.left.remove(&(id.spi, id.destination));
            let sa = sa.clone();
            self.held.insert(*id, Held { sa, state });
            return Ok(false);
        }
        let mut before = None;
        if let Some(held) = self.held.get(id) {
            if held.sa == *sa {
                return Ok(false);
            }
            // Something of it has changed, such as its ends, or it is another.
            let same = held.sa.fingerprint() == fingerprint;
            let progress = self.take_from_kernel(id)?;
            before = same.then_some(progress);
        } else if handover::holder(&words) == Holder::Kernel
            && let Some(old) = self.holder_of(state)
        {
            // It has another end now, and so another name.
            before = Some(self.take_from_kernel(&old)?);
        }
        let kernel_only = is_counted_only(sa, state);
        let progress = match before {
            Some(progress) => progress.ok_or("the kernel does not have it any more")?,
            None if handover::holder(&words) == Holder::Kernel => {
                self.lose(&words);
                return Err(format!(
                    "{id}: the kernel had it, and does not have it any more; it needs a new key"
                ));
            }
            None if kernel_only => Progress::fresh(id.direction, sa.replay_window),
            None => stop(&words, id.direction, sa.replay_window),
        };
        handover::set_holder(&words, Holder::Kernel);
        let Some(kernel) = self.kernel.as_mut() else {
            return Err("no kernel".to_owned());
        };
        if let Err(error) = kernel.add_sa(sa, &progress) {
            handover::set_holder(&words, Holder::Culvert);
            if !kernel_only {
                go_on(&words, sa.replay_window, &progress);
            }
            return Err(error.to_string());
        }
        if id.direction == Direction::In {
            self.spis.leave_to_kernel(id);
        }
        let sa = sa.clone();
        self.held.insert(*id, Held { sa, state });
        Ok(!kernel_only && progress.packets > 0)
    }

    /// The name under which the kernel has the SA with this state.
    fn holder_of(&self, state: StateRef) -> Option<SaId> {
        let mut held = self.held.iter();
        held.find(|(_, held)| held.state == state)
            .map(|(id, _)| *id)
    }

    /// Takes an SA out of the kernel. `None`: it was gone.
    fn take_from_kernel(&mut self, id: &SaId) -> Result<Option<Progress>, String> {
        let Some(kernel) = self.kernel.as_mut() else {
            return Ok(None);
        };
        let taken = kernel.take_sa(id).map_err(|error| error.to_string())?;
        self.held.remove(id);
        Ok(taken.map(|taken| {
            if !taken.exact {
                warn!("{id}: how far the kernel was is known only roughly; numbers are left out");
            }
            taken.progress
        }))
    }

    /// Nobody knows what numbers were used: it has reached its end.
    fn lose(&self, words: &Words) {
        words[both::STATE].fetch_max(both::EXPIRED, Ordering::Relaxed);
    }

    /// Takes away from the kernel what is not its part, and lets the datapath go on with what it has. Returns which
    /// SAs went there.
    pub(crate) fn give_back(&mut self, part: &KernelPart, datapath: &Wanted) -> Vec<SaId> {
        let mut returned = Vec::new();
        // Policies first: what the datapath opens must not be asked for the kernel's SAs.
        let gone: Vec<_> = self.policies.difference(&part.policies).cloned().collect();
        for policy in gone {
            if let Some(kernel) = self.kernel.as_mut()
                && let Err(error) = kernel.delete_policy(&policy)
            {
                warn!("{error}");
            }
            self.policies.remove(&policy);
        }
        self.take_what_was_left(datapath);
        let gone: Vec<SaId> = self
            .held
            .keys()
            .filter(|id| !part.sas.contains_key(id))
            .copied()
            .collect();
        if gone.iter().any(|id| id.direction == Direction::In) {
            // The kernel may be opening packets that came before they were steered to the workers.
            std::thread::sleep(SETTLE);
        }
        for id in gone {
            match self.return_one(&id, datapath) {
                Ok(true) => returned.push(id),
                Ok(false) => {}
                Err(problem) => warn!("{problem}"),
            }
        }
        returned
    }

    /// What a key manager before this one has left in the kernel, and nobody wants there, is the datapath's, or kept for a
    /// static key that comes back.
    fn take_what_was_left(&mut self, datapath: &Wanted) {
        for ((spi, destination), (fingerprint, state)) in std::mem::take(&mut self.left) {
            let Some(words) = self.words(state) else {
                continue;
            };
            let direction = if words.len() == outbound::WORDS {
                Direction::Out
            } else {
                Direction::In
            };
            let id = SaId {
                direction,
                spi,
                destination,
            };
            let spec = datapath.sas.get(&id);
            let spec = spec.filter(|spec| keys::fingerprint(spec) == fingerprint);
            match self.take_from_kernel(&id) {
                Ok(Some(progress)) => {
                    note(&words, &progress);
                    match spec {
                        Some(spec) => go_on(&words, spec.replay_window, &progress),
                        None => keep(&words, &progress),
                    }
                    handover::set_holder(&words, Holder::Culvert);
                }
                Ok(None) => self.lose(&words),
                Err(problem) => warn!("{problem}"),
            }
        }
    }

    /// Whether it went to the datapath.
    fn return_one(&mut self, id: &SaId, datapath: &Wanted) -> Result<bool, String> {
        let Some(held) = self.held.get(id) else {
            return Ok(false);
        };
        let (sa, state) = (held.sa.clone(), held.state);
        // It may have another end now, and so another name.
        let wanted = datapath.sas.get(id).filter(|spec| spec.state == state);
        let wanted = wanted.or_else(|| datapath.sas.values().find(|spec| spec.state == state));
        let progress = self.take_from_kernel(id)?;
        let words = self.words(state).ok_or("no state")?;
        let Some(progress) = progress else {
            self.lose(&words);
            return Err(format!("{id}: the kernel does not have it any more"));
        };
        note(&words, &progress);
        if is_counted_only(&sa, state) {
            return Ok(false);
        }
        match wanted {
            Some(spec) => go_on(&words, spec.replay_window, &progress),
            // For a static key that comes back.
            None => keep(&words, &progress),
        }
        handover::set_holder(&words, Holder::Culvert);
        Ok(wanted.is_some())
    }

    /// Lets the datapath go on with SAs that a key manager before this one had stopped, and not handed over.
    pub(crate) fn recover(&mut self, datapath: &Wanted) {
        for (id, spec) in &datapath.sas {
            let Some(words) = self.words(spec.state) else {
                continue;
            };
            if self.held.contains_key(id) || !handover::is_fenced(&words) {
                continue;
            }
            if handover::holder(&words) == Holder::Kernel {
                self.lose(&words);
                let text = format!(
                    "{id}: the kernel had it, and does not have it any more; it needs a new key"
                );
                warn!("{text}");
                self.refused.insert(*id, text);
                continue;
            }
            let progress = stop(&words, id.direction, spec.replay_window);
            go_on(&words, spec.replay_window, &progress);
        }
    }

    /// How many SAs and policies are ours.
    pub(crate) fn count_ours(&self) -> usize {
        self.held.len() + self.left.len() + self.policies.len()
    }

    /// Removes everything of ours. Returns how many SAs and policies it was.
    pub(crate) fn clear(&mut self) -> usize {
        let count = self.count_ours();
        self.give_back(&KernelPart::default(), &Wanted::default());
        count
    }
}

/// Whether an SA has no window in its state, as only the kernel can serve it.
fn is_counted_only(sa: &KernelSa, state: StateRef) -> bool {
    sa.id.direction == Direction::In && state.words as usize == outbound::WORDS
}

//! The kernel's IPsec in the datapath's place: SAs go there and come back, with their numbers.
//!
//! Whoever takes an SA over begins where the one before it was stopped. The datapath is stopped by a fence in the SA's
//! state ([`culvert_state::handover`]): from then on no worker gets another number or accepts another packet, even one
//! of a process that hangs and wakes up later. The kernel is stopped by removing its SA, of which it says then how
//! far it was. An SA's state says whether the kernel may have used numbers that nobody else knows
//! ([`Holder::Kernel`]): if such an SA is not in the kernel any more, its key is lost.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use culvert_proto::policy::{Place, Selector};
use culvert_proto::sa::{Direction, SaId, SaSpec, StateRef};
use culvert_proto::status::{Handovers, KernelSaStatus};
use culvert_state::handover::{self, Holder};
use culvert_state::layout::{both, outbound};
use culvert_state::region::Fingerprint;
use culvert_state::{Region, Words};
use log::{info, warn};

use crate::kernel::{Kernel, KernelPolicy, KernelSa, Numbers, Progress};
use crate::keys;
use crate::place::KernelPart;
use crate::shared::Shared;
use crate::spis::Spis;
use crate::state::now;
use crate::wanted::Wanted;

/// How often a kernel that could not serve is asked again: a module may have been loaded.
const AGAIN: Duration = Duration::from_secs(10);

/// An SA in the kernel.
#[derive(Debug)]
struct Held {
    /// As it was installed; `None` if that was by a key manager before this one.
    sa: Option<KernelSa>,
    /// Its state, once it is known.
    state: Option<StateRef>,
    fingerprint: Fingerprint,
}

/// What of ours is in the kernel.
pub(crate) struct StandIn {
    kernel: Option<Kernel>,
    ready: Result<(), String>,
    asked: Instant,
    region: Region,
    spis: Spis,
    held: BTreeMap<SaId, Held>,
    policies: BTreeSet<KernelPolicy>,
    refused: BTreeMap<SaId, String>,
    handovers: Handovers,
}

impl StandIn {
    /// Takes up what a key manager before this one has left in the kernel, which `ours` knows by their keys.
    pub(crate) fn new(
        region: Region,
        pins: PathBuf,
        ours: impl Fn(&Fingerprint) -> bool,
    ) -> Self {
        let mut this = Self {
            kernel: None,
            ready: Err(String::new()),
            asked: Instant::now(),
            region,
            spis: Spis::new(pins),
            held: BTreeMap::new(),
            policies: BTreeSet::new(),
            refused: BTreeMap::new(),
            handovers: Handovers::default(),
        };
        this.ask();
        match &this.ready {
            Ok(()) => info!("kernel IPsec stands behind"),
            Err(why) => warn!("kernel IPsec cannot stand in: {why}"),
        }
        if let Err(problem) = this.find(ours) {
            warn!("what the kernel has of ours is not known: {problem}");
        }
        this
    }

    fn find(&mut self, ours: impl Fn(&Fingerprint) -> bool) -> Result<(), String> {
        let Some(kernel) = self.kernel.as_mut() else {
            return Ok(());
        };
        for found in kernel.sas().map_err(|error| error.to_string())? {
            if let Some(fingerprint) = found.fingerprint.filter(&ours) {
                let held = Held {
                    sa: None,
                    state: None,
                    fingerprint,
                };
                self.held.insert(found.id, held);
            }
        }
        self.policies = kernel
            .policies()
            .map_err(|error| error.to_string())?
            .into_iter()
            .collect();
        if !self.held.is_empty() || !self.policies.is_empty() {
            info!(
                "the kernel has {} SAs and {} policies of ours",
                self.held.len(),
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
            self.ready = kernel.probe();
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
        for policy in part.policies.difference(&self.policies) {
            if let Err(error) = kernel.set_policy(policy) {
                warn!("{error}");
            }
        }
        self.policies.extend(part.policies.iter().cloned());
        moved
    }

    /// Whether the SA was the datapath's.
    fn take_one(&mut self, id: &SaId, sa: &KernelSa, state: StateRef) -> Result<bool, String> {
        let words = self.words(state).ok_or("no state")?;
        let fingerprint = sa.fingerprint();
        let mut before = None;
        if let Some(held) = self.held.get_mut(id) {
            if held.sa.is_none() && held.fingerprint == fingerprint {
                info!("{id}: found in the kernel");
                held.sa = Some(sa.clone());
                held.state = Some(state);
            }
            if held.sa.as_ref() == Some(sa) {
                return Ok(false);
            }
            // Something of it has changed, such as its ends, or it is another.
            let same = held.fingerprint == fingerprint;
            let progress = self.take_from_kernel(id)?;
            before = same.then_some(progress);
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
        let held = Held {
            sa: Some(sa.clone()),
            state: Some(state),
            fingerprint,
        };
        self.held.insert(*id, held);
        Ok(!kernel_only && progress.packets > 0)
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
        let gone: Vec<SaId> = self
            .held
            .keys()
            .filter(|id| !part.sas.contains_key(id))
            .copied()
            .collect();
        for id in gone {
            match self.return_one(&id, datapath.sas.get(&id)) {
                Ok(true) => returned.push(id),
                Ok(false) => {}
                Err(problem) => warn!("{problem}"),
            }
        }
        returned
    }

    fn return_one(&mut self, id: &SaId, wanted: Option<&SaSpec>) -> Result<bool, String> {
        let held = self.held.get(id);
        let (fingerprint, state, sa) = match held {
            Some(held) => (held.fingerprint, held.state, held.sa.clone()),
            None => return Ok(false),
        };
        let wanted = wanted.filter(|spec| keys::fingerprint(spec) == fingerprint);
        let progress = self.take_from_kernel(id)?;
        // Of one that a key manager before this one had installed, and that nobody wants, the state is not known: its
        // key stays lost.
        let Some(state) = state.or(wanted.map(|spec| spec.state)) else {
            return Ok(false);
        };
        let words = self.words(state).ok_or("no state")?;
        let Some(progress) = progress else {
            self.lose(&words);
            return Err(format!("{id}: the kernel does not have it any more"));
        };
        note(&words, &progress);
        if sa.is_some_and(|sa| is_counted_only(&sa, state)) {
            return Ok(false);
        }
        let window = wanted.map_or(0, |spec| spec.replay_window);
        if wanted.is_none() {
            // The numbers are kept for a static key that comes back.
            keep(&words, &progress);
        } else {
            go_on(&words, window, &progress);
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
                    *why = why.take().into_iter().chain(first).reduce(|a, b| a + "; " + &b);
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
                let sa = self.held.get(&found.id)?.sa.as_ref()?;
                Some(KernelSaStatus {
                    direction: found.id.direction,
                    spi: found.id.spi,
                    source: sa.source,
                    destination: found.id.destination,
                    algorithm: sa.algorithm.to_string(),
                    packets: found.progress.packets,
                    bytes: found.progress.bytes,
                    sequence: match &found.progress.numbers {
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
            let state = self.held.get(&found.id).and_then(|held| held.state);
            if let Some(words) = state.and_then(|state| self.words(state)) {
                note(&words, &found.progress);
            }
        }
    }

    /// Notes how much one SA was used, if the kernel has it.
    pub(crate) fn count_one(&mut self, id: &SaId) {
        let Some(state) = self.held.get(id).and_then(|held| held.state) else {
            return;
        };
        let progress = match self.kernel.as_mut().map(|kernel| kernel.read_sa(id)) {
            Some(Ok(Some(progress))) => progress,
            _ => return,
        };
        if let Some(words) = self.words(state) {
            note(&words, &progress);
        }
    }

    /// A lifetime was reached in the kernel.
    pub(crate) fn expired(&mut self, id: &SaId, hard: bool) {
        if let Some(state) = self.held.get(id).and_then(|held| held.state)
            && let Some(words) = self.words(state)
        {
            let reached = if hard { both::EXPIRED } else { both::EXPIRING };
            words[both::STATE].fetch_max(reached, Ordering::Relaxed);
        }
    }

    /// Removes everything of ours. Returns how many SAs and policies it was.
    pub(crate) fn clear(&mut self) -> usize {
        let count = self.held.len() + self.policies.len();
        self.give_back(&KernelPart::default(), &Wanted::default());
        count
    }
}

/// Whether an SA has no window in its state, as only the kernel can serve it.
fn is_counted_only(sa: &KernelSa, state: StateRef) -> bool {
    sa.id.direction == Direction::In && state.words as usize == outbound::WORDS
}

/// Stops the datapath on an SA, wherever it is, and says how far it was.
fn stop(words: &Words, direction: Direction, window: u32) -> Progress {
    let numbers = match direction {
        Direction::Out => Numbers::Sent(handover::fence_outbound(words)),
        Direction::In => Numbers::Received(handover::fence_inbound(words, window)),
    };
    let read = |at: usize| words[at].load(Ordering::Relaxed);
    let now = now();
    let ago = |at: usize| match read(at) {
        0 => None,
        then => Some(now.saturating_sub(then) / 1000),
    };
    Progress {
        numbers,
        packets: read(both::PACKETS),
        bytes: read(both::BYTES),
        added: ago(both::ADDED).unwrap_or_default(),
        first_use: ago(both::FIRST_USE),
    }
}

/// Lets the datapath go on behind what was used.
fn go_on(words: &Words, window: u32, progress: &Progress) {
    match &progress.numbers {
        Numbers::Sent(last) => handover::release_outbound(words, *last),
        Numbers::Received(received) => handover::release_inbound(words, window, received),
    }
}

/// Keeps how far it was, and lets nobody go on.
fn keep(words: &Words, progress: &Progress) {
    match &progress.numbers {
        Numbers::Sent(last) => handover::raise_outbound(words, *last),
        Numbers::Received(received) => handover::raise_inbound(words, received.highest),
    }
}

/// Notes how much an SA was used.
fn note(words: &Words, progress: &Progress) {
    words[both::PACKETS].store(progress.packets, Ordering::Relaxed);
    words[both::BYTES].store(progress.bytes, Ordering::Relaxed);
    if words[both::FIRST_USE].load(Ordering::Relaxed) == 0
        && let Some(ago) = progress.first_use
    {
        let then = now().saturating_sub(ago.saturating_mul(1000)).max(1);
        words[both::FIRST_USE].store(then, Ordering::Relaxed);
    }
}

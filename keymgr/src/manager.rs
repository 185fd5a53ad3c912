//! The sources of keys and what is made of them: the file and charon side by side, one lock round both.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culvert_bridge::Hello;
use culvert_proto::channel::{Channel, ChannelError};
use culvert_proto::event::{Event, Limit};
use culvert_proto::message::{Changes, KeymgrReply, KeymgrRequest};
use culvert_proto::policy::{Mode, Selector, short};
use culvert_proto::sa::SaId;
use culvert_proto::status::KeymgrStatus;
use ipnet::IpNet;
use log::{error, info, warn};
use nix::sys::signal::{Signal, raise};

use crate::charon::Charon;
use crate::config::{self, Config, Fallback};
use crate::daemon::{PROGRAM, Paths};
use crate::events;
use crate::goal::Goal;
use crate::kernel::KernelEvent;
use crate::shared::Shared;
use crate::stand_in::StandIn;
use crate::state::State;
use crate::wanted::Wanted;

/// How long a handover is waited for.
const HANDOVER: Duration = Duration::from_secs(10);

/// Where SAs and policies come from, and the state that they get.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) state: State,
    /// What the file has.
    pub(crate) file: Wanted,
    /// By whom its policies may be served, where it says so, and everybody else's.
    pub(crate) modes: BTreeMap<Selector, Mode>,
    pub(crate) fallback: Fallback,
    pub(crate) charon: Charon,
}

impl Sources {
    /// By whom a policy may be served: its own mode counts, then that of its peers.
    fn mode_of(&self, selector: &Selector) -> Mode {
        let own = self.modes.get(selector).copied();
        own.unwrap_or_else(|| self.fallback.mode_for(&selector.remote))
    }
}

/// The key manager.
#[derive(Debug)]
pub(crate) struct Manager {
    paths: Paths,
    started: Instant,
    instance: u64,
    pub(crate) shared: Arc<Shared>,
    sources: Mutex<Sources>,
    stand_in: Arc<Mutex<StandIn>>,
    /// A charon that is there and cannot be served, and why.
    unserved: Mutex<Option<String>>,
}

impl Manager {
    pub(crate) fn new(
        paths: Paths,
        shared: Arc<Shared>,
        state: State,
        charon: Charon,
        stand_in: Arc<Mutex<StandIn>>,
    ) -> Result<Self> {
        let mut instance = [0; 8];
        aws_lc_rs::rand::fill(&mut instance).context("no random numbers")?;
        Ok(Self {
            paths,
            started: Instant::now(),
            instance: u64::from_ne_bytes(instance),
            shared,
            sources: Mutex::new(Sources {
                state,
                file: Wanted::default(),
                modes: BTreeMap::new(),
                fallback: Fallback::default(),
                charon,
            }),
            stand_in,
            unserved: Mutex::default(),
        })
    }

    /// A number of this process: its memory of keys lives as long.
    pub(crate) const fn instance(&self) -> u64 {
        self.instance
    }

    fn kernel(&self) -> MutexGuard<'_, StandIn> {
        self.stand_in.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Brings up to date how much an SA was used, if the kernel has it.
    pub(crate) fn count(&self, id: &SaId) {
        self.kernel().count_one(id);
    }

    /// What the kernel tells of its own accord.
    pub(crate) fn hear_kernel(&self, event: KernelEvent) {
        match event {
            KernelEvent::Expired {
                spi,
                destination,
                hard,
            } => {
                let sa = self.kernel().expired(spi, destination, hard);
                if let Some(sa) = sa {
                    let limit = Limit::Kernel;
                    self.hear(Event::Expired { sa, hard, limit });
                }
            }
            KernelEvent::Acquire(acquire) => {
                self.alter(|sources| sources.charon.acquire(acquire.reqid));
            }
            KernelEvent::Mapping {
                spi,
                destination,
                remote,
            } => {
                let sa = self.kernel().find_id(spi, destination);
                if let Some(sa) = sa {
                    let (address, port) = (remote.ip(), remote.port());
                    self.hear(Event::Moved { sa, address, port });
                }
            }
            KernelEvent::Lost => warn!("events of the kernel were lost"),
        }
    }

    /// Passes an event on to charon, if it is about what charon has installed, else to whoever reads log and status.
    pub(crate) fn hear(&self, event: Event) {
        if !self.alter(|sources| sources.charon.hear(&event)) {
            events::tell(&event);
            self.shared.heard(event);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Sources> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Looks at the sources.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Sources) -> T) -> T {
        look(&self.lock())
    }

    /// As [`Manager::change`], for the charon that has the session; `None`: it has not.
    pub(crate) fn change_for<T>(
        &self,
        hello: &Hello,
        change: impl FnOnce(&mut Sources) -> T,
    ) -> Option<(u64, T)> {
        let mut sources = self.lock();
        if !sources.charon.is_here(hello) {
            return None;
        }
        let result = change(&mut sources);
        Some((self.publish(&mut sources), result))
    }

    /// As [`Manager::alter`], for the charon that has the session; `None`: it has not.
    pub(crate) fn alter_for<T>(
        &self,
        hello: &Hello,
        change: impl FnOnce(&mut Sources) -> T,
    ) -> Option<T> {
        let mut sources = self.lock();
        sources.charon.is_here(hello).then(|| change(&mut sources))
    }

    /// Changes something that nothing that is wanted depends on.
    pub(crate) fn alter<T>(&self, change: impl FnOnce(&mut Sources) -> T) -> T {
        change(&mut self.lock())
    }

    /// Changes the sources, and with them what is wanted. Returns the generation to wait for, too.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Sources) -> T) -> (u64, T) {
        let mut sources = self.lock();
        let result = change(&mut sources);
        (self.publish(&mut sources), result)
    }

    fn publish(&self, sources: &mut Sources) -> u64 {
        let mut goal = Goal {
            wanted: sources.file.clone(),
            ..Goal::default()
        };
        let tunnels = sources.charon.add_to(&mut goal);
        for selector in goal.wanted.policies.keys() {
            goal.hows.entry(selector.clone()).or_default().mode = sources.mode_of(selector);
        }
        let generation = self.shared.want(goal, tunnels);
        sources.state.gone_with(generation);
        generation
    }

    /// See [`Shared::settle`].
    pub(crate) fn settle(&self, generation: u64, patience: Duration) -> Result<(), String> {
        self.shared.settle(generation, patience)
    }

    /// Whether an SA that is the kernel's was taken by it.
    ///
    /// # Errors
    /// Why it was not.
    pub(crate) fn taken(&self, id: &SaId) -> Result<(), String> {
        match self.shared.lock().kernel.refused.get(id) {
            Some(problem) => Err(problem.clone()),
            None => Ok(()),
        }
    }

    /// Waits until what there is now is served, or nobody is to be had who could.
    pub(crate) fn settle_first(&self, patience: Duration) {
        // Why it has not, the log says.
        let _ = self.shared.settle(self.shared.generation(), patience);
    }

    /// The state of things in one line.
    pub(crate) fn summary(&self) -> String {
        let inner = self.shared.lock();
        let [sas, policies] = {
            let wanted = &inner.goal.wanted;
            [wanted.sas.len(), wanted.policies.len()]
        };
        let lacking = if inner.served == Some(inner.generation) {
            ""
        } else {
            ", which are not served"
        };
        format!("{sas} SAs, {policies} policies{lacking}")
    }

    /// Notes that a charon is there that cannot be served.
    pub(crate) fn unserved(&self, text: &str) {
        warn!("not served: {text}");
        let mut unserved = self.unserved.lock().unwrap_or_else(PoisonError::into_inner);
        *unserved = Some(text.to_owned());
    }

    /// Notes that one is served.
    pub(crate) fn served(&self) {
        *self.unserved.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The file: the one that was named, which must be there, or the one at the usual place, if there is one.
    fn read_file(&self) -> Result<Config, config::Problems> {
        if self.paths.config_may_be_missing && !self.paths.config.exists() {
            return Ok(Config::default());
        }
        config::load(&self.paths.config)
    }

    /// Reads the file again and makes it what is wanted, or leaves all as it is. Returns the generation to
    /// wait for, and what changed.
    pub(crate) fn load(&self) -> Result<(u64, Changes)> {
        let result = self.try_load();
        if let Err(error) = &result {
            error!("refused, what ran goes on:\n{error:#}");
            self.shared.lock().refused = Some(format!("{error:#}"));
        }
        result
    }

    fn try_load(&self) -> Result<(u64, Changes)> {
        let config = self.read_file()?;
        let mut sources = self.lock();
        let clashes = sources.charon.clashes(&config);
        if !clashes.is_empty() {
            bail!(clashes.join("\n"));
        }
        let (modes, fallback) = (config.modes.clone(), config.fallback.clone());
        let Sources { state, file, .. } = &mut *sources;
        let next = state.give(config, file)?;
        let (_, mut changes) = file.update_to(&next);
        let before = std::mem::replace(file, next);
        let modes_before: Vec<Mode> = before
            .policies
            .keys()
            .map(|selector| sources.mode_of(selector))
            .collect();
        self.set_modes(&mut sources, modes, fallback);
        // A policy that is the same but for its mode has changed, too.
        let policies = before.policies.iter().zip(modes_before);
        changes.policies_changed += policies
            .filter(|((selector, policy), mode)| {
                sources.file.policies.get(*selector) == Some(*policy)
                    && sources.mode_of(selector) != *mode
            })
            .count();
        let generation = self.publish(&mut sources);
        drop(sources);
        self.loaded(changes, None);
        info!(
            "loaded {}: SAs {} added, {} changed, {} removed; policies {} added, {} changed, {} removed",
            self.paths.config.display(),
            changes.sas_added,
            changes.sas_changed,
            changes.sas_removed,
            changes.policies_added,
            changes.policies_changed,
            changes.policies_removed
        );
        Ok((generation, changes))
    }

    fn set_modes(
        &self,
        sources: &mut Sources,
        modes: BTreeMap<Selector, Mode>,
        fallback: Fallback,
    ) {
        self.shared.lock().hung_after = fallback.hung_after;
        (sources.modes, sources.fallback) = (modes, fallback);
    }

    fn loaded(&self, changes: Changes, refused: Option<String>) {
        let mut inner = self.shared.lock();
        inner.last_load = changes;
        inner.refused = refused;
    }

    /// Reads the file for the first time. Nothing runs yet that could go on, so a bad file ends the start; but
    /// keys that must not be used only block what they would have protected.
    pub(crate) fn load_at_start(&self) -> Result<()> {
        let config = self.read_file().context("not started")?;
        let (modes, fallback) = (config.modes.clone(), config.fallback.clone());
        let mut sources = self.lock();
        let (file, problem) = sources
            .state
            .give_at_start(config)
            .context("not started, what the datapath has goes on")?;
        let (_, changes) = Wanted::default().update_to(&file);
        let (sas, policies) = (file.sas.len(), file.policies.len());
        sources.file = file;
        self.set_modes(&mut sources, modes, fallback);
        self.publish(&mut sources);
        drop(sources);
        info!(
            "loaded {}: {sas} SAs, {policies} policies",
            self.paths.config.display()
        );
        if let Some(problem) = &problem {
            error!("left out, what they would protect is blocked:\n{problem}");
        }
        self.loaded(changes, problem);
        Ok(())
    }

    /// Some times a second.
    pub(crate) fn tick(&self) {
        let ready = {
            let mut kernel = self.kernel();
            kernel.count();
            kernel.ready()
        };
        let (served, returned) = {
            let mut inner = self.shared.lock();
            (inner.served, std::mem::take(&mut inner.kernel.returned))
        };
        let let_go = self.alter(|Sources { state, charon, .. }| {
            if let Some(served) = served {
                state.let_go(served);
            }
            charon.kernel = ready;
            returned.iter().for_each(|id| charon.replace_soon(id));
            charon.tick(state)
        });
        if let_go {
            self.change(|_| ());
        }
    }

    fn release(&self, which: Option<IpNet>) -> Vec<IpNet> {
        let (generation, released) = self.change(|sources| sources.charon.release(which));
        for net in &released {
            info!("released: Geneve with {} goes in clear", short(net));
        }
        self.shared.follow(generation);
        released
    }

    fn status(&self) -> KeymgrStatus {
        let (charon, held, mut charon_refused) = self.look(|Sources { charon, .. }| {
            (charon.status(), charon.held(), charon.refused().clone())
        });
        let unserved = self.unserved.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(text) = &*unserved {
            charon_refused.insert("charon".to_owned(), text.clone());
        }
        drop(unserved);
        let others = self.look(|sources| sources.charon.others());
        let kernel_sas = self.kernel().status();
        let inner = self.shared.lock();
        let mut tunnels = inner.tunnels.clone();
        for tunnel in &mut tunnels {
            if let Some(how) = inner.goal.hows.get(&tunnel.selector) {
                tunnel.mode = how.mode;
            }
            if let Some((place, why)) = inner.kernel.places.get(&tunnel.selector) {
                (tunnel.place, tunnel.why) = (*place, why.clone());
            }
        }
        KeymgrStatus {
            program: PROGRAM.to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            source: self.paths.config.display().to_string(),
            sas: inner.goal.wanted.sas.len() + inner.goal.kernel_only.len(),
            policies: inner.goal.wanted.policies.len(),
            datapath_in_sync: inner.pushed == Some(inner.generation),
            datapath_problem: inner.problem.clone(),
            last_load: inner.last_load,
            refused: inner.refused.clone(),
            events: inner.events.iter().cloned().collect(),
            charon,
            tunnels,
            held,
            charon_refused,
            drained: inner.drained,
            kernel_problem: inner.kernel.problem.clone(),
            kernel_sas,
            kernel_policies: others,
            handovers: inner.kernel.handovers,
        }
    }

    /// Hands everything over to the kernel, or lets the datapath serve again.
    fn drain(&self, drained: bool) -> KeymgrReply {
        if drained && let Err(problem) = self.kernel().ready() {
            return KeymgrReply::Refused(format!(
                "the kernel's IPsec cannot take over: {problem}; everything stays as it is"
            ));
        }
        let generation = self.shared.drain(drained);
        match self.shared.settle(generation, HANDOVER) {
            Ok(()) => KeymgrReply::Done,
            Err(problem) => KeymgrReply::Refused(problem),
        }
    }

    /// One connection of the control socket, until it closes.
    pub(crate) fn converse(&self, mut channel: Channel) -> Result<(), ChannelError> {
        channel.greeted::<KeymgrRequest, KeymgrReply>(PROGRAM)?;
        while let Some(request) = channel.receive()? {
            let reply = match request {
                KeymgrRequest::Hello(_) => return Err(ChannelError::Unexpected),
                KeymgrRequest::Drain => self.drain(true),
                KeymgrRequest::Resume => self.drain(false),
                KeymgrRequest::End => {
                    let told = channel.send(&KeymgrReply::Done);
                    // Also if nobody waits for the answer any more.
                    raise(Signal::SIGTERM)?;
                    return told;
                }
                KeymgrRequest::Status => KeymgrReply::Status(Box::new(self.status())),
                KeymgrRequest::Release(which) => KeymgrReply::Released(self.release(which)),
                KeymgrRequest::Reload => match self.load() {
                    Ok((generation, changes)) => {
                        self.shared.follow(generation);
                        KeymgrReply::Reloaded(changes)
                    }
                    Err(error) => KeymgrReply::Refused(format!("{error:#}")),
                },
            };
            channel.send(&reply)?;
        }
        Ok(())
    }
}

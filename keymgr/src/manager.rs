//! The sources of keys and what is made of them: the file and charon side by side, one lock round both.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culvert_bridge::Hello;
use culvert_proto::channel::{Channel, ChannelError};
use culvert_proto::message::{Changes, KeymgrReply, KeymgrRequest};
use culvert_proto::policy::short;
use culvert_proto::status::{Handovers, KeymgrStatus};
use ipnet::IpNet;
use log::{error, info, warn};
use nix::sys::signal::{Signal, raise};

use crate::charon::Charon;
use crate::config::{self, Config};
use crate::daemon::{PROGRAM, Paths};
use crate::shared::Shared;
use crate::state::State;
use crate::wanted::Wanted;

/// Where SAs and policies come from, and the state that they get.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) state: State,
    /// What the file has.
    pub(crate) file: Wanted,
    pub(crate) charon: Charon,
}

/// The key manager.
#[derive(Debug)]
pub(crate) struct Manager {
    paths: Paths,
    started: Instant,
    instance: u64,
    pub(crate) shared: Arc<Shared>,
    sources: Mutex<Sources>,
    /// A charon that is there and cannot be served, and why.
    unserved: Mutex<Option<String>>,
}

impl Manager {
    pub(crate) fn new(
        paths: Paths,
        shared: Arc<Shared>,
        state: State,
        charon: Charon,
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
                charon,
            }),
            unserved: Mutex::default(),
        })
    }

    /// A number of this process: its memory of keys lives as long.
    pub(crate) const fn instance(&self) -> u64 {
        self.instance
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
        let mut wanted = sources.file.clone();
        let tunnels = sources.charon.add_to(&mut wanted);
        let generation = self.shared.want(wanted, tunnels);
        sources.state.gone_with(generation);
        generation
    }

    /// See [`Shared::settle`].
    pub(crate) fn settle(&self, generation: u64, patience: Duration) -> Result<(), String> {
        self.shared.settle(generation, patience)
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
        let Sources { state, file, .. } = &mut *sources;
        let next = state.give(config, file)?;
        let (_, changes) = file.update_to(&next);
        *file = next;
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

    fn loaded(&self, changes: Changes, refused: Option<String>) {
        let mut inner = self.shared.lock();
        inner.last_load = changes;
        inner.refused = refused;
    }

    /// Reads the file for the first time. Nothing runs yet that could go on, so a bad file ends the start; but
    /// keys that must not be used only block what they would have protected.
    pub(crate) fn load_at_start(&self) -> Result<()> {
        let config = self.read_file().context("not started")?;
        let mut sources = self.lock();
        let (file, problem) = sources
            .state
            .give_at_start(config)
            .context("not started, what the datapath has goes on")?;
        let (_, changes) = Wanted::default().update_to(&file);
        let (sas, policies) = (file.sas.len(), file.policies.len());
        sources.file = file;
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
        let pushed = self.shared.lock().pushed;
        let let_go = self.alter(|Sources { state, charon, .. }| {
            if let Some(pushed) = pushed {
                state.let_go(pushed);
            }
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
        let inner = self.shared.lock();
        KeymgrStatus {
            program: PROGRAM.to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            source: self.paths.config.display().to_string(),
            sas: inner.wanted.sas.len(),
            policies: inner.wanted.policies.len(),
            datapath_in_sync: inner.pushed == Some(inner.generation),
            datapath_problem: inner.problem.clone(),
            last_load: inner.last_load,
            refused: inner.refused.clone(),
            events: inner.events.iter().cloned().collect(),
            charon,
            tunnels: inner.tunnels.clone(),
            held,
            charon_refused,
            drained: false,
            kernel_problem: None,
            kernel_sas: Vec::new(),
            kernel_policies: Vec::new(),
            handovers: Handovers::default(),
        }
    }

    /// One connection of the control socket, until it closes.
    pub(crate) fn converse(&self, mut channel: Channel) -> Result<(), ChannelError> {
        channel.greeted::<KeymgrRequest, KeymgrReply>(PROGRAM)?;
        while let Some(request) = channel.receive()? {
            let reply = match request {
                KeymgrRequest::Hello(_) => return Err(ChannelError::Unexpected),
                KeymgrRequest::Drain | KeymgrRequest::Resume => {
                    KeymgrReply::Refused("not yet".to_owned())
                }
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

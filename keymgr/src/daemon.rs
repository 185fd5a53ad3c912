//! Running: loads the file, owns the state region, answers the control socket, reloads on SIGHUP.

use std::collections::VecDeque;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_proto::channel::{Channel, ChannelError, Listener, Lock, make_directory};
use culvert_proto::event::Event;
use culvert_proto::message::{Changes, KeymgrReply, KeymgrRequest};
use culvert_proto::status::KeymgrStatus;
use culvert_proto::{DATAPATH_SOCKET, KEYMGR_SOCKET};
use culvert_state::Region;
use log::{error, info, warn};
use nix::sys::eventfd::{EfdFlags, EventFd};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::config::{self, Config};
use crate::events;
use crate::push;
use crate::state::State;
use crate::wanted::Wanted;

/// Name and release, as greetings and reports have it.
pub const PROGRAM: &str = concat!("culvert-keymgr ", env!("CARGO_PKG_VERSION"));

/// File name of the SA state region in the run directory.
const REGION: &str = "sa-state";

/// Events that the status tells of.
const EVENTS: usize = 64;

/// How long a reload waits for the datapath to follow, before it answers all the same.
const FOLLOW: Duration = Duration::from_secs(5);

/// What the threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Wakes the pushing thread while it waits for the datapath.
    pub(crate) wake: EventFd,
}

#[derive(Debug, Default)]
struct Inner {
    wanted: Wanted,
    generation: u64,
    pushed: Option<u64>,
    problem: Option<String>,
    last_load: Changes,
    refused: Option<String>,
    events: VecDeque<Event>,
}

impl Shared {
    /// Keeps an event for the status.
    pub(crate) fn heard(&self, event: Event) {
        let mut inner = self.lock();
        if inner.events.len() == EVENTS {
            inner.events.pop_front();
        }
        inner.events.push_back(event);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // What it holds is replaced whole: a panic elsewhere leaves it consistent.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn wanted(&self) -> (u64, Wanted) {
        let inner = self.lock();
        (inner.generation, inner.wanted.clone())
    }

    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    pub(crate) fn in_sync(&self, generation: u64) {
        let mut inner = self.lock();
        inner.pushed = Some(generation);
        inner.problem = None;
        self.changed.notify_all();
    }

    pub(crate) fn out_of_sync(&self, problem: String) {
        let mut inner = self.lock();
        inner.pushed = None;
        inner.problem = Some(problem);
        self.changed.notify_all();
    }

    pub(crate) fn wait_for_change(&self, timeout: Duration) {
        let inner = self.lock();
        let generation = inner.generation;
        let unchanged = |inner: &mut Inner| inner.generation == generation;
        let _ = self.changed.wait_timeout_while(inner, timeout, unchanged);
    }

    fn want(&self, wanted: Wanted) -> (u64, Changes) {
        let mut inner = self.lock();
        let (_, changes) = inner.wanted.update_to(&wanted);
        inner.wanted = wanted;
        inner.generation += 1;
        inner.last_load = changes;
        inner.refused = None;
        self.changed.notify_all();
        // It fails only if it is set already.
        let _ = self.wake.write(1);
        (inner.generation, changes)
    }

    /// Waits until the datapath has `generation`, or turns out not to follow.
    fn follow(&self, generation: u64) {
        let waiting = |inner: &mut Inner| {
            inner.problem.is_none() && inner.pushed.is_none_or(|pushed| pushed < generation)
        };
        let _ = self
            .changed
            .wait_timeout_while(self.lock(), FOLLOW, waiting);
    }
}

/// Where things are.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The file of SAs and policies.
    pub config: PathBuf,
    /// Sockets, lock, SA state region.
    pub run: PathBuf,
    /// What must survive a reboot.
    pub state: PathBuf,
}

/// The key manager.
struct Manager {
    paths: Paths,
    started: Instant,
    shared: Arc<Shared>,
    state: Mutex<State>,
}

impl Manager {
    /// Reads the file again and makes it what is wanted, or leaves all as it is. Returns the generation to
    /// wait for, and what changed.
    fn load(&self) -> Result<(u64, Changes)> {
        let result = self.try_load();
        if let Err(error) = &result {
            error!("refused, what ran goes on:\n{error:#}");
            self.shared.lock().refused = Some(format!("{error:#}"));
        }
        result
    }

    fn try_load(&self) -> Result<(u64, Changes)> {
        let config = config::load(&self.paths.config)?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let wanted = state.give(config, &self.shared.lock().wanted)?;
        let (generation, changes) = self.shared.want(wanted);
        drop(state);
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

    /// Reads the file for the first time. Nothing runs yet that could go on, so a bad file ends the start; but
    /// keys that must not be used only block what they would have protected.
    fn load_at_start(&self) -> Result<()> {
        let config = config::load(&self.paths.config).context("not started")?;
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let (wanted, problem) = state
            .give_at_start(config)
            .context("not started, what the datapath has goes on")?;
        let (sas, policies) = (wanted.sas.len(), wanted.policies.len());
        self.shared.want(wanted);
        info!(
            "loaded {}: {sas} SAs, {policies} policies",
            self.paths.config.display()
        );
        if let Some(problem) = problem {
            error!("left out, what they would protect is blocked:\n{problem}");
            self.shared.lock().refused = Some(problem);
        }
        Ok(())
    }

    fn status(&self) -> KeymgrStatus {
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
        }
    }

    fn converse(&self, mut channel: Channel) -> Result<(), ChannelError> {
        channel.greeted::<KeymgrRequest, KeymgrReply>(PROGRAM)?;
        while let Some(request) = channel.receive()? {
            let reply = match request {
                KeymgrRequest::Hello(_) => return Err(ChannelError::Unexpected),
                KeymgrRequest::Status => KeymgrReply::Status(Box::new(self.status())),
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

/// Checks the file without using it.
///
/// # Errors
/// What is wrong with it.
pub fn check(path: &Path) -> Result<Config> {
    Ok(config::load(path)?)
}

/// Runs the key manager until SIGTERM or SIGINT. The datapath goes on with what it has.
///
/// # Errors
/// What could not be set up, with what to do about it.
pub fn run(paths: Paths) -> Result<()> {
    for directory in [&paths.run, &paths.state] {
        make_directory(directory).with_context(|| format!("cannot use {}", directory.display()))?;
    }
    let _lock = Lock::take(&paths.run, "culvert-keymgr")?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;

    let region = paths.run.join(REGION);
    let (region, lost) =
        Region::open_or_create(&region).with_context(|| region.display().to_string())?;
    if let Some(why) = lost {
        warn!("SA state region begun anew: {why}");
    }
    let for_push = Region::from_fd(region.as_fd().try_clone_to_owned()?)?;
    let shared = Arc::new(Shared {
        inner: Mutex::default(),
        changed: Condvar::new(),
        wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
    });
    let manager = Arc::new(Manager {
        started: Instant::now(),
        shared: Arc::clone(&shared),
        state: Mutex::new(State::new(region, &paths.state)?),
        paths,
    });
    manager.load_at_start()?;

    let socket = manager.paths.run.join(DATAPATH_SOCKET);
    let (listening, where_to) = (Arc::clone(&shared), socket.clone());
    spawn("push", move || push::run(&shared, &for_push, &socket))?;
    spawn("events", move || events::run(&listening, &where_to))?;
    let control = manager.paths.run.join(KEYMGR_SOCKET);
    let listener = Listener::bind(&control).context("control socket")?;
    let served = Arc::clone(&manager);
    spawn("accept", move || serve(&listener, &served))?;
    info!("ready");

    for signal in signals.forever() {
        if signal != SIGHUP {
            info!("signal {signal}: ending; the datapath goes on with what it has");
            break;
        }
        // Said in the log, and in the status.
        let _ = manager.load();
    }
    // A clean end leaves no socket behind.
    let _ = std::fs::remove_file(control);
    Ok(())
}

fn serve(listener: &Listener, manager: &Arc<Manager>) {
    loop {
        match listener.accept() {
            // One at a time is not enough, as a reload may wait; more than a few are people's scripts gone wild.
            Ok(_) if Arc::strong_count(manager) > 16 => {
                warn!("control socket: too many connections");
            }
            Ok(channel) => {
                let manager = Arc::clone(manager);
                let spawned = spawn("control", move || {
                    if let Err(error) = manager.converse(channel) {
                        warn!("control connection ended: {error}");
                    }
                });
                if let Err(error) = spawned {
                    warn!("control socket: {error:#}");
                }
            }
            Err(error) => {
                warn!("control socket: {error}");
                // A lack of descriptors does not pass by asking again at once.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

/// A thread that nobody waits for: it ends with the process.
fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .with_context(|| format!("no thread {name}"))
}

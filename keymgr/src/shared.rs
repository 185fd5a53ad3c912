//! What is wanted now, and how far the datapath has followed: what the threads share.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use culvert_proto::event::Event;
use culvert_proto::message::Changes;
use culvert_proto::policy::{Place, Selector};
use culvert_proto::sa::SaId;
use culvert_proto::status::{Handovers, TunnelStatus};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::goal::Goal;
use crate::place::Ready;

/// Events that the status tells of.
const EVENTS: usize = 64;

/// How long a reload waits for the datapath to follow, before it answers all the same.
const FOLLOW: Duration = Duration::from_secs(5);

/// How long the datapath's heart may be silent before it counts as hung, unless the file says otherwise.
pub(crate) const HUNG_AFTER: Duration = Duration::from_millis(100);

/// What the threads share.
#[derive(Debug)]
pub(crate) struct Shared {
    inner: Mutex<Inner>,
    changed: Condvar,
    /// Wakes the pushing thread while it waits for the datapath.
    pub(crate) wake: EventFd,
}

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) goal: Arc<Goal>,
    pub(crate) tunnels: Vec<TunnelStatus>,
    pub(crate) generation: u64,
    /// What the datapath has; `None`: it is away.
    pub(crate) pushed: Option<u64>,
    /// What is served by whoever can, the datapath or the kernel.
    pub(crate) served: Option<u64>,
    pub(crate) problem: Option<String>,
    /// Since when neither has had what is wanted; `None`: they have.
    away: Option<Instant>,
    /// How long the datapath's heart may be silent.
    pub(crate) hung_after: Duration,
    /// Whether the datapath is to be left alone.
    pub(crate) drained: bool,
    /// The process id of a datapath that is about to end.
    leaving: Option<i32>,
    pub(crate) kernel: KernelView,
    pub(crate) last_load: Changes,
    pub(crate) refused: Option<String>,
    pub(crate) events: VecDeque<Event>,
}

/// What the kernel serves.
#[derive(Debug, Default)]
pub(crate) struct KernelView {
    /// Why it can serve nothing.
    pub(crate) problem: Option<String>,
    /// Who serves each policy.
    pub(crate) places: BTreeMap<Selector, (Place, Option<String>)>,
    /// SAs that it does not take, and why.
    pub(crate) refused: BTreeMap<SaId, String>,
    /// How often it took over, and gave back.
    pub(crate) handovers: Handovers,
    /// SAs that have come back from it since this was asked last.
    pub(crate) returned: Vec<SaId>,
}

impl Shared {
    pub(crate) fn new() -> nix::Result<Self> {
        Ok(Self {
            inner: Mutex::new(Inner {
                goal: Arc::default(),
                tunnels: Vec::new(),
                generation: 0,
                pushed: None,
                served: None,
                problem: None,
                away: Some(Instant::now()),
                hung_after: HUNG_AFTER,
                drained: false,
                leaving: None,
                kernel: KernelView::default(),
                last_load: Changes::default(),
                refused: None,
                events: VecDeque::new(),
            }),
            changed: Condvar::new(),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        })
    }

    /// Keeps an event for the status.
    pub(crate) fn heard(&self, event: Event) {
        let mut inner = self.lock();
        if inner.events.len() == EVENTS {
            inner.events.pop_front();
        }
        inner.events.push_back(event);
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        // What it holds is replaced whole: a panic elsewhere leaves it consistent.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn goal(&self) -> (u64, Arc<Goal>) {
        let inner = self.lock();
        (inner.generation, Arc::clone(&inner.goal))
    }

    pub(crate) fn generation(&self) -> u64 {
        self.lock().generation
    }

    /// The datapath has a generation, as far as it is the datapath's.
    pub(crate) fn in_sync(&self, generation: u64) {
        let mut inner = self.lock();
        inner.pushed = Some(generation);
        inner.served = Some(generation);
        inner.problem = None;
        inner.away = None;
        self.changed.notify_all();
    }

    /// The datapath is away, for this reason, and the kernel has a generation, as far as it is ready.
    pub(crate) fn stood_in(&self, generation: u64, datapath: &str, kernel: Ready<'_>) {
        let mut inner = self.lock();
        inner.pushed = None;
        inner.problem = Some(datapath.to_owned());
        if kernel.is_ok() {
            inner.served = Some(generation);
            inner.away = None;
        } else {
            inner.served = None;
            inner.away.get_or_insert_with(Instant::now);
        }
        self.changed.notify_all();
    }

    /// Leaves the datapath alone from now on, or no more.
    pub(crate) fn drain(&self, drained: bool) -> u64 {
        let mut inner = self.lock();
        inner.drained = drained;
        self.turn(&mut inner)
    }

    /// The datapath of that process is about to end.
    pub(crate) fn leaves(&self, process: i32) {
        let mut inner = self.lock();
        inner.leaving = Some(process);
        self.turn(&mut inner);
    }

    /// Whether the datapath is to be left alone; if so, why.
    pub(crate) fn left_alone(&self, process: i32) -> Option<&'static str> {
        let inner = self.lock();
        if inner.drained {
            return Some("drained");
        }
        (inner.leaving == Some(process)).then_some("the datapath ends")
    }

    /// How long the datapath's heart may be silent.
    pub(crate) fn hung_after(&self) -> Duration {
        self.lock().hung_after
    }

    /// Whether everything is to be with the kernel.
    pub(crate) fn is_drained(&self) -> bool {
        self.lock().drained
    }

    fn turn(&self, inner: &mut Inner) -> u64 {
        inner.generation += 1;
        self.changed.notify_all();
        // It fails only if it is set already.
        let _ = self.wake.write(1);
        inner.generation
    }

    pub(crate) fn wait_for_change(&self, timeout: Duration) {
        let inner = self.lock();
        let generation = inner.generation;
        let unchanged = |inner: &mut Inner| inner.generation == generation;
        let _ = self.changed.wait_timeout_while(inner, timeout, unchanged);
    }

    /// From now on that is wanted, and comes from there. Returns the generation to wait for.
    pub(crate) fn want(&self, goal: Goal, tunnels: Vec<TunnelStatus>) -> u64 {
        let mut inner = self.lock();
        inner.goal = Arc::new(goal);
        inner.tunnels = tunnels;
        self.turn(&mut inner)
    }

    /// Waits until `generation` is served, but not while nobody could for longer than `patience`.
    ///
    /// # Errors
    /// Why it does not have it.
    pub(crate) fn settle(&self, generation: u64, patience: Duration) -> Result<(), String> {
        let missing = |inner: &Inner| inner.served.is_none_or(|served| served < generation);
        let waiting = |inner: &mut Inner| {
            missing(inner) && inner.away.is_none_or(|since| since.elapsed() < patience)
        };
        let (inner, _) = self
            .changed
            .wait_timeout_while(self.lock(), patience, waiting)
            .unwrap_or_else(PoisonError::into_inner);
        if missing(&inner) {
            let slow = || "culvert-datapath does not follow".to_owned();
            return Err(inner.problem.clone().unwrap_or_else(slow));
        }
        Ok(())
    }

    /// Waits until `generation` is served, or it turns out that nobody can.
    pub(crate) fn follow(&self, generation: u64) {
        let waiting = |inner: &mut Inner| {
            inner.served.is_none_or(|served| served < generation)
                && (inner.problem.is_none() || inner.served.is_some())
        };
        let _ = self
            .changed
            .wait_timeout_while(self.lock(), FOLLOW, waiting);
    }
}

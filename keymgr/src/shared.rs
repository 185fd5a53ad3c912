//! What is wanted now, and how far the datapath has followed: what the threads share.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use culvert_proto::event::Event;
use culvert_proto::message::Changes;
use culvert_proto::status::TunnelStatus;
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::wanted::Wanted;

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

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) wanted: Wanted,
    pub(crate) tunnels: Vec<TunnelStatus>,
    pub(crate) generation: u64,
    pub(crate) pushed: Option<u64>,
    pub(crate) problem: Option<String>,
    /// Since when the datapath has not had what is wanted; `None`: it has.
    away: Option<Instant>,
    pub(crate) last_load: Changes,
    pub(crate) refused: Option<String>,
    pub(crate) events: VecDeque<Event>,
}

impl Shared {
    pub(crate) fn new() -> nix::Result<Self> {
        Ok(Self {
            inner: Mutex::new(Inner {
                wanted: Wanted::default(),
                tunnels: Vec::new(),
                generation: 0,
                pushed: None,
                problem: None,
                away: Some(Instant::now()),
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
        inner.away = None;
        self.changed.notify_all();
    }

    pub(crate) fn out_of_sync(&self, problem: String) {
        let mut inner = self.lock();
        inner.pushed = None;
        inner.problem = Some(problem);
        inner.away.get_or_insert_with(Instant::now);
        self.changed.notify_all();
    }

    pub(crate) fn wait_for_change(&self, timeout: Duration) {
        let inner = self.lock();
        let generation = inner.generation;
        let unchanged = |inner: &mut Inner| inner.generation == generation;
        let _ = self.changed.wait_timeout_while(inner, timeout, unchanged);
    }

    /// From now on that is wanted, and comes from there. Returns the generation to wait for.
    pub(crate) fn want(&self, wanted: Wanted, tunnels: Vec<TunnelStatus>) -> u64 {
        let mut inner = self.lock();
        inner.wanted = wanted;
        inner.tunnels = tunnels;
        inner.generation += 1;
        self.changed.notify_all();
        // It fails only if it is set already.
        let _ = self.wake.write(1);
        inner.generation
    }

    /// Waits until the datapath has `generation`, but not while it has been away for longer than `patience`.
    ///
    /// # Errors
    /// Why it does not have it.
    pub(crate) fn settle(&self, generation: u64, patience: Duration) -> Result<(), String> {
        let missing = |inner: &Inner| inner.pushed.is_none_or(|pushed| pushed < generation);
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

    /// Waits until the datapath has `generation`, or turns out not to follow.
    pub(crate) fn follow(&self, generation: u64) {
        let waiting = |inner: &mut Inner| {
            inner.problem.is_none() && inner.pushed.is_none_or(|pushed| pushed < generation)
        };
        let _ = self
            .changed
            .wait_timeout_while(self.lock(), FOLLOW, waiting);
    }
}

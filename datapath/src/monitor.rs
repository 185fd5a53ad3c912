//! What happens to SAs without a packet saying so: lifetimes that are reached, sequence numbers that come to their
//! end, peers that have moved, NATs that want a keepalive; and packets for which there is no SA. Looked at some times a second, from the SAs' shared
//! state, so that workers need no clock and tell nobody anything.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use culvert_esp::sequence;
use culvert_proto::event::{Event, Events, Limit};
use culvert_proto::sa::{Action, Direction, Limits, SaSpec, Selector};
use culvert_state::layout::{both, inbound, outbound};
use culvert_state::{Words, handover};
use hashbrown::HashMap;
use log::{debug, info};

use crate::keepalive;
use crate::tables::{Database, Installed};
use crate::worker::now;

/// How often SAs are looked at: half of the 100 ms within which the key manager is to know.
pub const TICK: Duration = Duration::from_millis(50);

/// Milliseconds until it is said again that an SA is wanted: a negotiation may have failed.
const AGAIN: u64 = 1000;

/// Events that are remembered for a key manager that is away for a moment.
const REMEMBERED: usize = 65_536;

/// The events so far, and how others wait for more.
#[derive(Debug, Default)]
pub struct Journal {
    inner: Mutex<Inner>,
    more: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    last: u64,
    list: VecDeque<Event>,
}

impl Journal {
    /// Adds an event, and wakes those who wait for one.
    pub fn add(&self, event: Event) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.last += 1;
        inner.list.push_back(event);
        if inner.list.len() > REMEMBERED {
            inner.list.pop_front();
        }
        self.more.notify_all();
    }

    /// The events after the one with number `after`, as soon as there are any, or none after `patience`.
    #[must_use]
    pub fn after(&self, after: u64, patience: Duration) -> Events {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let nothing_new = |inner: &mut Inner| inner.last == after;
        let (inner, _) = self
            .more
            .wait_timeout_while(inner, patience, nothing_new)
            .unwrap_or_else(PoisonError::into_inner);
        // A number from the future is another datapath's: it gets all.
        let new = inner.last.checked_sub(after).unwrap_or(inner.last);
        let there = new.min(inner.list.len() as u64);
        let skipped = inner.list.len() - usize::try_from(there).unwrap_or_default();
        Events {
            last: inner.last,
            lost: new - there,
            list: inner.list.iter().skip(skipped).cloned().collect(),
        }
    }
}

/// An SA that is looked at.
#[derive(Debug)]
struct Watched {
    spec: Arc<SaSpec>,
    state: Words,
}

/// A policy without an outbound SA.
#[derive(Debug)]
struct Lacking {
    selector: Selector,
    blocked: Arc<AtomicU64>,
    /// Packets that it had counted when the list was made.
    before: u64,
}

/// What to look at: the SAs that anything can happen to, and the policies that lack one.
#[derive(Debug, Default)]
pub struct WatchList {
    sas: Vec<Watched>,
    lacking: Vec<Lacking>,
}

impl WatchList {
    /// Those of a database.
    #[must_use]
    pub fn of(database: &Database) -> Self {
        let watched = database.sas().filter_map(|(spec, compiled)| {
            let outbound = spec.id.direction == Direction::Out;
            let limited = spec.lifetime.soft != Limits::NONE || spec.lifetime.hard != Limits::NONE;
            let watched = limited || spec.encapsulation.is_some() || (outbound && !spec.esn);
            let state = compiled.state().filter(|_| watched)?.clone();
            let spec = Arc::clone(spec);
            Some(Watched { spec, state })
        });
        let lacking = database
            .installed()
            .filter_map(|Installed { spec, blocked }| {
                let Action::Protect { outbound: None, .. } = spec.action else {
                    return None;
                };
                Some(Lacking {
                    selector: spec.selector.clone(),
                    blocked: Arc::clone(blocked),
                    before: blocked.load(Ordering::Relaxed),
                })
            });
        Self {
            sas: watched.collect(),
            lacking: lacking.collect(),
        }
    }
}

/// What was told of an SA already, and when it last sent.
#[derive(Clone, Copy, Debug, Default)]
struct Told {
    state: u64,
    place: Option<SocketAddr>,
    sent: u64,
    sent_at: u64,
}

/// Looks after SAs.
#[derive(Debug, Default)]
pub struct Monitor {
    list: Arc<WatchList>,
    /// Beside the SAs of the list.
    told: Vec<Told>,
    /// Of the policies that lack an SA and were told of: the packets then, and when.
    wanted: HashMap<Selector, (u64, u64)>,
}

impl Monitor {
    /// Looks at the SAs once. `now` is in milliseconds of the clock that workers have.
    pub fn look(&mut self, list: &Arc<WatchList>, now: u64, journal: &Journal) {
        if !Arc::ptr_eq(&self.list, list) {
            self.take(list, now);
        }
        for (Watched { spec, state }, told) in self.list.sas.iter().zip(&mut self.told) {
            if spec.id.direction == Direction::In {
                report_move(spec, state, told, journal);
            }
            // What the kernel has, it counts and keeps alive itself.
            if handover::is_fenced(state) {
                continue;
            }
            expire(spec, state, now, told, journal);
            if spec.id.direction == Direction::Out {
                keep_alive(spec, state, now, told);
            }
        }
        for policy in &self.list.lacking {
            let count = policy.blocked.load(Ordering::Relaxed);
            let told = self.wanted.get(&policy.selector).copied();
            let (before, due) = told.map_or((policy.before, 0), |(count, at)| (count, at + AGAIN));
            if count > before && now >= due {
                let selector = policy.selector.clone();
                self.wanted.insert(selector.clone(), (count, now));
                journal.add(Event::Wanted { selector });
            }
        }
    }

    /// Goes over to another list, with what was told of the SAs that are in both: the same names on the same state.
    fn take(&mut self, list: &Arc<WatchList>, now: u64) {
        let names = |list: &WatchList| {
            let names = list.sas.iter().map(|sa| (sa.spec.id, sa.spec.state.offset));
            names.collect::<Vec<_>>()
        };
        let before: HashMap<_, _> = names(&self.list)
            .into_iter()
            .zip(self.told.drain(..))
            .collect();
        self.told = names(list)
            .iter()
            .map(|name| {
                before.get(name).copied().unwrap_or(Told {
                    sent_at: now,
                    ..Told::default()
                })
            })
            .collect();
        // What a policy counted before it had an SA for a while is no longer news.
        let lacking = list.lacking.iter();
        self.wanted = lacking
            .filter_map(|policy| self.wanted.remove_entry(&policy.selector))
            .collect();
        self.list = Arc::clone(list);
    }
}

fn read(state: &Words, at: usize) -> u64 {
    state[at].load(Ordering::Relaxed)
}

/// Notes lifetimes that are reached, and tells of them once.
fn expire(spec: &SaSpec, state: &Words, now: u64, told: &mut Told, journal: &Journal) {
    if read(state, both::ADDED) == 0 {
        state[both::ADDED].store(now.max(1), Ordering::Relaxed);
    }
    let [soft, hard] = [(&spec.lifetime.soft, false), (&spec.lifetime.hard, true)]
        .map(|(limits, hard)| reached(limits, state, now).or_else(|| exhausted(spec, state, hard)));
    let (reached, limit) = match (soft, hard) {
        (_, Some(limit)) => (both::EXPIRED, limit),
        (Some(limit), None) => (both::EXPIRING, limit),
        (None, None) => return,
    };
    // It never comes back to life.
    let reached = state[both::STATE]
        .fetch_max(reached, Ordering::Relaxed)
        .max(reached);
    if reached > told.state {
        told.state = reached;
        let hard = reached == both::EXPIRED;
        info!(
            "{}: {} lifetime reached: {}",
            spec.id,
            if hard { "hard" } else { "soft" },
            limit.name()
        );
        journal.add(Event::Expired {
            sa: spec.id,
            hard,
            limit,
        });
    }
}

/// Which of `limits` is reached.
fn reached(limits: &Limits, state: &Words, now: u64) -> Option<Limit> {
    let since = |at: usize| match read(state, at) {
        0 => 0,
        start => now.saturating_sub(start) / 1000,
    };
    [
        (limits.bytes, read(state, both::BYTES), Limit::Bytes),
        (limits.packets, read(state, both::PACKETS), Limit::Packets),
        (limits.seconds, since(both::ADDED), Limit::Seconds),
        (
            limits.seconds_in_use,
            since(both::FIRST_USE),
            Limit::SecondsInUse,
        ),
    ]
    .into_iter()
    .find(|(limit, used, _)| limit.is_some_and(|limit| *used >= limit))
    .map(|(_, _, limit)| limit)
}

// RFC 4303 §3.3.3 [3.3.3-in-anticipation]
/// Whether the sequence numbers come to their end: at the last one, and long before. At ten million packets a
/// second, the last quarter of 2^32 is 107 seconds.
fn exhausted(spec: &SaSpec, state: &Words, hard: bool) -> Option<Limit> {
    if spec.id.direction == Direction::In {
        return None;
    }
    let last = sequence::last(spec.esn);
    let limit = if hard { last } else { last / 4 * 3 };
    (handover::leased(state) >= limit).then_some(Limit::Sequence)
}

/// Tells where a peer behind NAT is now.
fn report_move(spec: &SaSpec, state: &Words, told: &mut Told, journal: &Journal) {
    // With the port, the address that was written before it.
    let Ok(port @ 1..) = u16::try_from(state[inbound::PORT].load(Ordering::Acquire)) else {
        return;
    };
    let [high, low] = [0, 1].map(|half| u128::from(read(state, inbound::ADDRESS + half)));
    let address = Ipv6Addr::from(high << 64 | low).to_canonical();
    let place = SocketAddr::new(address, port);
    if told.place.replace(place) == Some(place) {
        return;
    }
    info!("{}: the peer sends from {place}", spec.id);
    journal.add(Event::Moved {
        sa: spec.id,
        address,
        port,
    });
}

/// Sends a keepalive if nothing was sent for long enough.
fn keep_alive(spec: &SaSpec, state: &Words, now: u64, told: &mut Told) {
    let Some(ports) = spec.encapsulation.filter(|ports| ports.keepalive > 0) else {
        return;
    };
    let sent = read(state, both::PACKETS);
    if sent != told.sent {
        (told.sent, told.sent_at) = (sent, now);
    }
    if read(state, both::STATE) == both::EXPIRED {
        return;
    }
    if now.saturating_sub(told.sent_at) < u64::from(ports.keepalive) * 1000 {
        return;
    }
    told.sent_at = now;
    let moved = u16::try_from(read(state, outbound::PORT)).unwrap_or_default();
    let port = if moved == 0 {
        ports.destination_port
    } else {
        moved
    };
    let end = |address: IpAddr, port| SocketAddr::new(address, port);
    let sent = keepalive::send(
        end(spec.source, ports.source_port),
        end(spec.id.destination, port),
    );
    if let Err(error) = sent {
        // The next one is due soon.
        debug!("{}: keepalive: {error}", spec.id);
    }
}

/// The list that is to be looked at: one lock that nobody holds for long, whatever the control socket is doing.
#[derive(Debug, Default)]
pub struct Watch(Mutex<Arc<WatchList>>);

impl Watch {
    /// Puts another list in place.
    pub fn set(&self, list: WatchList) {
        *self.lock() = Arc::new(list);
    }

    fn lock(&self) -> MutexGuard<'_, Arc<WatchList>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Looks for ever.
pub fn run(watch: &Watch, journal: &Journal) {
    let mut monitor = Monitor::default();
    loop {
        std::thread::sleep(TICK);
        let list = Arc::clone(&watch.lock());
        monitor.look(&list, now(), journal);
    }
}

#[cfg(test)]
mod tests;

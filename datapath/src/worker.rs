//! One core's share of the datapath: receive, seal or open, send. Nothing shared but counters, nothing
//! locked; it sleeps in poll(2) when there is nothing to do.

use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, bounded};
use crossbeam::utils::CachePadded;
use culvert_packet::reason::DropReason;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::frame::{Frame, Pool};
use crate::pipeline::{Pipeline, Sink};
use crate::port::{Losses, Port};
use crate::sizes::Supply;
use crate::tables::Tables;

/// Most frames that are received from a port at once.
pub const BATCH: usize = 64;

/// Time without a packet after which the worker sleeps: longer than the gaps of a busy link, shorter than anyone minds.
const IDLE: Duration = Duration::from_micros(100);

/// Turns without a packet before it looks at the clock.
const IDLE_TURNS: u32 = 64;

/// Longest sleep in milliseconds. Packets and new tables end it at once; this is for the heartbeat, which must not
/// take a worker that has nothing to do for one that hangs.
const SLEEP: u16 = 50;

/// Counters of one worker. It alone writes them, anyone reads them.
#[derive(Debug)]
pub struct Counters {
    /// Packets received from the host.
    pub from_host: AtomicU64,
    /// Packets received from the wire.
    pub from_wire: AtomicU64,
    /// Packets sealed and queued for the wire.
    pub sealed: AtomicU64,
    /// Packets opened and queued for the host.
    pub opened: AtomicU64,
    /// Packets queued in clear, as policies say, either way.
    pub bypassed: AtomicU64,
    /// Times it went to sleep.
    pub sleeps: AtomicU64,
    /// CPU time in nanoseconds, as of the last sleep or the last thousand turns.
    pub cpu: AtomicU64,
    /// When it last began a turn, in milliseconds of the monotonic clock; 0: not yet.
    pub seen: AtomicU64,
    drops: [AtomicU64; DropReason::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            from_host: AtomicU64::new(0),
            from_wire: AtomicU64::new(0),
            sealed: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            bypassed: AtomicU64::new(0),
            sleeps: AtomicU64::new(0),
            cpu: AtomicU64::new(0),
            seen: AtomicU64::new(0),
            drops: [const { AtomicU64::new(0) }; DropReason::COUNT],
        }
    }
}

impl Counters {
    /// Packets dropped for `reason`.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason.index()].load(Ordering::Relaxed)
    }
}

/// Adds without a locked instruction: the worker is the only writer.
#[inline]
fn add(counter: &AtomicU64, count: u64) {
    counter.store(counter.load(Ordering::Relaxed) + count, Ordering::Relaxed);
}

/// How the rest of the process speaks with a worker.
#[derive(Debug)]
pub struct Handle {
    tables: Sender<Arc<Tables>>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    counters: CachePadded<Counters>,
    wake: EventFd,
    stop: AtomicBool,
}

impl Handle {
    /// Publishes a snapshot: the worker takes it before its next batch.
    pub fn publish(&self, tables: Arc<Tables>) {
        // A worker that has ended needs no tables.
        let _ = self.tables.send(tables);
        self.wake();
    }

    /// Tells the worker to end.
    pub fn stop(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.wake();
    }

    /// The worker's counters.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// By which to see that it is at work.
    #[must_use]
    pub fn pulse(&self) -> Pulse {
        Pulse(Arc::clone(&self.shared))
    }

    fn wake(&self) {
        // Fails only if the counter is full, and then the worker is being woken anyway.
        let _ = self.shared.wake.write(1);
    }
}

/// Sign of life of a worker.
#[derive(Clone, Debug)]
pub struct Pulse(Arc<Shared>);

impl Pulse {
    /// When it last began a turn, in milliseconds of the clock of [`now`]; 0: not yet. It sleeps for no longer than
    /// 50 milliseconds.
    #[must_use]
    pub fn seen(&self) -> u64 {
        self.0.counters.seen.load(Ordering::Relaxed)
    }
}

/// The longest IP packets that the ports take, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mtu {
    /// The wire ports.
    pub wire: usize,
    /// The host port.
    pub host: usize,
}

/// A worker with its ports. `W` is the wire side, `H` the host side.
pub struct Worker<W, H> {
    wire: Vec<W>,
    host: H,
    mtu: Mtu,
    pool: Pool,
    pipeline: Pipeline,
    batch: Vec<Frame>,
    tables: Arc<Tables>,
    published: Receiver<Arc<Tables>>,
    shared: Arc<Shared>,
}

impl<W: Port, H: Port> Worker<W, H> {
    /// A worker that seals what comes from `host` and sends it on the first port of `wire`, and opens what
    /// comes from any port of `wire` and sends it to `host`. All ports use frames of `pool`.
    ///
    /// # Errors
    /// No event descriptor to be had.
    pub fn new(wire: Vec<W>, host: H, mtu: Mtu, pool: Pool) -> nix::Result<(Self, Handle)> {
        let shared = Arc::new(Shared {
            counters: CachePadded::new(Counters::default()),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            stop: AtomicBool::new(false),
        });
        // Snapshots that the worker has not taken yet; the newest counts. Updates are rare, so a full
        // channel means a stuck worker, and the sender waits for it.
        let (tables, published) = bounded(64);
        let worker = Self {
            wire,
            host,
            mtu,
            pipeline: Pipeline::new(BATCH, pool.longest()),
            pool,
            batch: Vec::with_capacity(BATCH),
            tables: Arc::default(),
            published,
            shared: Arc::clone(&shared),
        };
        Ok((worker, Handle { tables, shared }))
    }

    /// Runs until it is told to stop.
    pub fn run(&mut self) {
        // Turns without a packet, and when the first of them was.
        let (mut idle, mut since) = (0_u32, Instant::now());
        let mut turns = 0_u32;
        while !self.shared.stop.load(Ordering::Relaxed) {
            turns = turns.wrapping_add(1);
            self.shared.counters.seen.store(now(), Ordering::Relaxed);
            if self.turn() > 0 || self.host.is_pending() {
                idle = 0;
            } else {
                idle += 1;
            }
            if idle == 1 {
                since = Instant::now();
            }
            if idle >= IDLE_TURNS && since.elapsed() >= IDLE {
                // If nobody woke it, it sleeps on after one turn.
                idle = if self.sleep() { 0 } else { IDLE_TURNS - 1 };
                self.look_after();
            } else if turns.is_multiple_of(1024) {
                self.look_after();
            }
        }
        self.note();
    }

    /// What is done now and then.
    fn look_after(&mut self) {
        let mut sink = PortSink::new(&mut self.host, &mut self.pool, &self.shared.counters);
        self.pipeline.expire(now(), &mut sink);
        self.note();
    }

    /// One turn: a batch from each port. Returns how many packets came.
    pub fn turn(&mut self) -> usize {
        while let Ok(tables) = self.published.try_recv() {
            self.tables = tables;
        }
        let outbound = self.turn_outbound();
        let inbound = (0..self.wire.len())
            .map(|port| self.turn_inbound(port))
            .sum::<usize>();
        outbound + inbound
    }

    /// Host to wire.
    fn turn_outbound(&mut self) -> usize {
        let count = self.host.receive(&mut self.pool, &mut self.batch, BATCH);
        let counters = &self.shared.counters;
        if count > 0 {
            add(&counters.from_host, count as u64);
            let Some(wire) = self.wire.first_mut() else {
                return 0;
            };
            let mut sink = PortSink::new(wire, &mut self.pool, counters);
            sink.back = Some(&mut self.host);
            let batch = self.batch.drain(..);
            self.pipeline
                .outbound(&self.tables, self.mtu.wire, now(), batch, &mut sink);
            add(&counters.sealed, sink.sent);
            add(&counters.bypassed, sink.passed);
        }
        if let Some(wire) = self.wire.first_mut() {
            wire.flush(&mut self.pool);
        }
        count
    }

    /// One queue of the wire to the host.
    fn turn_inbound(&mut self, port: usize) -> usize {
        let count = self.wire[port].receive(&mut self.pool, &mut self.batch, BATCH);
        let counters = &self.shared.counters;
        if count > 0 {
            add(&counters.from_wire, count as u64);
            let mut sink = PortSink::new(&mut self.host, &mut self.pool, counters);
            let batch = self.batch.drain(..);
            self.pipeline
                .inbound(&self.tables, self.mtu.host, now(), batch, &mut sink);
            add(&counters.opened, sink.sent);
            add(&counters.bypassed, sink.passed);
        }
        self.host.flush(&mut self.pool);
        count
    }

    /// Sleeps until a port has packets or somebody wakes it; says whether that was so.
    fn sleep(&self) -> bool {
        add(&self.shared.counters.sleeps, 1);
        // One descriptor a queue: the list is as short as the NIC's queues are few.
        let mut descriptors: Vec<PollFd<'_>> = self
            .wire
            .iter()
            .map(Port::descriptor)
            .chain([self.host.descriptor(), Some(self.shared.wake.as_fd())])
            .flatten()
            .map(|descriptor| PollFd::new(descriptor, PollFlags::POLLIN))
            .collect();
        // An interrupted poll is a short sleep.
        let woken = poll(&mut descriptors, PollTimeout::from(SLEEP)) != Ok(0);
        let _ = self.shared.wake.read();
        woken
    }

    /// Notes what only this thread can ask the kernel: its CPU time, and what its sockets lost.
    fn note(&self) {
        use nix::time::{ClockId, clock_gettime};
        let counters = &self.shared.counters;
        if let Ok(time) = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID) {
            let nanoseconds = std::time::Duration::from(time).as_nanos();
            let nanoseconds = u64::try_from(nanoseconds).unwrap_or(u64::MAX);
            counters.cpu.store(nanoseconds, Ordering::Relaxed);
        }
        let ports = self
            .wire
            .iter()
            .map(Port::losses)
            .chain([self.host.losses()]);
        let losses = ports.fold(Losses::default(), |sum, losses| Losses {
            receive: sum.receive + losses.receive,
            send: sum.send + losses.send,
            refused: sum.refused + losses.refused,
            too_long: sum.too_long + losses.too_long,
        });
        for (reason, count) in [
            (DropReason::RxOverflow, losses.receive),
            (DropReason::FrameTooLong, losses.too_long),
            (DropReason::TxRejected, losses.send),
            (DropReason::SuperpacketRefused, losses.refused),
        ] {
            counters.drops[reason.index()].store(count, Ordering::Relaxed);
        }
    }

    /// Gives up what has not become whole of fragments: nothing more comes.
    pub fn give_up_fragments(&mut self) {
        let mut sink = PortSink::new(&mut self.host, &mut self.pool, &self.shared.counters);
        self.pipeline.expire(u64::MAX, &mut sink);
    }

    /// Ends the worker and gives back its wire ports and its host port.
    #[must_use]
    pub fn into_ports(self) -> (Vec<W>, H) {
        (self.wire, self.host)
    }

    /// The wire ports, the host port and the pool, for tests and benchmarks.
    pub fn parts(&mut self) -> (&mut [W], &mut H, &mut Pool) {
        (&mut self.wire, &mut self.host, &mut self.pool)
    }
}

/// Milliseconds of the monotonic clock, as coarse as the kernel's tick: reading it costs next to nothing.
#[must_use]
pub fn now() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |time| {
        u64::try_from(std::time::Duration::from(time).as_millis()).unwrap_or(u64::MAX)
    })
}

/// Sends to a port; counts and gives back what is not sent.
struct PortSink<'a, P> {
    port: &'a mut P,
    /// Where the batch came from, if it may be answered.
    back: Option<&'a mut dyn Port>,
    pool: &'a mut Pool,
    counters: &'a Counters,
    sent: u64,
    passed: u64,
}

impl<'a, P> PortSink<'a, P> {
    fn new(port: &'a mut P, pool: &'a mut Pool, counters: &'a Counters) -> Self {
        Self {
            port,
            back: None,
            pool,
            counters,
            sent: 0,
            passed: 0,
        }
    }
}

impl<P: Port> Sink for PortSink<'_, P> {
    #[inline]
    fn send(&mut self, mut frame: Frame) {
        frame.set_authenticated(true);
        match self.port.queue(frame, self.pool) {
            Ok(()) => self.sent += 1,
            Err(frame) => self.discard(frame, DropReason::TxRingFull),
        }
    }

    fn pass(&mut self, mut frame: Frame) {
        frame.set_authenticated(false);
        match self.port.queue(frame, self.pool) {
            Ok(()) => self.passed += 1,
            Err(frame) => self.discard(frame, DropReason::TxRingFull),
        }
    }

    fn answer(&mut self, mut frame: Frame) {
        frame.set_authenticated(false);
        let sent = match self.back.as_mut() {
            Some(back) => back.queue(frame, self.pool),
            None => Err(frame),
        };
        // What it answers is counted; an answer that does not fit is sent again for the next packet.
        if let Err(frame) = sent {
            self.pool.give(frame);
        }
    }

    #[inline]
    fn count(&mut self, reason: DropReason, packets: u64) {
        add(&self.counters.drops[reason.index()], packets);
    }
}

impl<P> Supply<Frame> for PortSink<'_, P> {
    fn take(&mut self, length: usize) -> Option<Frame> {
        self.pool.take_for(length)
    }

    fn lengthen(&mut self, frame: Frame) -> Frame {
        self.pool.lengthen(frame)
    }

    #[inline]
    fn give(&mut self, frame: Frame) {
        self.pool.give(frame);
    }
}

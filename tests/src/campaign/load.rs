//! Load of a campaign: numbered UDP packets and a paced TCP stream in both directions. It says when something came again,
//! and how long nothing came.

use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::numbers::Numbers;
use crate::lab::{Lab, Side};

/// Bytes of a UDP packet's payload.
const SIZE: usize = 200;
/// How often something is sent.
const TICK: Duration = Duration::from_millis(1);
/// How long a thread waits before it looks whether all is over.
const LOOK: Duration = Duration::from_millis(50);
/// Bytes of TCP that are sent at once.
const CHUNK: usize = 8 << 10;
/// That often they are sent, divided by the rate of UDP packets: TCP has somewhat more bytes than UDP.
const CHUNK_TICK: Duration = Duration::from_secs(25);
/// Bytes of TCP by which it goes on: more than may have been on their way.
const PROGRESS: u64 = 64 << 10;
/// How long a TCP connection may stand still until another is tried.
const STANDSTILL: Duration = Duration::from_secs(3);
/// Names of the flows, as they are in [`Load::flows`].
const NAMES: [&str; 4] = ["UDP a to b", "UDP b to a", "TCP a to b", "TCP b to a"];

/// One direction of one protocol. Counts packets of UDP, bytes of TCP.
#[derive(Debug, Default)]
struct Flow {
    sent: AtomicU64,
    received: AtomicU64,
    /// UDP packets that came again; TCP connections made anew.
    again: AtomicU64,
    /// From this on it counts as flowing.
    wanted: AtomicU64,
    /// When that came, in microseconds; 0 if it has not.
    came: AtomicU64,
    /// When the last one came.
    last: AtomicU64,
    /// The longest time without one.
    gap: AtomicU64,
}

impl Flow {
    /// Notes that something has come, `number` of all.
    fn arrived(&self, number: u64, now: u64) {
        let last = self.last.swap(now, Ordering::Relaxed);
        self.gap
            .fetch_max(now.saturating_sub(last), Ordering::Relaxed);
        if number >= self.wanted.load(Ordering::Relaxed) {
            let _ = self
                .came
                .compare_exchange(0, now, Ordering::Relaxed, Ordering::Relaxed);
        }
    }

    fn want(&self, number: u64) {
        // In this order, so that what came before is not taken for what is wanted now.
        self.wanted.store(u64::MAX, Ordering::SeqCst);
        self.came.store(0, Ordering::SeqCst);
        self.wanted.store(number, Ordering::SeqCst);
    }
}

/// What the threads share.
#[derive(Debug)]
struct Shared {
    start: Instant,
    end: AtomicBool,
    flows: [Flow; 4],
}

impl Shared {
    fn now(&self) -> u64 {
        // Not 0, which stands for never.
        u64::try_from(self.start.elapsed().as_micros()).unwrap_or(u64::MAX) + 1
    }

    fn ended(&self) -> bool {
        self.end.load(Ordering::Relaxed)
    }
}

/// The load, until it is dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<()>>>,
}

/// How traffic came back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recovery {
    /// Until UDP flowed both ways.
    pub udp: Duration,
    /// Until TCP did, which tries at ever longer intervals.
    pub tcp: Duration,
    /// The longest time without a UDP packet in a direction, from [`Load::begin`] on.
    pub gap: Duration,
}

/// What was sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    /// UDP packets sent, both ways.
    pub udp_sent: u64,
    /// Those that came.
    pub udp_received: u64,
    /// TCP bytes that came.
    pub tcp_received: u64,
    /// TCP connections that were made because another did not go on.
    pub tcp_anew: u64,
}

impl Load {
    /// Starts it, with `rate` UDP packets a second each way, and TCP in proportion.
    ///
    /// # Errors
    /// A socket cannot be made.
    pub fn start(lab: &Lab, rate: u32) -> Result<Self> {
        let shared = Arc::new(Shared {
            start: Instant::now(),
            end: AtomicBool::new(false),
            flows: Default::default(),
        });
        let mut this = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        for way in 0..2 {
            let (from, to) = (&lab.sides[way], &lab.sides[1 - way]);
            this.udp(from, to, way, rate)?;
            this.tcp(from, to, 2 + way, CHUNK_TICK / rate)?;
        }
        Ok(this)
    }

    fn udp(&mut self, from: &Side, to: &Side, flow: usize, rate: u32) -> Result<()> {
        let address = SocketAddr::new(to.inner, 5300);
        let receiver = to.namespace.within(|| Ok(UdpSocket::bind(address)?))?;
        receiver.set_read_timeout(Some(LOOK))?;
        let local = SocketAddr::new(from.inner, 0);
        let sender = from.namespace.within(|| {
            let socket = UdpSocket::bind(local)?;
            socket.connect(address)?;
            Ok(socket)
        })?;
        self.thread(move |shared| send_udp(&sender, rate, shared, &shared.flows[flow]));
        self.thread(move |shared| receive_udp(&receiver, shared, &shared.flows[flow]));
        Ok(())
    }

    fn tcp(&mut self, from: &Side, to: &Side, flow: usize, tick: Duration) -> Result<()> {
        let address = SocketAddr::new(to.inner, 5400);
        let listener = to.namespace.within(|| Ok(TcpListener::bind(address)?))?;
        listener.set_nonblocking(true)?;
        let namespace = from.namespace.clone();
        self.thread(move |shared| {
            namespace.within(|| send_tcp(address, tick, shared, &shared.flows[flow]))
        });
        self.thread(move |shared| receive_tcp(&listener, shared, &shared.flows[flow]));
        Ok(())
    }

    fn thread(&mut self, work: impl FnOnce(&Shared) -> Result<()> + Send + 'static) {
        let shared = Arc::clone(&self.shared);
        self.threads.push(std::thread::spawn(move || work(&shared)));
    }

    /// From now on it is measured how long nothing comes.
    pub fn begin(&self) {
        for flow in &self.shared.flows {
            flow.gap.store(0, Ordering::Relaxed);
        }
    }

    /// From now on traffic is to flow: only what is sent from now on tells. Returns the time.
    #[must_use]
    pub fn mark(&self) -> u64 {
        let now = self.shared.now();
        for (number, flow) in self.shared.flows.iter().enumerate() {
            if number < 2 {
                flow.want(flow.sent.load(Ordering::SeqCst));
            } else {
                flow.want(flow.received.load(Ordering::SeqCst) + PROGRESS);
            }
        }
        now
    }

    /// Waits until traffic flows in every direction, after a [`Load::mark`] at that time.
    ///
    /// # Errors
    /// It does not within `limit` of the mark, or a thread has ended.
    pub fn wait(&self, mark: u64, limit: Duration) -> Result<Recovery> {
        let flows = &self.shared.flows;
        let came = |flow: &Flow| flow.came.load(Ordering::Relaxed);
        while flows.iter().any(|flow| came(flow) == 0) {
            let passed = Duration::from_micros(self.shared.now().saturating_sub(mark));
            if passed > limit {
                let silent = NAMES.iter().zip(flows).filter(|(_, flow)| came(flow) == 0);
                let silent: Vec<&str> = silent.map(|(name, _)| *name).collect();
                bail!(
                    "after {passed:?} there is still no {}",
                    silent.join(", no ")
                );
            }
            self.alive()?;
            std::thread::sleep(TICK);
        }
        let after = |flows: &[Flow]| {
            let latest = flows.iter().map(came).max().unwrap_or_default();
            Duration::from_micros(latest.saturating_sub(mark))
        };
        let gaps = flows[..2]
            .iter()
            .map(|flow| flow.gap.load(Ordering::Relaxed));
        let recovery = Recovery {
            udp: after(&flows[..2]),
            tcp: after(&flows[2..]),
            gap: Duration::from_micros(gaps.max().unwrap_or_default()),
        };
        ensure!(
            recovery.udp.max(recovery.tcp) <= limit,
            "traffic flows only after {recovery:?}"
        );
        Ok(recovery)
    }

    /// Sees that traffic flows now.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn flows(&self, limit: Duration) -> Result<Recovery> {
        self.wait(self.mark(), limit)
    }

    /// Sees that nothing came twice.
    ///
    /// # Errors
    /// Something has.
    pub fn judge(&self) -> Result<()> {
        self.alive()?;
        for (name, flow) in NAMES.iter().zip(&self.shared.flows).take(2) {
            let twice = flow.again.load(Ordering::Relaxed);
            ensure!(twice == 0, "{name}: {twice} packets came twice");
        }
        Ok(())
    }

    fn alive(&self) -> Result<()> {
        let dead = self.threads.iter().any(JoinHandle::is_finished);
        ensure!(!dead, "a thread of the load has ended");
        Ok(())
    }

    /// What was sent so far.
    #[must_use]
    pub fn totals(&self) -> Totals {
        let [udp, tcp] = [&self.shared.flows[..2], &self.shared.flows[2..]];
        let sum = |flows: &[Flow], counter: fn(&Flow) -> &AtomicU64| {
            let values = flows
                .iter()
                .map(|flow| counter(flow).load(Ordering::Relaxed));
            values.sum()
        };
        Totals {
            udp_sent: sum(udp, |flow| &flow.sent),
            udp_received: sum(udp, |flow| &flow.received),
            tcp_received: sum(tcp, |flow| &flow.received),
            tcp_anew: sum(tcp, |flow| &flow.again),
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// What a thread died of.
    pub fn finish(mut self) -> Result<Totals> {
        self.shared.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            thread.join().map_err(|_| anyhow!("it panicked"))??;
        }
        Ok(self.totals())
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.end.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn send_udp(socket: &UdpSocket, rate: u32, shared: &Shared, flow: &Flow) -> Result<()> {
    let mut packet = [0; SIZE];
    let mut number = 0_u64;
    while !shared.ended() {
        let due = shared.now() * u64::from(rate) / 1_000_000;
        // What was not sent while this stood still is not made up for.
        number = number.max(due.saturating_sub(100));
        while number < due {
            packet[..8].copy_from_slice(&number.to_le_bytes());
            number += 1;
            flow.sent.store(number, Ordering::SeqCst);
            // A NIC that is down may be said here.
            let _ = socket.send(&packet);
        }
        std::thread::sleep(TICK);
    }
    Ok(())
}

fn receive_udp(socket: &UdpSocket, shared: &Shared, flow: &Flow) -> Result<()> {
    let mut seen = Numbers::default();
    let mut packet = [0; SIZE];
    while !shared.ended() {
        let Ok(length) = socket.recv(&mut packet) else {
            continue;
        };
        ensure!(length == SIZE, "{length} bytes came");
        let (number, _) = packet.split_first_chunk().context("a number")?;
        let number = u64::from_le_bytes(*number);
        if seen.insert(number) {
            flow.received.fetch_add(1, Ordering::Relaxed);
        } else {
            flow.again.fetch_add(1, Ordering::Relaxed);
        }
        flow.arrived(number, shared.now());
    }
    Ok(())
}

fn send_tcp(to: SocketAddr, tick: Duration, shared: &Shared, flow: &Flow) -> Result<()> {
    while !shared.ended() {
        let Ok(stream) = TcpStream::connect_timeout(&to, Duration::from_secs(1)) else {
            std::thread::sleep(LOOK);
            continue;
        };
        stream.set_write_timeout(Some(LOOK))?;
        send_on(&stream, tick, shared, flow);
        if !shared.ended() {
            flow.again.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(())
}

/// Sends on one connection as long as it goes on.
fn send_on(mut stream: &TcpStream, tick: Duration, shared: &Shared, flow: &Flow) {
    use std::io::{ErrorKind, Write};
    let chunk = [0; CHUNK];
    let begun = shared.now();
    while !shared.ended() {
        match stream.write(&chunk) {
            Ok(count) => {
                flow.sent.fetch_add(count as u64, Ordering::Relaxed);
            }
            // There is no room yet.
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => return,
        }
        let last = flow.last.load(Ordering::Relaxed).max(begun);
        if Duration::from_micros(shared.now().saturating_sub(last)) > STANDSTILL {
            return;
        }
        std::thread::sleep(tick);
    }
}

fn receive_tcp(listener: &TcpListener, shared: &Shared, flow: &Flow) -> Result<()> {
    use std::io::Read;
    let mut buffer = vec![0; 64 << 10];
    let mut current: Option<TcpStream> = None;
    while !shared.ended() {
        // A new one takes the place of one that does not go on.
        if let Ok((stream, _)) = listener.accept() {
            stream.set_nonblocking(false)?;
            stream.set_read_timeout(Some(LOOK))?;
            current = Some(stream);
        }
        match current.as_mut().map(|stream| stream.read(&mut buffer)) {
            Some(Ok(count @ 1..)) => {
                let received = flow.received.fetch_add(count as u64, Ordering::SeqCst);
                flow.arrived(received + count as u64, shared.now());
            }
            Some(Ok(0)) => current = None,
            // Nothing came yet.
            Some(Err(_)) => {}
            None => std::thread::sleep(TICK),
        }
    }
    Ok(())
}

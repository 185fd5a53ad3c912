//! Two workers of this process, each with the TAP of a hypervisor as its host port, and a wire in memory between them. All but
//! that wire is what the datapath has: the host port, steering, tables, workers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culvert_datapath::frame::{CHUNK, Pool};
use culvert_datapath::guard::Guarded;
use culvert_datapath::host_port::{self, HostPort};
use culvert_datapath::lengths::Buffers;
use culvert_datapath::nic::Nic;
use culvert_datapath::port::Port;
use culvert_datapath::port::tap::{Lengths, TapPort};
use culvert_datapath::settings::{HostPort as Kind, Xdp};
use culvert_datapath::steer::{Steering, SteeringConfig};
use culvert_datapath::tables::Database;
use culvert_datapath::worker::{Handle, Mtu, Worker};
use culvert_esp::Choice;
use culvert_proto::message::Update;
use culvert_proto::sa::{
    Action, Cipher, Direction, Keymat, Lifetime, PolicySpec, SaId, SaSpec, Selector, Spi, StateRef,
    VniRange,
};
use culvert_state::Words;
use culvert_state::layout::{inbound, outbound};
use culvert_tests::geneve::VNI;
use culvert_tests::lab::{HOST_PORT, Lab, SPIS, Side, WIRE};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::joined::JoinedPort;

/// Frames of each worker. Their memory is never freed: 8 MiB a step.
const FRAMES: u32 = 1024;
/// Replay window, in packets.
const WINDOW: u32 = 1024;
/// As the workers have it: time without a packet after which they sleep.
const IDLE: Duration = Duration::from_micros(50);
/// The longest sleep in milliseconds.
const SLEEP: u16 = 50;

type LoopWorker = Worker<JoinedPort, TapPort>;

/// Both workers, at work until this is dropped.
pub(super) struct Pair {
    handles: [Handle; 2],
    /// CPU time of the one thread that has both, in nanoseconds.
    cpu: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
    /// Of the ciphers.
    pub(super) backends: BTreeMap<String, String>,
    _steering: [Steering; 2],
}

/// What the workers have done until now; differences count.
#[derive(Clone, Debug, Default)]
pub(super) struct Done {
    /// Frames that a's host port gave.
    pub(super) from_host: u64,
    /// Packets sealed by both.
    pub(super) sealed: u64,
    /// Packets that b took to its host port.
    pub(super) to_host: u64,
    /// Packets that either sent in clear.
    pub(super) bypassed: u64,
    /// CPU seconds, by thread.
    pub(super) seconds: BTreeMap<String, f64>,
}

impl Pair {
    /// Sets both ends up in `lab`: under `cipher`, or with policies that bypass. One thread takes turns with both workers, or each
    /// has its own.
    pub(super) fn start(lab: &mut Lab, cipher: Option<Cipher>, threads: u32) -> Result<Self> {
        let keys = match cipher {
            Some(cipher) => Some([key(cipher)?, key(cipher)?]),
            None => None,
        };
        let outer = lab.outer();
        let choice = Choice::default();
        let mut end = |number: usize, wire: JoinedPort| -> Result<_> {
            let ends = [outer[number], outer[1 - number]];
            let update = match (cipher, &keys) {
                (Some(cipher), Some(keys)) => protected(cipher, keys, number, ends)?,
                _ => bypassed(ends),
            };
            let side = &mut lab.sides[number];
            let (steering, host, mtu) = attach(side, &update)?;
            side.listen_on(HOST_PORT)?;
            let words = |state: StateRef| Ok(Words::on_heap(state.words as usize));
            let tables = Database::new(choice).updated(update, words)?.snapshot();
            let pool = Pool::on_heap(FRAMES, CHUNK);
            let (worker, handle) = Worker::new(vec![wire], host, mtu, pool)?;
            handle.publish(Arc::new(tables));
            Ok((worker, handle, steering))
        };
        let [a, b] = JoinedPort::pair()?;
        let (a, b) = (end(0, a)?, end(1, b)?);
        let mut this = Self {
            handles: [a.1, b.1],
            cpu: Arc::default(),
            end: Arc::default(),
            threads: Vec::new(),
            backends: choice.names(),
            _steering: [a.2, b.2],
        };
        this.run([a.0, b.0], threads)?;
        Ok(this)
    }

    fn run(&mut self, workers: [LoopWorker; 2], threads: u32) -> Result<()> {
        if threads == 1 {
            let (cpu, end) = (Arc::clone(&self.cpu), Arc::clone(&self.end));
            let work = move || alternate(workers, &cpu, &end);
            return self.spawn("workers", 0, work);
        }
        for (number, mut worker) in workers.into_iter().enumerate() {
            let name = ["worker a", "worker b"][number];
            self.spawn(name, number, move || worker.run())?;
        }
        Ok(())
    }

    fn spawn(
        &mut self,
        name: &str,
        core: usize,
        work: impl FnOnce() + Send + 'static,
    ) -> Result<()> {
        let there = std::thread::available_parallelism()?.get();
        let mut cores = CpuSet::new();
        cores.set(core % there)?;
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // A machine that binds nothing measures less evenly, and no more.
                let _ = sched_setaffinity(Pid::from_raw(0), &cores);
                work();
            })?;
        self.threads.push(thread);
        Ok(())
    }

    /// What they have done.
    pub(super) fn done(&self) -> Done {
        let [a, b] = self.handles.each_ref().map(Handle::counters);
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut seconds = BTreeMap::new();
        let mut add = |name: &str, cpu: &AtomicU64| {
            let time = Duration::from_nanos(load(cpu));
            seconds.insert(name.to_owned(), time.as_secs_f64());
        };
        if self.threads.len() == 1 {
            add("workers", &self.cpu);
        } else {
            add("worker a", &a.cpu);
            add("worker b", &b.cpu);
        }
        Done {
            from_host: load(&a.from_host),
            sealed: load(&a.sealed) + load(&b.sealed),
            to_host: load(&b.from_wire),
            bypassed: load(&a.bypassed) + load(&b.bypassed),
            seconds,
        }
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.handles.iter().for_each(Handle::stop);
        for thread in self.threads.drain(..) {
            // What it died of, the panic itself has said.
            let _ = thread.join();
        }
    }
}

/// Takes turns. What one has sent is received by the other in the next one, while it is in the nearest caches; so a batch goes
/// all the way before the next is looked at.
fn alternate(mut workers: [LoopWorker; 2], cpu: &AtomicU64, end: &AtomicBool) {
    let mut since = None;
    let mut turns = 0_u32;
    while !end.load(Ordering::Relaxed) {
        let came: usize = workers.iter_mut().map(Worker::turn).sum();
        turns = turns.wrapping_add(1);
        if came > 0 {
            since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed() >= IDLE {
            let [a, b] = &mut workers;
            let taps = [a.parts().1.descriptor(), b.parts().1.descriptor()];
            let mut taps: Vec<PollFd<'_>> = taps
                .into_iter()
                .flatten()
                .map(|tap| PollFd::new(tap, PollFlags::POLLIN))
                .collect();
            // An interrupted poll is a short sleep.
            let _ = poll(&mut taps, PollTimeout::from(SLEEP));
            since = None;
        }
        if came == 0 || turns.is_multiple_of(1024) {
            note(cpu);
        }
    }
    note(cpu);
}

fn note(cpu: &AtomicU64) {
    if let Ok(time) = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID) {
        let nanoseconds = u64::try_from(Duration::from(time).as_nanos());
        cpu.store(nanoseconds.unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// The host port of a side, and the programs that capture for it. What would leave by the NIC in spite of that, is dropped there.
fn attach(side: &Side, update: &Update) -> Result<(Steering, TapPort, Mtu)> {
    let config = SteeringConfig {
        wire: WIRE.to_owned(),
        host_outer: HOST_PORT.to_owned(),
        host_inner: None,
        pins: side.folder.join("bpf"),
        xdp: Xdp::Auto,
        buffers: Buffers::One,
    };
    side.namespace.within(|| {
        let port = host_port::ensure(Kind::Tap, HOST_PORT, "", WIRE, 1, Buffers::One.longest())?;
        let HostPort::Tap(tap) = port else {
            bail!("a host port that is no TAP");
        };
        let mut steering = Steering::attach(&config)?;
        steering.set_guarded(&Guarded::of(update.add_policies.iter()))?;
        let [wire, host] = [WIRE, HOST_PORT].map(Nic::query);
        let (wire, host) = (wire?.mtu as usize, host?.mtu as usize);
        let queue = tap.queues.into_iter().next().context("no queue")?;
        let port = TapPort::new(queue, tap.layout, Lengths::of_wire(wire));
        Ok((steering, port, Mtu { wire, host }))
    })
}

/// What a side is told whose packets are let by.
fn bypassed(ends: [IpAddr; 2]) -> Update {
    let hosts = Selector::hosts(ends[0], ends[1]);
    let tunnel = Selector {
        vnis: vec![VniRange {
            first: VNI,
            last: VNI,
        }],
        ..hosts.clone()
    };
    let policy = |order, selector, action| PolicySpec {
        selector,
        order,
        action,
    };
    Update {
        reset: true,
        add_policies: vec![
            policy(0, tunnel, Action::Bypass),
            // What is guarded passes by the workers, also what a policy lets go in clear.
            policy(1, hosts, Action::Discard),
        ],
        ..Update::default()
    }
}

/// What a side is told whose packets are sealed. `keys` are from a to b, and back.
fn protected(
    cipher: Cipher,
    keys: &[Vec<u8>; 2],
    number: usize,
    ends: [IpAddr; 2],
) -> Result<Update> {
    let sa = |way: usize| -> Result<SaSpec> {
        let (direction, [source, destination], words) = if way == number {
            (Direction::Out, ends, outbound::WORDS)
        } else {
            (Direction::In, [ends[1], ends[0]], inbound::words(WINDOW))
        };
        Ok(SaSpec {
            id: SaId {
                direction,
                spi: Spi::new(SPIS[way]).context("a reserved SPI")?,
                destination,
            },
            source,
            cipher,
            keymat: Keymat::new(keys[way].clone()),
            esn: true,
            replay_window: WINDOW,
            encapsulation: None,
            tfc: 0,
            lifetime: Lifetime::default(),
            state: StateRef {
                offset: 0,
                words: u32::try_from(words)?,
            },
        })
    };
    let (out, into) = (sa(number)?, sa(1 - number)?);
    Ok(Update {
        reset: true,
        add_policies: vec![PolicySpec {
            selector: Selector::hosts(ends[0], ends[1]),
            order: 0,
            action: Action::Protect {
                outbound: Some(out.id),
                inbound: vec![into.id],
            },
        }],
        add_sas: vec![out, into],
        ..Update::default()
    })
}

fn key(cipher: Cipher) -> Result<Vec<u8>> {
    let mut bytes = vec![0; cipher.keymat_length()];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

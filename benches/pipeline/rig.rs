//! Two pipelines that are each other's peer, and batches of frames in memory that go through one of them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use culvert_benches::{ADDRESSES, WINDOW, geneve, specs};
use culvert_datapath::frame::{Frame, Pool};
use culvert_datapath::pipeline::{Pipeline, Sink};
use culvert_datapath::port::memory::MemoryPort;
use culvert_datapath::sizes::Supply;
use culvert_datapath::tables::{Database, Tables};
use culvert_datapath::worker::{BATCH, Handle, Mtu, Worker};
use culvert_esp::{Backend, UDP_HEADER};
use culvert_packet::reason::DropReason;
use culvert_proto::message::Update;
use culvert_proto::policy::{Action, PolicySpec, Selector};
use culvert_proto::sa::Cipher;
use culvert_state::Words;

/// A wire and a host that take every packet.
const MTU: usize = 9000;
/// Chunks, as the kernel shares them.
const CHUNK: u32 = 4096;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// Clear Geneve to ESP.
    Out,
    /// ESP to clear Geneve.
    In,
}

impl Way {
    pub(crate) const ALL: [Self; 2] = [Self::Out, Self::In];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Out => "out",
            Self::In => "in",
        }
    }
}

/// Takes what comes out of a pipeline.
struct Collected {
    frames: Vec<Frame>,
    pool: Pool,
}

impl Sink for Collected {
    #[inline]
    fn send(&mut self, frame: Frame) {
        self.frames.push(frame);
    }

    fn pass(&mut self, _: Frame) {
        panic!("in clear");
    }

    fn answer(&mut self, _: Frame) {
        panic!("answered");
    }

    fn count(&mut self, reason: DropReason, _: u64) {
        panic!("dropped: {reason:?}");
    }
}

impl Supply<Frame> for Collected {
    fn take(&mut self, _length: usize) -> Option<Frame> {
        self.pool.take()
    }

    fn give(&mut self, frame: Frame) {
        self.pool.give(frame);
    }
}

/// One pipeline, and a batch that goes through it again and again.
pub(crate) struct Rig {
    way: Way,
    tables: Tables,
    /// The inbound SA's replay window, to be forgotten before the same packets come again.
    window: Words,
    pipeline: Pipeline,
    sink: Collected,
    /// What each frame holds when it arrives.
    arriving: Vec<Vec<u8>>,
    frames: Vec<Frame>,
}

impl Rig {
    /// Batches of `batch` packets with `payload` bytes behind the UDP header.
    pub(crate) fn new(
        way: Way,
        cipher: Cipher,
        backend: Backend,
        payload: usize,
        batch: usize,
    ) -> Self {
        let arriving = arriving(way, cipher, backend, payload, batch);
        let (tables, window) = tables(way, cipher, backend);
        let frames = u32::try_from(batch).expect("a batch");
        let mut pool = Pool::on_heap(frames, CHUNK);
        Self {
            way,
            tables,
            window,
            pipeline: Pipeline::new(batch, CHUNK as usize),
            arriving,
            frames: std::iter::from_fn(|| pool.take()).collect(),
            sink: Collected {
                frames: Vec::with_capacity(batch),
                pool,
            },
        }
    }

    /// Packets a batch.
    pub(crate) fn batch(&self) -> usize {
        self.arriving.len()
    }

    /// Has the batch arrive.
    pub(crate) fn prepare(&mut self) {
        arrive(&self.arriving, self.frames.iter_mut(), &self.window);
    }

    /// Takes the batch through the pipeline, from received to finished frames.
    #[inline]
    pub(crate) fn run(&mut self) {
        let batch = self.frames.drain(..);
        let (tables, sink) = (&self.tables, &mut self.sink);
        match self.way {
            Way::Out => self.pipeline.outbound(tables, MTU, 1, batch, sink),
            Way::In => self.pipeline.inbound(tables, MTU, 1, batch, sink),
        }
        std::mem::swap(&mut self.frames, &mut sink.frames);
        debug_assert_eq!(self.frames.len(), self.arriving.len());
    }
}

/// Packets with `payload` bytes behind the UDP header, as they come from a host or from its peer.
fn arriving(
    way: Way,
    cipher: Cipher,
    backend: Backend,
    payload: usize,
    count: usize,
) -> Vec<Vec<u8>> {
    match way {
        Way::Out => vec![geneve(UDP_HEADER + payload).0; count],
        Way::In => {
            let mut peer = Rig::new(Way::Out, cipher, backend, payload, count);
            peer.prepare();
            peer.run();
            let sealed = peer.frames.iter().map(|frame| frame.bytes().to_vec());
            sealed.collect()
        }
    }
}

/// Has `packets` arrive in `frames`, as if for the first time.
fn arrive<'a>(packets: &[Vec<u8>], frames: impl Iterator<Item = &'a mut Frame>, window: &Words) {
    for (frame, bytes) in frames.zip(packets) {
        frame.write(bytes).expect("fits");
    }
    for word in window.iter() {
        word.store(0, Ordering::Relaxed);
    }
}

/// The same with a worker and its ports, in memory.
pub(crate) struct WorkerRig {
    way: Way,
    worker: Worker<MemoryPort, MemoryPort>,
    _handle: Handle,
    window: Words,
    arriving: Vec<Vec<u8>>,
}

impl WorkerRig {
    /// Batches as large as a worker takes them.
    pub(crate) fn new(way: Way, cipher: Cipher, backend: Backend, payload: usize) -> Self {
        let (tables, window) = tables(way, cipher, backend);
        let pool = Pool::on_heap(u32::try_from(BATCH).expect("a batch"), CHUNK);
        let mtu = Mtu {
            wire: MTU,
            host: MTU,
        };
        let ports = (vec![MemoryPort::default()], MemoryPort::default());
        let (mut worker, handle) =
            Worker::new(ports.0, ports.1, mtu, pool).expect("an event descriptor");
        handle.publish(Arc::new(tables));
        let (wire, host, pool) = worker.parts();
        // Where they would be after a turn.
        let sent = match way {
            Way::Out => &mut wire[0].sent,
            Way::In => &mut host.sent,
        };
        sent.extend(std::iter::from_fn(|| pool.take()));
        Self {
            way,
            worker,
            _handle: handle,
            window,
            arriving: arriving(way, cipher, backend, payload, BATCH),
        }
    }

    /// Has the batch arrive.
    pub(crate) fn prepare(&mut self) {
        let (wire, host, _) = self.worker.parts();
        let (from, to) = match self.way {
            Way::Out => (&mut *host, &mut wire[0]),
            Way::In => (&mut wire[0], &mut *host),
        };
        std::mem::swap(&mut from.arriving, &mut to.sent);
        assert_eq!(from.arriving.len(), BATCH, "all were sent");
        arrive(&self.arriving, from.arriving.iter_mut(), &self.window);
    }

    /// A turn of the worker.
    pub(crate) fn run(&mut self) {
        self.worker.turn();
    }
}

/// Tables of the sender or of the receiver, and the state of the SA that the packets are opened under.
fn tables(way: Way, cipher: Cipher, backend: Backend) -> (Tables, Words) {
    let [out, into] = specs(cipher);
    let [source, destination] = ADDRESSES.map(std::net::IpAddr::from);
    let window = Words::on_heap(culvert_state::layout::inbound::words(WINDOW));
    let (selector, spec, action) = match way {
        Way::Out => {
            let action = Action::Protect {
                outbound: Some(out.id),
                inbound: vec![],
            };
            (Selector::hosts(source, destination), out, action)
        }
        Way::In => {
            let action = Action::Protect {
                outbound: None,
                inbound: vec![into.id],
            };
            (Selector::hosts(destination, source), into, action)
        }
    };
    let update = Update {
        reset: true,
        add_sas: vec![spec],
        add_policies: vec![PolicySpec {
            selector,
            order: 0,
            action,
        }],
        ..Update::default()
    };
    let words = |_| match way {
        Way::Out => Ok(Words::on_heap(culvert_state::layout::outbound::WORDS)),
        Way::In => Ok(window.clone()),
    };
    let choice = backend.name().parse().expect("a backend of this machine");
    let database = Database::new(choice).updated(update, words);
    (database.expect("a good update").snapshot(), window)
}

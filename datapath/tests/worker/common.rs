//! Packets, SAs and workers in memory.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_datapath::frame::{CHUNK, LONG, Pool};
use culvert_datapath::port::memory::MemoryPort;
use culvert_datapath::tables::Database;
use culvert_datapath::worker::{Handle, Mtu, Worker};
use culvert_esp::Choice;
use culvert_proto::message::Update;
use culvert_proto::sa::{
    Action, Cipher, Direction, Keymat, Lifetime, PolicySpec, SaId, SaSpec, Selector, Spi, StateRef,
    UdpEncapsulation,
};
use culvert_state::Words;
use culvert_state::layout::{inbound, outbound};

pub(crate) const A4: &str = "192.0.2.1";
pub(crate) const B4: &str = "192.0.2.2";
pub(crate) const A6: &str = "2001:db8::1";
pub(crate) const B6: &str = "2001:db8::2";
pub(crate) const MTU: usize = 1500;
pub(crate) const HOST_MTU: usize = 3498;

pub(crate) type MemoryWorker = Worker<MemoryPort, MemoryPort>;

/// What varies between tests.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Kind {
    pub(crate) cipher: Cipher,
    pub(crate) esn: bool,
    pub(crate) v6: bool,
    pub(crate) encapsulated: bool,
    pub(crate) window: u32,
}

impl Default for Kind {
    fn default() -> Self {
        Self {
            cipher: Cipher::Aes256Gcm16,
            esn: true,
            v6: false,
            encapsulated: false,
            window: 64,
        }
    }
}

impl Kind {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        Cipher::ALL.into_iter().flat_map(|cipher| {
            (0..8).map(move |bits| Self {
                cipher,
                esn: bits & 1 != 0,
                v6: bits & 2 != 0,
                encapsulated: bits & 4 != 0,
                window: 64,
            })
        })
    }

    pub(crate) fn addresses(self) -> (IpAddr, IpAddr) {
        let (a, b) = if self.v6 { (A6, B6) } else { (A4, B4) };
        (a.parse().unwrap(), b.parse().unwrap())
    }
}

pub(crate) const SPI_AB: u32 = 0x1001;
pub(crate) const SPI_BA: u32 = 0x2001;

fn sa(kind: Kind, direction: Direction, spi: u32, source: IpAddr, destination: IpAddr) -> SaSpec {
    let words = match direction {
        Direction::In => inbound::words(kind.window),
        Direction::Out => outbound::WORDS,
    };
    let mut keymat = vec![spi.to_le_bytes()[0] ^ spi.to_le_bytes()[1]; kind.cipher.keymat_length()];
    keymat[0] = 7;
    SaSpec {
        id: SaId {
            direction,
            spi: Spi::new(spi).unwrap(),
            destination,
        },
        source,
        cipher: kind.cipher,
        keymat: Keymat::new(keymat),
        esn: kind.esn,
        replay_window: kind.window,
        encapsulation: kind.encapsulated.then_some(UdpEncapsulation {
            source_port: 4500,
            destination_port: 4500,
            keepalive: 0,
        }),
        tfc: 0,
        lifetime: Lifetime::default(),
        state: StateRef {
            offset: 0,
            words: words.try_into().unwrap(),
        },
    }
}

/// What host a (or, with `mirrored`, host b) is told.
pub(crate) fn update(kind: Kind, mirrored: bool) -> Update {
    let (a, b) = kind.addresses();
    let (local, remote) = if mirrored { (b, a) } else { (a, b) };
    let (out, into) = if mirrored {
        (SPI_BA, SPI_AB)
    } else {
        (SPI_AB, SPI_BA)
    };
    let (out, into) = (
        sa(kind, Direction::Out, out, local, remote),
        sa(kind, Direction::In, into, remote, local),
    );
    Update {
        reset: true,
        add_policies: vec![PolicySpec {
            selector: Selector::hosts(local, remote),
            order: 0,
            action: Action::Protect {
                outbound: Some(out.id),
                inbound: vec![into.id],
            },
        }],
        add_sas: vec![out, into],
        ..Update::default()
    }
}

pub(crate) fn heap_words(state: StateRef) -> Result<Words, String> {
    Ok(Words::on_heap(state.words as usize))
}

/// A worker with `kind`'s SAs in memory, and its handle.
pub(crate) fn worker(kind: Kind, mirrored: bool) -> (MemoryWorker, Handle) {
    worker_with(update(kind, mirrored))
}

pub(crate) fn worker_with(update: Update) -> (MemoryWorker, Handle) {
    let database = Database::new(Choice::default())
        .updated(update, heap_words)
        .unwrap();
    let (worker, handle) = worker_without_tables();
    handle.publish(Arc::new(database.snapshot()));
    (worker, handle)
}

/// As [`worker_with`], on a wire that takes any frame.
pub(crate) fn wide_worker(update: Update) -> (MemoryWorker, Handle) {
    let database = Database::new(Choice::default())
        .updated(update, heap_words)
        .unwrap();
    let mtu = Mtu {
        wire: 9000,
        host: 9000,
    };
    let (worker, handle) = Worker::new(
        vec![MemoryPort::default()],
        MemoryPort::default(),
        mtu,
        Pool::on_heap(256, 9216),
    )
    .unwrap();
    handle.publish(Arc::new(database.snapshot()));
    (worker, handle)
}

/// As [`worker_with`], between ports of MTU 9000 with frames of one chunk and long ones.
pub(crate) fn jumbo_worker(update: Update) -> (MemoryWorker, Handle) {
    let database = Database::new(Choice::default())
        .updated(update, heap_words)
        .unwrap();
    let mtu = Mtu {
        wire: 9000,
        host: 9000,
    };
    let mut pool = Pool::on_heap(256, CHUNK);
    pool.add_long(64, LONG);
    let (worker, handle) = Worker::new(
        vec![MemoryPort::default()],
        MemoryPort::default(),
        mtu,
        pool,
    )
    .unwrap();
    handle.publish(Arc::new(database.snapshot()));
    (worker, handle)
}

pub(crate) fn worker_without_tables() -> (MemoryWorker, Handle) {
    Worker::new(
        vec![MemoryPort::default()],
        MemoryPort::default(),
        Mtu {
            wire: MTU,
            host: HOST_MTU,
        },
        Pool::on_heap(256, 4096),
    )
    .unwrap()
}

/// What came out of a worker for what went in.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Out {
    pub(crate) wire: Vec<Vec<u8>>,
    pub(crate) host: Vec<Vec<u8>>,
}

/// A turn of the worker with `frame` at one side.
pub(crate) fn turn(worker: &mut MemoryWorker, from_host: bool, frame: &[u8]) -> Out {
    let (wire, host, pool) = worker.parts();
    let mut f = pool.take_for(frame.len()).unwrap();
    f.write(frame).unwrap();
    let arriving = if from_host {
        &mut host.arriving
    } else {
        &mut wire[0].arriving
    };
    arriving.push_back(f);
    worker.turn();
    let (wire, host, pool) = worker.parts();
    let mut take = |frames: &mut std::collections::VecDeque<_>| {
        let taken = frames.drain(..);
        taken
            .map(|frame: culvert_datapath::frame::Frame| {
                let bytes = frame.bytes().to_vec();
                pool.give(frame);
                bytes
            })
            .collect()
    };
    Out {
        wire: take(&mut wire[0].sent),
        host: take(&mut host.sent),
    }
}

/// Sends `frame` in at the host side; what comes out at the wire.
pub(crate) fn through_outbound(worker: &mut MemoryWorker, frame: &[u8]) -> Option<Vec<u8>> {
    let mut out = turn(worker, true, frame).wire;
    assert!(out.len() <= 1, "{out:?}");
    out.pop()
}

/// Sends `frame` in at the wire side; what comes out at the host.
pub(crate) fn through_inbound(worker: &mut MemoryWorker, frame: &[u8]) -> Option<Vec<u8>> {
    let mut out = turn(worker, false, frame).host;
    assert!(out.len() <= 1, "{out:?}");
    out.pop()
}

/// An Ethernet frame with Geneve from a to b, `payload` bytes behind the UDP header, and `vlans` tags.
pub(crate) fn geneve(kind: Kind, payload: usize, vlans: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    for tag in 0..vlans {
        frame.extend([0x81, 0, 0, u8::try_from(tag).unwrap() + 5]);
    }
    let udp_length = u16::try_from(payload + 8).unwrap();
    match kind.addresses() {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            let mut ip = vec![0x45, 0xb9];
            ip.extend((udp_length + 20).to_be_bytes());
            ip.extend([0x12, 0x34, 0x40, 0, 61, 17, 0, 0]);
            ip.extend(a.octets());
            ip.extend(b.octets());
            let sum = checksum(&ip);
            ip[10..12].copy_from_slice(&sum.to_be_bytes());
            frame.extend([8, 0]);
            frame.extend(ip);
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => {
            frame.extend([0x86, 0xdd, 0x6b, 0x9a, 0xbc, 0xde]);
            frame.extend(udp_length.to_be_bytes());
            frame.extend([17, 61]);
            frame.extend(a.octets());
            frame.extend(b.octets());
        }
        _ => unreachable!("both addresses are of one version"),
    }
    frame.extend(54321_u16.to_be_bytes());
    frame.extend(6081_u16.to_be_bytes());
    frame.extend(udp_length.to_be_bytes());
    frame.extend([0, 0]);
    // Geneve, Ethernet inside, VNI 77.
    let header = [0, 0, 0x65, 0x58, 0, 0, 77, 0];
    frame.extend(&header[..payload.min(8)]);
    frame.extend((8..payload).map(|at| u8::try_from(at % 251).unwrap()));
    frame
}

pub(crate) fn checksum(header: &[u8]) -> u16 {
    let mut sum: u32 = header
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}

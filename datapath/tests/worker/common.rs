//! Packets, SAs and workers in memory.

use std::net::IpAddr;
use std::sync::Arc;

use culvert_datapath::frame::Pool;
use culvert_datapath::port::memory::MemoryPort;
use culvert_datapath::tables::Database;
use culvert_datapath::worker::{Handle, Worker};
use culvert_esp::Backend;
use culvert_proto::message::Update;
use culvert_proto::sa::{
    Cipher, Direction, Keymat, PolicySpec, SaId, SaSpec, Spi, StateRef, UdpEncapsulation,
};
use culvert_state::Words;
use culvert_state::layout::{inbound, outbound};

pub(crate) const A4: &str = "192.0.2.1";
pub(crate) const B4: &str = "192.0.2.2";
pub(crate) const A6: &str = "2001:db8::1";
pub(crate) const B6: &str = "2001:db8::2";
pub(crate) const MTU: usize = 1500;

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
        }),
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
    Update {
        reset: true,
        add_sas: vec![
            sa(kind, Direction::Out, out, local, remote),
            sa(kind, Direction::In, into, remote, local),
        ],
        add_policies: vec![PolicySpec {
            local,
            remote,
            outbound: Some(Spi::new(out).unwrap()),
            inbound: vec![Spi::new(into).unwrap()],
        }],
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
    let database = Database::new(Backend::default())
        .updated(update, heap_words)
        .unwrap();
    let pool = Pool::on_heap(256, 4096);
    let (worker, handle) = Worker::new(
        vec![MemoryPort::default()],
        MemoryPort::default(),
        MTU,
        pool,
    )
    .unwrap();
    handle.publish(Arc::new(database.snapshot()));
    (worker, handle)
}

/// Sends `frame` in at the host side; what comes out at the wire.
pub(crate) fn through_outbound(worker: &mut MemoryWorker, frame: &[u8]) -> Option<Vec<u8>> {
    let (_, host, pool) = worker.parts();
    let mut f = pool.take().unwrap();
    f.write(frame).unwrap();
    host.arriving.push_back(f);
    worker.turn();
    let (wire, _, pool) = worker.parts();
    wire[0].sent.pop_front().map(|frame| {
        let bytes = frame.bytes().to_vec();
        pool.give(frame);
        bytes
    })
}

/// Sends `frame` in at the wire side; what comes out at the host.
pub(crate) fn through_inbound(worker: &mut MemoryWorker, frame: &[u8]) -> Option<Vec<u8>> {
    let (wire, _, pool) = worker.parts();
    let mut f = pool.take().unwrap();
    f.write(frame).unwrap();
    wire[0].arriving.push_back(f);
    worker.turn();
    let (_, host, pool) = worker.parts();
    host.sent.pop_front().map(|frame| {
        let bytes = frame.bytes().to_vec();
        pool.give(frame);
        bytes
    })
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
    frame.extend((0..payload).map(|at| u8::try_from(at % 251).unwrap()));
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

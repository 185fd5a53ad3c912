//! What happens to a batch of frames: packet logic, no I/O, no clock. Tests drive it from memory.
//!
//! Both directions take two steps: *sort* walks headers and finds each frame's SA, *work* goes over runs of
//! frames of the same SA, so that a run costs one lease and one update of counters.

use culvert_esp::{open, seal};
use culvert_packet::headers::{self, Fragment, Headers, Kind, Stop};
use culvert_packet::reason::DropReason;

use crate::frame::Frame;
use crate::tables::{Outbound, Tables};

/// A frame whose headers are walked and whose SA is found.
#[derive(Debug)]
struct Sorted {
    frame: Frame,
    headers: Headers,
    /// Index of the SA in the snapshot.
    sa: u32,
    /// ESP came in UDP; inbound only.
    encapsulated: bool,
    outcome: Result<(), DropReason>,
}

/// Where frames go.
pub trait Sink {
    /// A frame that is done, to be sent on.
    fn send(&mut self, frame: Frame);
    /// A frame that is lost, to be counted and given back.
    fn discard(&mut self, frame: Frame, reason: DropReason);
}

/// Scratch space for batches, kept so that no packet allocates.
#[derive(Debug, Default)]
pub struct Pipeline {
    sorted: Vec<Sorted>,
}

impl Pipeline {
    /// A pipeline for batches of at most `batch` frames.
    #[must_use]
    pub fn new(batch: usize) -> Self {
        Self {
            sorted: Vec::with_capacity(batch),
        }
    }

    /// Seals Geneve from the host. `wire_mtu` is the longest IP packet that the wire port takes, in bytes.
    pub fn outbound(
        &mut self,
        tables: &Tables,
        wire_mtu: usize,
        batch: impl Iterator<Item = Frame>,
        sink: &mut impl Sink,
    ) {
        self.sort(batch, sink, |frame| sort_outbound(tables, frame));
        for run in self.sorted.chunk_by_mut(|a, b| a.sa == b.sa) {
            let Some(sa) = tables.outbound(run[0].sa) else {
                continue;
            };
            let mut lease = sa.lease(count(run));
            let (mut packets, mut bytes) = (0, 0);
            for packet in run {
                packet.outcome = if seal::sealed_length(sa, &packet.headers) > wire_mtu {
                    Err(DropReason::TooLarge)
                } else if let Some(sequence) = lease.take() {
                    seal::seal(sa, sequence, &packet.headers, &mut packet.frame).map(|length| {
                        packets += 1;
                        bytes += length as u64;
                    })
                } else {
                    Err(DropReason::SequenceExhausted)
                };
            }
            sa.count(packets, bytes);
        }
        self.dispatch(sink);
    }

    /// Opens ESP from the wire.
    pub fn inbound(
        &mut self,
        tables: &Tables,
        batch: impl Iterator<Item = Frame>,
        sink: &mut impl Sink,
    ) {
        self.sort(batch, sink, |frame| sort_inbound(tables, frame));
        for run in self.sorted.chunk_by_mut(|a, b| a.sa == b.sa) {
            let Some(sa) = tables.inbound(run[0].sa) else {
                continue;
            };
            let (mut packets, mut bytes) = (0, 0);
            for packet in run {
                packet.outcome =
                    open::open(sa, packet.encapsulated, &packet.headers, &mut packet.frame).map(
                        |length| {
                            packets += 1;
                            bytes += length as u64;
                        },
                    );
            }
            if packets > 0 {
                sa.count(packets, bytes);
            }
        }
        self.dispatch(sink);
    }

    /// Finds headers and SA of each frame.
    fn sort(
        &mut self,
        batch: impl Iterator<Item = Frame>,
        sink: &mut impl Sink,
        find: impl Fn(&Frame) -> Result<Found, DropReason>,
    ) {
        for frame in batch {
            match find(&frame) {
                Ok(Found {
                    headers,
                    sa,
                    encapsulated,
                }) => self.sorted.push(Sorted {
                    frame,
                    headers,
                    sa,
                    encapsulated,
                    outcome: Err(DropReason::NotOurs),
                }),
                Err(reason) => sink.discard(frame, reason),
            }
        }
    }

    /// Sends and discards, in the order of arrival.
    fn dispatch(&mut self, sink: &mut impl Sink) {
        for packet in self.sorted.drain(..) {
            match packet.outcome {
                Ok(()) => sink.send(packet.frame),
                Err(reason) => sink.discard(packet.frame, reason),
            }
        }
    }
}

struct Found {
    headers: Headers,
    sa: u32,
    encapsulated: bool,
}

#[inline]
fn sort_outbound(tables: &Tables, frame: &Frame) -> Result<Found, DropReason> {
    let headers = walk(frame)?;
    match headers::classify(frame.bytes(), &headers) {
        Kind::Geneve if headers.fragment == Fragment::Whole => {}
        Kind::Geneve | Kind::LaterFragment => return Err(DropReason::Fragmented),
        Kind::Truncated => return Err(DropReason::Malformed),
        Kind::Esp(_) | Kind::EspInUdp(_) | Kind::OtherUdp | Kind::Other => {
            return Err(DropReason::NotOurs);
        }
    }
    match tables.lookup_outbound(headers.source, headers.destination) {
        Outbound::Sa(sa) => Ok(Found {
            headers,
            sa,
            encapsulated: false,
        }),
        Outbound::NoSa => Err(DropReason::NoSa),
        Outbound::NoPolicy => Err(DropReason::NoPolicy),
    }
}

#[inline]
fn sort_inbound(tables: &Tables, frame: &Frame) -> Result<Found, DropReason> {
    let headers = walk(frame)?;
    if headers.fragment != Fragment::Whole {
        return Err(DropReason::Fragmented);
    }
    let (spi, encapsulated) = match headers::classify(frame.bytes(), &headers) {
        Kind::Esp(spi) => (spi, false),
        Kind::EspInUdp(spi) => (spi, true),
        Kind::Truncated => return Err(DropReason::Truncated),
        Kind::Geneve | Kind::LaterFragment | Kind::OtherUdp | Kind::Other => {
            return Err(DropReason::NotOurs);
        }
    };
    if spi < headers::FIRST_SPI {
        return Err(DropReason::ReservedSpi);
    }
    let sa = tables
        .lookup_inbound(spi, headers.destination)
        .ok_or(DropReason::UnknownSpi)?;
    Ok(Found {
        headers,
        sa,
        encapsulated,
    })
}

#[inline]
fn walk(frame: &Frame) -> Result<Headers, DropReason> {
    match headers::walk(frame.bytes()) {
        Ok(headers) if headers.transport <= headers.end && headers.end <= frame.len() => {
            Ok(headers)
        }
        Ok(_) | Err(Stop::Malformed) => Err(DropReason::Malformed),
        Err(Stop::NotIp) => Err(DropReason::NotOurs),
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a run is within a batch")]
fn count(run: &[Sorted]) -> u32 {
    run.len() as u32
}

//! What happens to a batch of frames: packet logic, no I/O, no clock. Tests drive it from memory.
//!
//! Both directions take two steps: *sort* puts fragments together, walks headers and finds each frame's SA, *work*
//! goes over runs of frames of the same SA, so that a run costs one lease and one update of counters.

mod sort;

use culvert_esp::open::{self, Opened};
use culvert_esp::usage::Counts;
use culvert_esp::{InboundSa, OutboundSa, seal};
use culvert_packet::headers::{self, Fragment, Headers, Stop, Version};
use culvert_packet::reason::DropReason;

use crate::frame::Frame;
use crate::geneve::Geneve;
use crate::sizes::fragment::{self, Fragmenter, may_fragment};
use crate::sizes::reassembly::{DATAGRAMS, Loss, Reassembly};
use crate::sizes::{Supply, too_big};
use crate::tables::Tables;
use sort::{Find, Last, ToOpen, ToSeal, check, walk};

/// In place of an SA's index: the packet goes on in clear, as a policy says.
const IN_CLEAR: u32 = u32::MAX;

/// Which of the two tables of fragments.
const FROM_HOST: usize = 0;
/// The other one.
const FROM_WIRE: usize = 1;

/// Whence, as the index of a table of fragments, and when, as in [`Pipeline::outbound`].
#[derive(Clone, Copy)]
struct Arrival {
    from: usize,
    now: u64,
}

/// A frame whose headers are walked and whose SA is found.
#[derive(Debug)]
struct Sorted {
    frame: Frame,
    headers: Headers,
    found: Found,
    outcome: Outcome,
}

/// What sorting finds.
#[derive(Clone, Copy, Debug)]
struct Found {
    /// Index of the SA in the snapshot, or [`IN_CLEAR`].
    sa: u32,
    /// The UDP port that ESP came from, if it came in UDP; inbound only.
    port: Option<u16>,
}

/// What becomes of a frame.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// It goes on.
    Send,
    /// It goes on in clear.
    Pass,
    /// As `Send` or, if in clear, as `Pass`, in fragments.
    Fragments {
        /// In clear.
        pass: bool,
    },
    /// It is lost, but has become the answer that tells its sender so.
    Answer(DropReason),
    /// It is lost.
    Drop(DropReason),
}

/// Where frames go.
pub trait Sink: Supply<Frame> {
    /// A frame that is done, to be sent on.
    fn send(&mut self, frame: Frame);
    /// A frame that goes on in clear.
    fn pass(&mut self, frame: Frame);
    /// A frame that goes back to where the batch came from.
    fn answer(&mut self, frame: Frame);
    /// So many packets are lost.
    fn count(&mut self, reason: DropReason, packets: u64);
    /// A frame that is lost.
    fn discard(&mut self, frame: Frame, reason: DropReason) {
        self.count(reason, 1);
        self.give(frame);
    }
}

/// Scratch space for batches, kept so that no packet allocates, and datagrams that are not whole yet.
#[derive(Debug)]
pub struct Pipeline {
    sorted: Vec<Sorted>,
    /// What comes from the host and what comes from the wire, apart: neither may end up in the other, nor push it out.
    reassembly: [Reassembly<Frame>; 2],
    fragmenter: Fragmenter<Frame>,
}

impl Pipeline {
    /// A pipeline for batches of at most `batch` frames, in chunks of `chunk` bytes.
    #[must_use]
    pub fn new(batch: usize, chunk: usize) -> Self {
        Self {
            sorted: Vec::with_capacity(batch),
            reassembly: [(); 2].map(|()| Reassembly::new(DATAGRAMS, chunk)),
            fragmenter: Fragmenter::default(),
        }
    }

    /// Seals Geneve from the host. `wire_mtu` is the longest IP packet that the wire port takes, in bytes; `now` is
    /// in milliseconds of a clock that only goes forward.
    pub fn outbound(
        &mut self,
        tables: &Tables,
        wire_mtu: usize,
        now: u64,
        batch: impl Iterator<Item = Frame>,
        sink: &mut impl Sink,
    ) {
        let from = FROM_HOST;
        self.sort(Arrival { from, now }, batch, sink, ToSeal::by(tables));
        for run in self.sorted.chunk_by_mut(|a, b| a.found.sa == b.found.sa) {
            let index = run[0].found.sa;
            if index == IN_CLEAR {
                pass_run(wire_mtu, run);
            } else if let Some(sa) = tables.outbound(index) {
                seal_run(sa, wire_mtu, now, run);
            }
        }
        self.dispatch(wire_mtu, sink);
    }

    /// Opens ESP from the wire. `host_mtu` is the longest IP packet that the host port takes, in bytes; `now` as in
    /// [`Pipeline::outbound`].
    pub fn inbound(
        &mut self,
        tables: &Tables,
        host_mtu: usize,
        now: u64,
        batch: impl Iterator<Item = Frame>,
        sink: &mut impl Sink,
    ) {
        let from = FROM_WIRE;
        self.sort(Arrival { from, now }, batch, sink, ToOpen::by(tables));
        for run in self.sorted.chunk_by_mut(|a, b| a.found.sa == b.found.sa) {
            let index = run[0].found.sa;
            if index == IN_CLEAR {
                pass_run(host_mtu, run);
            } else if let Some(sa) = tables.inbound(index) {
                open_run(tables, sa, host_mtu, now, run);
            }
        }
        self.dispatch(host_mtu, sink);
    }

    /// Gives up datagrams that have not become whole in time.
    pub fn expire(&mut self, now: u64, sink: &mut impl Sink) {
        for reassembly in &mut self.reassembly {
            while let Some((frame, loss)) = reassembly.expire(now) {
                sink.count(loss.reason.into(), loss.packets);
                sink.give(frame);
            }
        }
    }

    /// Finds headers and SA of each frame.
    fn sort(
        &mut self,
        arrival: Arrival,
        batch: impl Iterator<Item = Frame>,
        sink: &mut impl Sink,
        mut find: impl Find,
    ) {
        for frame in batch {
            // IP versions apart, to the end: to bring together what the two walks find takes longer than a walk.
            let packet = frame.bytes();
            match headers::find_ip(packet) {
                Some((Version::V4, ip)) => {
                    let walked = headers::walk_v4(packet, ip);
                    self.sort_walked(arrival, frame, walked, sink, &mut find);
                }
                Some((Version::V6, ip)) => {
                    let walked = headers::walk_v6(packet, ip);
                    self.sort_walked(arrival, frame, walked, sink, &mut find);
                }
                None => sink.discard(frame, DropReason::NotOurs),
            }
        }
    }

    #[inline(always)]
    fn sort_walked(
        &mut self,
        arrival: Arrival,
        frame: Frame,
        walked: Result<Headers, Stop>,
        sink: &mut impl Sink,
        find: &mut impl Find,
    ) {
        match check(&frame, walked) {
            Ok(headers) if headers.fragment == Fragment::Whole => {
                self.sort_whole(frame, headers, sink, find);
            }
            Ok(headers) => self.sort_fragment(arrival, frame, headers, sink, find),
            Err(reason) => sink.discard(frame, reason),
        }
    }

    #[inline(always)]
    fn sort_whole(
        &mut self,
        frame: Frame,
        headers: Headers,
        sink: &mut impl Sink,
        find: &mut impl Find,
    ) {
        // Behind the datagram's end is Ethernet's padding, which is none of it.
        match find.find(&frame.bytes()[..headers.end], &headers) {
            Ok(found) => self.sorted.push(Sorted {
                frame,
                headers,
                found,
                outcome: Outcome::Drop(DropReason::NotOurs),
            }),
            Err(reason) => sink.discard(frame, reason),
        }
    }

    // RFC 4303 §3.3.4 [3.3.4-whole-datagrams, 3.3.4-reassembled-before]: only what is whole goes on.
    #[cold]
    #[inline(never)]
    fn sort_fragment(
        &mut self,
        arrival: Arrival,
        frame: Frame,
        headers: Headers,
        sink: &mut impl Sink,
        find: &mut impl Find,
    ) {
        let Some(whole) = self.reassemble(arrival, frame, &headers, sink) else {
            return;
        };
        match walk(&whole) {
            Ok(headers) if headers.fragment == Fragment::Whole => {
                self.sort_whole(whole, headers, sink, find);
            }
            // RFC 4303 §3.4.1 [3.4.1-fragment-discarded]
            // What was cut twice is no ESP of an honest sender.
            Ok(_) => sink.discard(whole, DropReason::FragmentMalformed),
            Err(reason) => sink.discard(whole, reason),
        }
    }

    /// The datagram that a fragment makes whole.
    fn reassemble(
        &mut self,
        Arrival { from, now }: Arrival,
        frame: Frame,
        headers: &Headers,
        sink: &mut impl Sink,
    ) -> Option<Frame> {
        // The frame of the first one that comes is what the datagram is put together in.
        let frame = sink.lengthen(frame);
        let outcome = self.reassembly[from].insert(frame, headers, now);
        for Loss { reason, packets } in outcome.losses.into_iter().flatten() {
            sink.count(reason.into(), packets);
        }
        for frame in outcome.free.into_iter().flatten() {
            sink.give(frame);
        }
        outcome.finished
    }

    /// Sends and discards, in the order of arrival.
    fn dispatch(&mut self, mtu: usize, sink: &mut impl Sink) {
        for Sorted {
            mut frame, outcome, ..
        } in self.sorted.drain(..)
        {
            match outcome {
                Outcome::Send => sink.send(frame),
                Outcome::Pass => sink.pass(frame),
                Outcome::Drop(reason) => sink.discard(frame, reason),
                Outcome::Answer(reason) => {
                    sink.count(reason, 1);
                    sink.answer(frame);
                }
                Outcome::Fragments { pass } => {
                    // Sealing has moved the frame's start, and with it what the offsets count from.
                    let headers = match walk(&frame) {
                        Ok(headers) => headers,
                        Err(reason) => {
                            sink.discard(frame, reason);
                            continue;
                        }
                    };
                    let cut = self.fragmenter.fragment(&mut frame, &headers, mtu, sink);
                    match cut {
                        Ok(later) => {
                            for fragment in std::iter::once(frame).chain(later) {
                                if pass {
                                    sink.pass(fragment);
                                } else {
                                    sink.send(fragment);
                                }
                            }
                        }
                        Err(fragment::Error::NoFrame) => sink.discard(frame, DropReason::NoFrame),
                        Err(_) => sink.discard(frame, DropReason::TooLarge),
                    }
                }
            }
        }
    }
}

/// Seals a run of packets of one SA.
#[inline]
fn seal_run(sa: &OutboundSa, wire_mtu: usize, now: u64, run: &mut [Sorted]) {
    let mut budget = sa.budget(now);
    // Numbers are for what is sealed, and not for what is answered.
    let sealed = run
        .iter()
        .filter(|packet| fits(sa, wire_mtu, packet))
        .count() as u64;
    let wanted = u32::try_from(sealed.min(budget.packets)).unwrap_or(u32::MAX);
    let mut lease = sa.lease(wanted);
    let (mut packets, mut bytes) = (0, 0);
    for Sorted {
        frame,
        headers,
        outcome,
        ..
    } in run
    {
        // TFC padding keeps to the frame, too.
        let plan = seal::plan(sa, headers, wire_mtu.min(frame.room() - headers.ip));
        let too_long = plan.length > wire_mtu;
        *outcome = if too_long && !may_fragment(frame.bytes(), headers) {
            // RFC 4303 §3.3.4 [3.3.4-pmtu]
            answer(frame, headers, seal::clear_mtu(sa, headers, wire_mtu))
        } else if !budget.is_left() {
            Outcome::Drop(DropReason::SaExpired)
        } else if let Some(sequence) = lease.take() {
            match seal::seal(sa, sequence, &plan, headers, frame) {
                Ok(length) => {
                    budget.spend(length);
                    packets += 1;
                    bytes += length as u64;
                    if too_long {
                        // RFC 4303 §3.3.4 [3.3.4-fragment-after]
                        // RFC 4303 §3.3.4: fragments of ESP, not ESP of fragments.
                        Outcome::Fragments { pass: false }
                    } else {
                        Outcome::Send
                    }
                }
                Err(reason) => Outcome::Drop(reason),
            }
        } else {
            Outcome::Drop(sa.without_numbers())
        };
    }
    sa.count(packets, bytes);
}

/// Whether a packet is sealed: it fits the wire then, or may be fragmented.
#[inline]
fn fits(sa: &OutboundSa, wire_mtu: usize, packet: &Sorted) -> bool {
    let headers = &packet.headers;
    headers.end - headers.ip + sa.most_growth() <= wire_mtu
        || seal::plan(sa, headers, wire_mtu).length <= wire_mtu
        || may_fragment(packet.frame.bytes(), headers)
}

/// RFC 4301 §8.2: the sender of a packet that is too long hears of the MTU that is left to it.
fn answer(frame: &mut Frame, headers: &Headers, mtu: usize) -> Outcome {
    match too_big::too_big(frame, headers, u32::try_from(mtu).unwrap_or(u32::MAX)) {
        Ok(()) => Outcome::Answer(DropReason::TooLarge),
        Err(_) => Outcome::Drop(DropReason::TooLarge),
    }
}

/// Opens a run of packets of one SA.
#[inline]
fn open_run(tables: &Tables, sa: &InboundSa, host_mtu: usize, now: u64, run: &mut [Sorted]) {
    let mut budget = sa.budget(now);
    let mut counts = Counts::default();
    let mut last = Last::default();
    for Sorted {
        frame,
        headers,
        found,
        outcome,
    } in run
    {
        let result = if budget.is_left() {
            open::open(sa, found.port.is_some(), headers, frame)
        } else {
            Err(DropReason::SaExpired)
        };
        let admitted = result.and_then(|opened| {
            follow(tables, sa, headers, *found, &opened);
            admit(tables, sa, &mut last, frame, headers, *found, &opened).map(|()| opened.length)
        });
        *outcome = match admitted {
            Ok(length) => {
                budget.spend(length);
                counts.packets += 1;
                counts.bytes += length as u64;
                counts.authenticated += 1;
                if frame.len() - headers.ip <= host_mtu {
                    Outcome::Send
                } else if may_fragment(frame.bytes(), headers) {
                    Outcome::Fragments { pass: false }
                } else {
                    Outcome::Drop(DropReason::TooLarge)
                }
            }
            Err(reason) => {
                match reason {
                    DropReason::Replayed => counts.replayed += 1,
                    DropReason::TooOld => counts.late += 1,
                    DropReason::AuthenticationFailed => counts.failed += 1,
                    DropReason::BadPad
                    | DropReason::Dummy
                    | DropReason::PolicyMismatch
                    | DropReason::PolicyDiscard => counts.authenticated += 1,
                    _ => {}
                }
                Outcome::Drop(reason)
            }
        };
    }
    sa.count(&counts);
}

/// Packets that a policy leaves in clear. What was put together here may be too long for where it goes.
fn pass_run(mtu: usize, run: &mut [Sorted]) {
    for Sorted {
        frame,
        headers,
        outcome,
        ..
    } in run
    {
        *outcome = if headers.end - headers.ip <= mtu {
            Outcome::Pass
        } else if may_fragment(frame.bytes(), headers) {
            Outcome::Fragments { pass: true }
        } else {
            answer(frame, headers, mtu)
        };
    }
}

/// A peer behind NAT may have moved to another port: what goes to it follows.
#[inline]
fn follow(tables: &Tables, sa: &InboundSa, headers: &Headers, found: Found, opened: &Opened) {
    let Some(port) = found.port else { return };
    let Headers {
        source,
        destination,
        ..
    } = headers;
    if sa.sent_from(opened.sequence, source, port) && sa.is_between(source, destination) {
        tables.peers(found.sa).for_each(|peer| peer.follow(port));
    }
}

/// RFC 4301 §5.2 step 4: what came out must be between the ends of its SA, as the IP header is not authenticated, and
/// be what the policy of its SA lets in. `last` is of this SA, so of its ends.
#[inline]
fn admit(
    tables: &Tables,
    sa: &InboundSa,
    last: &mut Last<Geneve, ()>,
    frame: &Frame,
    headers: &Headers,
    found: Found,
    opened: &Opened,
) -> Result<(), DropReason> {
    let ends = [headers.source, headers.destination];
    if !sa.is_between(&ends[0], &ends[1]) {
        return Err(DropReason::PolicyMismatch);
    }
    let geneve = opened
        .udp
        .and_then(|udp| Geneve::read(frame.bytes(), udp, false))
        .ok_or(DropReason::PolicyMismatch)?;
    last.or_find(geneve, |geneve| {
        tables.admit(&geneve.query(ends, false), found.sa)
    })
}

//! A port that is a queue of a TAP: packets of up to 64 KiB in one system call, out and in.
//!
//! ```text
//!   out   stack ─ superpacket ─▶ read ▸ cut, with all checksums ─▶ frames ─▶ worker
//!   in    stack ◀─ superpacket ─ writev ◂ joined by flow ◂─────── frames ◀── worker
//! ```
//! A superpacket is cut straight from the buffer that it was read into, to the frames that are sealed and sent: copied and
//! summed up in one pass, and sealed while it is in the nearest cache. What goes to the stack is joined within a flush and
//! never waits for more.

use std::fs::File;
use std::io::{ErrorKind, IoSlice, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use culvert_esp::buffer::Frame as _;
use culvert_esp::{MAX_HEADROOM, MAX_TAILROOM};
use culvert_gso::coalesce::{Checksums, Coalescer, Settings};
use culvert_gso::segment::{Fit, Segment, Superpacket};
use culvert_gso::vnet::{Header, LONGEST, Layout};
use culvert_packet::headers::walk;

use super::{Losses, Port};
use crate::frame::{Frame, HEADROOM, Pool};
use crate::sizes::fragment::may_fragment;
use crate::sizes::too_big::too_big;
use crate::worker::BATCH;

/// The longest frame that a TAP gives: `TAP_MAX_MTU` is the longest IP packet, and an Ethernet header with VLAN tags.
const LONGEST_FRAME: usize = 65_535 + 32;
/// Ethernet's header, and two VLAN tags, which may stand in it.
const ETHERNET: usize = 14;
const VLAN_TAGS: usize = 8;
/// Frames that are sent at once.
const QUEUE: usize = 2 * BATCH;
/// Turns without a look at the queue after there was nothing in it: to look is a system call, all else of an idle turn none.
const SKIPPED: u32 = 16;

/// A queue of a TAP, whose reads do not block.
#[derive(Debug)]
pub struct TapPort {
    queue: File,
    layout: Layout,
    lengths: Lengths,
    /// What was read last.
    buffer: Box<[u8]>,
    held: Option<Held>,
    queued: Vec<Frame>,
    coalescer: Coalescer,
    losses: Losses,
    /// Turns until the queue is looked at again.
    skip: u32,
}

/// Lengths of frames in bytes, from the Ethernet header on.
#[derive(Clone, Copy, Debug)]
pub struct Lengths {
    /// What is longer, does not fit the wire even in clear.
    pub most: usize,
    /// What is no longer, fits under every SA.
    pub fits: usize,
}

impl Lengths {
    /// Those of a wire that takes IP packets of up to `mtu` bytes.
    #[must_use]
    pub fn of_wire(mtu: usize) -> Self {
        let most = ETHERNET + mtu;
        Self {
            most: most + VLAN_TAGS,
            fits: most.saturating_sub(MAX_HEADROOM + MAX_TAILROOM),
        }
    }
}

/// A superpacket in the buffer that is not cut to its end.
#[derive(Clone, Copy, Debug)]
struct Held {
    header: Header,
    /// Length of the frame in bytes.
    length: usize,
    /// What no segment is longer than, if that can be.
    longest: usize,
    /// Its sender wants longer segments than the wire takes, and has not heard of it yet.
    unfit: bool,
    /// The segment that comes next.
    next: usize,
}

impl TapPort {
    /// A port on an open queue, which speaks `layout`. Superpackets are cut as they want to be. If the wire does not take that,
    /// they are cut to what fits, and the stack hears of it if it wants no fragments.
    #[must_use]
    pub fn new(queue: File, layout: Layout, lengths: Lengths) -> Self {
        // The kernel takes superpackets of tunnels only with the header that can say what is where in them.
        let tunnels = layout == Layout::Tunnel;
        let settings = Settings {
            tcp: tunnels,
            // As GRO: datagrams are joined only for who says that it wants that (`rx-udp-gro-forwarding`).
            udp: false,
            tunnel_checksum: tunnels,
            // Of what was not authenticated, as a policy lets it bypass.
            checksums: Checksums::Verified,
        };
        Self {
            queue,
            layout,
            lengths,
            buffer: vec![0; LONGEST + LONGEST_FRAME].into(),
            held: None,
            queued: Vec::with_capacity(QUEUE),
            coalescer: Coalescer::new(settings, QUEUE),
            losses: Losses::default(),
            skip: 0,
        }
    }

    /// Reads one packet; whether there was one. What contradicts its header is counted, and lost.
    fn read(&mut self) -> bool {
        loop {
            match self.queue.read(&mut self.buffer) {
                Ok(length) => {
                    let size = self.layout.size();
                    if let Some(length) = length.checked_sub(size)
                        && let Ok(header) = Header::parse(&self.buffer[..size], self.layout)
                        && let Ok(packet) =
                            Superpacket::new(&header, &self.buffer[size..size + length])
                    {
                        let Lengths { most, fits } = self.lengths;
                        let unfit = matches!(packet.segments(most).fit(), Fit::Shrunk { .. });
                        self.held = Some(Held {
                            header,
                            length,
                            longest: if unfit { fits } else { most },
                            unfit,
                            next: 0,
                        });
                        return true;
                    }
                    self.losses.refused += 1;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A packet whose header the kernel could not write (`tun_vnet_hdr_from_skb`): it is lost, and the next one is not.
                Err(error) if error.kind() == ErrorKind::InvalidInput => self.losses.refused += 1,
                Err(_) => return false,
            }
        }
    }

    /// Cuts frames of what is held, as many as are wanted and there is memory for; their number.
    fn cut(&mut self, pool: &mut Pool, batch: &mut Vec<Frame>, most: usize) -> usize {
        let Some(held) = &mut self.held else { return 0 };
        let start = self.layout.size();
        let bytes = &self.buffer[start..start + held.length];
        let Ok(packet) = Superpacket::new(&held.header, bytes) else {
            self.held = None;
            return 0;
        };
        let segments = packet.segments(held.longest);
        if std::mem::take(&mut held.unfit)
            && let Some(segment) = segments.get(0)
            && let Some(mut frame) = pool.take_for(segment.len())
        {
            let tells = write(&segment, &mut frame) && tell(&mut frame, self.lengths.fits);
            if tells && self.queued.len() < QUEUE {
                self.queued.push(frame);
            } else {
                pool.give(frame);
            }
        }
        let mut count = 0;
        while count < most {
            let Some(segment) = segments.get(held.next) else {
                self.held = None;
                break;
            };
            let Some(mut frame) = pool.take_for(segment.len()) else {
                break;
            };
            held.next += 1;
            if write(&segment, &mut frame) {
                batch.push(frame);
                count += 1;
            } else {
                pool.give(frame);
                self.losses.refused += 1;
            }
        }
        count
    }

    /// Writes what is queued, joined.
    fn write(&mut self) {
        self.coalescer.coalesce(&self.queued);
        for group in self.coalescer.groups() {
            let mut header = [0; LONGEST];
            let first = &mut self.queued[group.first()];
            let bounds = first.bounds();
            let written = self
                .coalescer
                .prepare(group, &mut first.chunk()[bounds])
                .write(&mut header, self.layout);
            let mut parts = [IoSlice::new(&[]); QUEUE + 1];
            let Ok(size) = written else {
                self.losses.send += group.count() as u64;
                continue;
            };
            parts[0] = IoSlice::new(&header[..size]);
            parts[1] = IoSlice::new(self.queued[group.first()].bytes());
            let mut count = 2;
            for ((index, payload), part) in self.coalescer.rest(group).zip(&mut parts[2..]) {
                *part = IoSlice::new(&self.queued[index].bytes()[payload]);
                count += 1;
            }
            if self.queue.write_vectored(&parts[..count]).is_err() {
                self.losses.send += group.count() as u64;
            }
        }
    }
}

/// Makes a frame of a segment; whether there is room.
fn write(segment: &Segment<'_>, frame: &mut Frame) -> bool {
    let bounds = HEADROOM..HEADROOM + segment.len();
    let written = frame
        .chunk()
        .get_mut(bounds.clone())
        .is_some_and(|to| segment.write_into(to).is_ok());
    if written {
        frame.set_bounds(bounds);
    }
    written
}

/// Makes of a segment what tells its sender that none is to be longer than `longest`; whether it is to hear that.
fn tell(frame: &mut Frame, longest: usize) -> bool {
    let Ok(headers) = walk(frame.bytes()) else {
        return false;
    };
    let mtu = u32::try_from(longest.saturating_sub(headers.ip)).unwrap_or(u32::MAX);
    frame.set_authenticated(false);
    !may_fragment(frame.bytes(), &headers) && too_big(frame, &headers, mtu).is_ok()
}

impl Port for TapPort {
    fn receive(&mut self, pool: &mut Pool, batch: &mut Vec<Frame>, most: usize) -> usize {
        let mut count = 0;
        while count < most {
            if self.held.is_none() {
                if self.skip > 0 {
                    self.skip -= 1;
                    break;
                }
                if !self.read() {
                    self.skip = SKIPPED;
                    break;
                }
            }
            let cut = self.cut(pool, batch, most - count);
            if cut == 0 && self.held.is_some() {
                // No memory: it is held until there is some.
                break;
            }
            count += cut;
        }
        count
    }

    fn queue(&mut self, frame: Frame, _pool: &mut Pool) -> Result<(), Frame> {
        if self.queued.len() == QUEUE {
            return Err(frame);
        }
        self.queued.push(frame);
        Ok(())
    }

    fn flush(&mut self, pool: &mut Pool) {
        if self.queued.is_empty() {
            return;
        }
        self.write();
        // An answer may have come of it already.
        self.skip = 0;
        for frame in self.queued.drain(..) {
            pool.give(frame);
        }
    }

    fn is_pending(&self) -> bool {
        self.held.is_some()
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.as_fd())
    }

    fn losses(&self) -> Losses {
        self.losses
    }
}

#[cfg(test)]
mod tests;

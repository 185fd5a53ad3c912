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
use culvert_gso::coalesce::{Checksums, Coalescer, Settings};
use culvert_gso::segment::Superpacket;
use culvert_gso::vnet::{Header, LONGEST, Layout};

use super::{Losses, Port};
use crate::frame::{Frame, HEADROOM, Pool};
use crate::worker::BATCH;

/// The longest frame that a TAP gives: `TAP_MAX_MTU` is the longest IP packet, and an Ethernet header with VLAN tags.
const LONGEST_FRAME: usize = 65_535 + 32;
/// Frames that are sent at once.
const QUEUE: usize = 2 * BATCH;

/// A queue of a TAP, whose reads do not block.
#[derive(Debug)]
pub struct TapPort {
    queue: File,
    layout: Layout,
    /// The longest frame that may be cut from a superpacket.
    longest: usize,
    /// What was read last.
    buffer: Box<[u8]>,
    held: Option<Held>,
    queued: Vec<Frame>,
    coalescer: Coalescer,
    losses: Losses,
    skip: u32,
}

/// A superpacket in the buffer that is not cut to its end.
#[derive(Clone, Copy, Debug)]
struct Held {
    header: Header,
    /// Length of the frame in bytes.
    length: usize,
    /// The segment that comes next.
    next: usize,
}

impl TapPort {
    /// A port on an open queue, which speaks `layout`. Superpackets are cut so that no frame is longer than `longest` bytes,
    /// where they can be.
    #[must_use]
    pub fn new(queue: File, layout: Layout, longest: usize) -> Self {
        // The kernel takes superpackets of tunnels only with the header that can say what is where in them.
        let tunnels = layout == Layout::Tunnel;
        let settings = Settings {
            tcp: tunnels,
            udp: tunnels,
            tunnel_checksum: tunnels,
            // Nobody has authenticated what a policy lets bypass, and it comes this way, too.
            checksums: Checksums::Verified,
        };
        Self {
            queue,
            layout,
            longest,
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
                        && Superpacket::new(&header, &self.buffer[size..size + length]).is_ok()
                    {
                        self.held = Some(Held {
                            header,
                            length,
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
        let segments = packet.segments(self.longest);
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
            let bounds = HEADROOM..HEADROOM + segment.len();
            let written = frame
                .chunk()
                .get_mut(bounds.clone())
                .is_some_and(|to| segment.write_into(to).is_ok());
            if written {
                frame.set_bounds(bounds);
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
                    self.skip = 16;
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
        self.skip = 0;
        for frame in self.queued.drain(..) {
            pool.give(frame);
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        Some(self.queue.as_fd())
    }

    fn losses(&self) -> Losses {
        self.losses
    }
}

//! AF_XDP ports on xsk-rs: a worker's sockets on one UMEM, so that a frame is sent from where it was
//! received.
//!
//! Three properties of what lies below shape this file:
//!
//! - A descriptor of xsk-rs cannot be told where the packet starts: it is made with the UMEM, for the
//!   position that receiving gives. As ESP moves that start by a few bytes, [`Descriptors`] makes a set
//!   for each distance, from short-lived UMEMs of other headrooms.
//! - A packet that is longer than a chunk comes in several, and goes in several, each with a descriptor
//!   ([`Buffers::Several`]). In between it is in one long frame: it is copied on both ways.
//! - Sockets that share a UMEM share its mode: the kernel binds the second in the mode of the first. A
//!   zero-copy NIC beside a veth is therefore bound in copy mode, and the port says so.
#![expect(unsafe_code, reason = "rings shared with the kernel")]
#![expect(
    clippy::cast_possible_truncation,
    reason = "ring positions and chunk numbers, bounded by the UMEM's size"
)]

use std::io;
use std::num::NonZeroU32;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, anyhow};
use xsk_rs::config::{
    BindFlags, FrameSize, Interface, LibxdpFlags, QueueSize, SocketConfig, UmemConfig,
};
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, Socket, TxQueue, Umem};

use super::pieces::{Gather, scatter};
use super::{Losses, Port};
use crate::frame::{CHUNK, Frame, HEADROOM, LONG, PIECE, Pool, USER_HEADROOM};
use crate::lengths::Buffers;

/// Length of each ring in descriptors.
const RING: u32 = 2048;
/// Frames that a socket needs: its RX and TX rings full.
const FRAMES_PER_SOCKET: u32 = 2 * RING;
/// The same for packets in several: what is sent is in other frames than what was received, which the fill ring wants back.
const FRAMES_FOR_SEVERAL: u32 = 3 * RING;
/// Long frames of a worker: a batch, what a TAP sends at once, the datagrams of both tables of fragments, and some.
const LONG_FRAMES: u32 = 512;
/// In the options of a descriptor: the packet goes on in the next one.
const CONTINUED: u32 = libc::XDP_PKT_CONTD;
/// Descriptors that the kernel takes for one packet.
const MOST_PIECES: usize = 17;
const _: () = assert!((LONG as usize).div_ceil(PIECE) <= MOST_PIECES);
/// System calls that one flush may make: copy mode sends 32 frames a call.
const MAX_KICKS: u32 = RING / 32;
/// Descriptors taken from a ring at once.
const SCRATCH: usize = 64;
/// Packets that the kernel takes from the NIC in one busy poll.
const BUDGET: libc::c_int = 64;
/// Distances that a packet's start moves are multiples of this, in bytes.
const STEP: usize = 8;
/// Farthest that a packet's start moves either way.
const REACH: usize = culvert_esp::MAX_HEADROOM;
const _: () = assert!(REACH.is_multiple_of(STEP) && REACH <= USER_HEADROOM);

/// How AF_XDP moves packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// The NIC writes into the UMEM.
    ZeroCopy,
    /// The kernel copies into the UMEM.
    Copy,
}

impl Mode {
    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::ZeroCopy => "zero-copy",
            Self::Copy => "copy",
        }
    }
}

/// A worker's memory, to open its ports on.
pub struct Memory {
    umem: Umem,
    descriptors: Arc<Descriptors>,
    mode: Mode,
    buffers: Buffers,
}

impl Memory {
    /// Memory for `sockets` sockets, and the pool of its frames; sockets are bound in `mode`, for packets in so many
    /// `buffers`. The pool has no long frames yet: see [`Memory::keep`].
    ///
    /// # Errors
    /// The kernel refused the UMEM.
    ///
    /// # Safety
    /// No frame of the pool is touched after this memory and its ports are gone, unless [`Memory::keep`] was
    /// called.
    pub unsafe fn new(sockets: u32, mode: Mode, buffers: Buffers) -> Result<(Self, Pool)> {
        let each = match buffers {
            Buffers::One => FRAMES_PER_SOCKET,
            Buffers::Several => FRAMES_FOR_SEVERAL,
        };
        let frames =
            NonZeroU32::new(sockets * each).context("a worker without sockets needs no memory")?;
        let (umem, mut at) = make_umem(frames, USER_HEADROOM)?;
        let first = at.first_mut().context("an UMEM without frames")?;
        // SAFETY: nobody has the frame yet; the pointer is used only for its address.
        let packet = unsafe { umem.data_mut(first) }.contents_mut().as_mut_ptr();
        let base = packet.wrapping_sub(HEADROOM);
        let base = NonNull::new(base).context("an UMEM at address zero")?;
        // SAFETY: `umem` maps that many chunks from `base`, for as long as the caller promises, and only the pool
        // hands them out.
        let pool = unsafe { Pool::in_memory(base, frames.get(), CHUNK) };
        let descriptors = Descriptors::of(frames, at)?;
        Ok((
            Self {
                umem,
                descriptors,
                mode,
                buffers,
            },
            pool,
        ))
    }
}

impl Memory {
    /// Leaves the memory mapped until the process ends, and with it the first socket of the UMEM. `pool` gets its long frames,
    /// which are never freed.
    pub fn keep(self, pool: &mut Pool) {
        if self.buffers == Buffers::Several {
            pool.add_long(LONG_FRAMES, LONG);
        }
        std::mem::forget(self.umem);
    }
}

fn make_umem(frames: NonZeroU32, headroom: usize) -> Result<(Umem, Vec<FrameDesc>)> {
    let config = UmemConfig::builder()
        .frame_size(FrameSize::new(CHUNK)?)
        .frame_headroom(u32::try_from(headroom)?)
        .fill_queue_size(QueueSize::new(RING)?)
        .comp_queue_size(QueueSize::new(RING)?)
        .build()?;
    Umem::new(config, frames, false)
        .map_err(|error| explain(&error))
        .with_context(|| format!("UMEM of {frames} frames"))
}

/// xsk-rs keeps the kernel's error in `source`.
fn explain(error: &dyn std::error::Error) -> anyhow::Error {
    let kernels = error
        .source()
        .and_then(|source| source.downcast_ref::<io::Error>())
        .and_then(io::Error::raw_os_error);
    match (kernels, error.source()) {
        (Some(code), _) => anyhow!(io::Error::from_raw_os_error(code)).context(error.to_string()),
        (None, Some(source)) => anyhow!("{error}: {source}"),
        (None, None) => anyhow!("{error}"),
    }
}

/// Descriptors of every frame for every distance of its start from [`HEADROOM`].
struct Descriptors {
    by_distance: Vec<Vec<FrameDesc>>,
}

impl Descriptors {
    /// Those for so many frames: the same for every UMEM of that size, so that they are made once. A start has to be
    /// quick, as what must be protected is blocked until then.
    fn of(frames: NonZeroU32, at_headroom: Vec<FrameDesc>) -> Result<Arc<Self>> {
        static MADE: Mutex<Vec<(NonZeroU32, Arc<Descriptors>)>> = Mutex::new(Vec::new());
        let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, there)) = made.iter().find(|(count, _)| *count == frames) {
            return Ok(Arc::clone(there));
        }
        let new = Arc::new(Self::new(frames, at_headroom)?);
        made.push((frames, Arc::clone(&new)));
        Ok(new)
    }

    /// Side by side, as the kernel clears each UMEM's memory, which is most of what a start takes.
    fn new(frames: NonZeroU32, at_headroom: Vec<FrameDesc>) -> Result<Self> {
        let mut middle = Some(at_headroom);
        let by_distance = thread::scope(|scope| {
            let making: Vec<_> = (USER_HEADROOM - REACH..=USER_HEADROOM + REACH)
                .step_by(STEP)
                .map(|headroom| {
                    let there = middle.take_if(|_| headroom == USER_HEADROOM);
                    scope.spawn(move || match there {
                        Some(set) => Ok(set),
                        None => Ok(make_umem(frames, headroom)?.1),
                    })
                })
                .collect();
            let made = making.into_iter().map(|thread| {
                let made = thread.join();
                made.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            });
            made.collect::<Result<_>>()
        })?;
        Ok(Self { by_distance })
    }

    /// The descriptor of chunk `index` for a packet at `start`, if `start` is one of the known places.
    #[inline]
    fn get(&self, index: u32, start: usize) -> Option<FrameDesc> {
        let distance = start.checked_sub(HEADROOM - REACH)?;
        if !distance.is_multiple_of(STEP) {
            return None;
        }
        self.by_distance
            .get(distance / STEP)?
            .get(index as usize)
            .copied()
    }
}

/// Says how long the packet of a descriptor is, whose frame is ours.
#[inline]
fn set_length(umem: &Umem, descriptor: &mut FrameDesc, length: usize) {
    // SAFETY: the frame of the descriptor is ours alone until it is produced.
    let mut data = unsafe { umem.data_mut(descriptor) };
    data.cursor().set_pos(length);
}

/// One AF_XDP socket: a queue of an interface.
pub struct XskPort {
    umem: Umem,
    descriptors: Arc<Descriptors>,
    rx: RxQueue,
    tx: TxQueue,
    fill: FillQueue,
    completion: CompQueue,
    scratch: Box<[FrameDesc; SCRATCH]>,
    queued: Vec<FrameDesc>,
    /// Puts together what comes in several chunks, if that may be.
    gather: Option<Gather>,
    /// Frames with the kernel for sending.
    sending: u32,
    refused: u64,
    busy_poll: bool,
}

impl XskPort {
    /// Binds a socket to `queue` of `interface`. XDP steering is set up elsewhere.
    ///
    /// # Errors
    /// The kernel refused; with zero-copy, most often as driver or UMEM cannot do it.
    pub fn open(memory: &Memory, interface: &str, queue: u32) -> Result<Self> {
        let mode = match memory.mode {
            Mode::ZeroCopy => BindFlags::XDP_ZEROCOPY,
            Mode::Copy => BindFlags::XDP_COPY,
        };
        let (several, gather) = match memory.buffers {
            Buffers::One => (BindFlags::empty(), None),
            Buffers::Several => (BindFlags::XDP_USE_SG, Some(Gather::default())),
        };
        let config = SocketConfig::builder()
            .rx_queue_size(QueueSize::new(RING)?)
            .tx_queue_size(QueueSize::new(RING)?)
            .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
            .bind_flags(mode | several | BindFlags::XDP_USE_NEED_WAKEUP)
            .build();
        let name: Interface = interface.parse().context("interface name")?;
        // SAFETY: libxdp loads no program (the flag above), which is what the contract asks for.
        let (tx, rx, rings) = unsafe { Socket::new(config, &memory.umem, &name, queue) }
            .map_err(|error| explain(&error))
            .with_context(|| {
                format!(
                    "AF_XDP socket on {interface} queue {queue}, {} mode",
                    memory.mode.name()
                )
            })?;
        let (fill, completion) =
            rings.with_context(|| format!("{interface} queue {queue} is bound already"))?;
        Ok(Self {
            umem: memory.umem.clone(),
            descriptors: Arc::clone(&memory.descriptors),
            rx,
            tx,
            fill,
            completion,
            scratch: Box::new([FrameDesc::default(); SCRATCH]),
            queued: Vec::with_capacity(RING as usize),
            gather,
            sending: 0,
            refused: 0,
            busy_poll: false,
        })
    }

    /// The mode that the kernel says it bound in.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn mode(&self) -> Result<Mode> {
        let mut options = libc::xdp_options { flags: 0 };
        let mut length = libc::socklen_t::try_from(size_of_val(&options))?;
        // SAFETY: `options` and `length` are live, and of the type and size that XDP_OPTIONS fills in.
        let result = unsafe {
            libc::getsockopt(
                self.rx.fd().as_raw_fd(),
                libc::SOL_XDP,
                libc::XDP_OPTIONS,
                (&raw mut options).cast(),
                &raw mut length,
            )
        };
        if result != 0 {
            return Err(std::io::Error::last_os_error()).context("getsockopt XDP_OPTIONS");
        }
        Ok(if options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0 {
            Mode::ZeroCopy
        } else {
            Mode::Copy
        })
    }

    /// From now on the NIC's queue is polled by who receives here, and not by interrupts, for as long as that goes on
    /// (`SO_PREFER_BUSY_POLL`, Linux 5.11).
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn prefer_busy_poll(&mut self) -> Result<()> {
        // That it may be polled at all, takes a time, which a call that does not block has no use for.
        for (option, value) in [
            (libc::SO_PREFER_BUSY_POLL, 1),
            (libc::SO_BUSY_POLL, 20),
            (libc::SO_BUSY_POLL_BUDGET, BUDGET),
        ] {
            // SAFETY: `value` is live, and an int, as these options take it.
            let result = unsafe {
                libc::setsockopt(
                    self.rx.fd().as_raw_fd(),
                    libc::SOL_SOCKET,
                    option,
                    (&raw const value).cast(),
                    size_of_val(&value) as libc::socklen_t,
                )
            };
            nix::errno::Errno::result(result).context("busy polling")?;
        }
        self.busy_poll = true;
        Ok(())
    }

    /// Has the kernel poll the NIC's queue, once.
    fn poll_queue(&self) {
        // SAFETY: receives nothing, into nothing.
        unsafe {
            libc::recv(
                self.rx.fd().as_raw_fd(),
                std::ptr::null_mut(),
                0,
                libc::MSG_DONTWAIT,
            );
        }
    }

    /// Gives the kernel free frames to receive into.
    fn refill(&mut self, pool: &mut Pool) {
        // The ring itself says how much room it has. To count what was received would say too much: the
        // kernel shows packets in the RX ring before it gives up their places in this one (xsk_flush).
        let mut room = self.fill.nb_free_exact() as usize;
        while room > 0 {
            let mut count = 0;
            while count < room.min(SCRATCH) {
                let Some(frame) = pool.take() else { break };
                let index = pool.lend(frame);
                let Some(descriptor) = self.descriptors.get(index, HEADROOM) else {
                    break;
                };
                self.scratch[count] = descriptor;
                count += 1;
            }
            if count == 0 {
                break;
            }
            // SAFETY: the frames were just lent, and nobody else has them.
            let taken = unsafe { self.fill.produce(&self.scratch[..count]) };
            // Only we put in, so the room cannot have become less.
            debug_assert_eq!(taken, count);
            room -= count;
        }
        if self.fill.needs_wakeup() {
            // A failure to wake shows as packets that do not arrive; the next turn tries again.
            let _ = self.fill.wakeup(self.rx.fd_mut(), 0);
        }
    }

    /// Takes back frames that were sent.
    fn reclaim(&mut self, pool: &mut Pool) {
        while self.sending > 0 {
            // SAFETY: `scratch` is written only.
            let count = unsafe { self.completion.consume(&mut self.scratch[..]) };
            for descriptor in &self.scratch[..count] {
                let index = (descriptor.addr() / CHUNK as usize) as u32;
                // SAFETY: the completion ring says that the kernel is done with the frame.
                if let Some(frame) = unsafe { pool.reclaim(index, HEADROOM, 0) } {
                    pool.give(frame);
                }
            }
            self.sending -= count as u32;
            if count < SCRATCH {
                break;
            }
        }
    }

    /// Queues what is in a long frame in as many chunks as it takes, all or nothing.
    #[inline(never)]
    fn queue_pieces(&mut self, frame: Frame, pool: &mut Pool) -> Result<(), Frame> {
        let room = RING as usize - self.sending as usize - self.queued.len();
        scatter(frame, room, pool, |piece, more| {
            // Every chunk has one for its headroom.
            if let Some(mut descriptor) = self.descriptors.get(piece.index(), HEADROOM) {
                set_length(&self.umem, &mut descriptor, piece.len());
                descriptor.set_options(if more { CONTINUED } else { 0 });
                self.queued.push(descriptor);
            }
        })
    }
}

impl Port for XskPort {
    fn receive(&mut self, pool: &mut Pool, batch: &mut Vec<Frame>, most: usize) -> usize {
        self.reclaim(pool);
        let most = most.min(SCRATCH);
        if self.busy_poll {
            self.poll_queue();
        }
        // SAFETY: `scratch` is written only.
        let count = unsafe { self.rx.consume(&mut self.scratch[..most]) };
        let before = batch.len();
        for descriptor in &self.scratch[..count] {
            let chunk = CHUNK as usize;
            let (index, offset) = (descriptor.addr() / chunk, descriptor.addr() % chunk);
            let length = descriptor.lengths().data();
            // SAFETY: the RX ring says that the kernel has filled the frame and is done with it.
            let frame = unsafe { pool.reclaim(index as u32, offset, length) };
            match (&mut self.gather, frame) {
                (None, frame) => batch.extend(frame),
                (Some(gather), Some(piece)) => {
                    batch.extend(gather.add(piece, descriptor.has_more_frames(), pool));
                }
                (Some(_), None) => {}
            }
        }
        self.refill(pool);
        batch.len() - before
    }

    fn queue(&mut self, mut frame: Frame, pool: &mut Pool) -> Result<(), Frame> {
        if self.sending as usize + self.queued.len() >= RING as usize {
            return Err(frame);
        }
        let mut descriptor = self.descriptors.get(frame.index(), frame.start());
        if descriptor.is_none() && pool.is_long(&frame) {
            return self.queue_pieces(frame, pool);
        }
        if descriptor.is_none() && frame.move_to(HEADROOM) {
            // A driver that places packets its own way, and so one that no descriptor points at.
            descriptor = self.descriptors.get(frame.index(), HEADROOM);
        }
        let Some(mut descriptor) = descriptor else {
            return Err(frame);
        };
        set_length(&self.umem, &mut descriptor, frame.len());
        self.queued.push(descriptor);
        // The chunk is the kernel's from here; `reclaim` makes a frame of it again.
        drop(frame);
        Ok(())
    }

    fn flush(&mut self, pool: &mut Pool) {
        self.reclaim(pool);
        if !self.queued.is_empty() {
            // SAFETY: the frames of `queued` are nobody else's, and of this UMEM. The ring takes them all:
            // `queue` counts what is in it.
            let taken = unsafe { self.tx.produce(&self.queued) };
            debug_assert_eq!(taken, self.queued.len());
            self.sending += taken as u32;
            self.queued.clear();
        }
        if self.sending == 0 || !self.tx.needs_wakeup() {
            return;
        }
        for _ in 0..MAX_KICKS {
            if self.tx.nb_free_exact() == RING {
                break;
            }
            if self.tx.wakeup().is_err() {
                self.refused += 1;
                break;
            }
        }
        self.reclaim(pool);
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        // SAFETY: the socket lives as long as `self`, which the result borrows.
        Some(unsafe { BorrowedFd::borrow_raw(self.rx.fd().as_raw_fd()) })
    }

    fn losses(&self) -> Losses {
        let Ok(statistics) = self.rx.fd().xdp_statistics() else {
            return Losses::default();
        };
        let no_frame = self.gather.as_ref().map_or(0, |gather| gather.no_frame);
        Losses {
            receive: statistics.rx_dropped() + statistics.rx_ring_full() + no_frame,
            send: statistics.tx_invalid_descs() + self.refused,
            refused: 0,
            too_long: self.gather.as_ref().map_or(0, |gather| gather.too_long),
        }
    }
}

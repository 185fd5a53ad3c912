//! A wire that loses, repeats, reorders and damages what crosses it, in the place of the lab's bridge: the kernel of a
//! test machine need not have netem. [`way`] decides what becomes of a frame, [`sort`] what it is.
//!
//! ```text
//!   a ─ wire0 ─── a0 ─ packet socket ─ thread ─ packet socket ─ b0 ─── wire0 ─ b
//! ```

pub mod sort;
pub mod way;

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::sockopt::{GetStruct, RcvBufForce, SetBool};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, getsockopt, recv, send,
    setsockopt, socket,
};

use crate::lab::Lab;
use crate::random::Random;
use way::Way;
pub use way::{Counts, Faults};

/// The ends of the wire, as the lab names them.
const PORTS: [&str; 2] = ["a0", "b0"];
/// Longer than any frame.
const LONGEST: usize = 1 << 17;
/// Frames that are taken of one direction before it is the other's turn.
const BATCH: usize = 64;
/// Room for frames that have not been taken yet.
const BUFFER: usize = 32 << 20;
/// How long the thread waits before it looks whether all is over.
const LOOK: Duration = Duration::from_millis(10);

/// What we send ourselves does not come back (linux/if_packet.h).
#[derive(Clone, Copy, Debug)]
struct IgnoreOutgoing;
nix::setsockopt_impl!(
    IgnoreOutgoing,
    libc::SOL_PACKET,
    libc::PACKET_IGNORE_OUTGOING,
    bool,
    SetBool
);

/// How many frames came, and how many of them found no room.
#[derive(Clone, Copy, Debug)]
struct Statistics;
nix::getsockopt_impl!(
    Statistics,
    libc::SOL_PACKET,
    libc::PACKET_STATISTICS,
    libc::tpacket_stats,
    GetStruct<libc::tpacket_stats>
);

/// The wire, until it is dropped. Then there is none.
#[derive(Debug)]
pub struct FaultyWire {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<[Way; 2]>>>,
}

impl FaultyWire {
    /// Takes the place of the bridge of a lab that is watched. What happens to the frames of a direction, one after the
    /// other, follows from `seed`.
    ///
    /// # Errors
    /// The sockets cannot be had.
    pub fn start(lab: &Lab, faults: Faults, seed: u64) -> Result<Self> {
        for port in PORTS {
            lab.underlay
                .ip(&format!("link set {port} nomaster promisc on"))?;
        }
        let open = || Ok([open(PORTS[0])?, open(PORTS[1])?]);
        let sockets = lab.underlay.within(open)?;
        let mut random = Random::new(seed);
        let ways = [(); 2].map(|()| Way::new(faults, Random::new(random.number())));
        let over = Arc::new(AtomicBool::new(false));
        let thread = std::thread::spawn({
            let over = Arc::clone(&over);
            move || relay(&sockets, ways, &over)
        });
        Ok(Self {
            over,
            thread: Some(thread),
        })
    }

    /// Ends it. Returns what was done from a to b, and from b to a.
    ///
    /// # Errors
    /// It had ended before: an interface went away.
    pub fn finish(mut self) -> Result<[Counts; 2]> {
        let ways = self.end().context("it has ended")?;
        Ok(ways?.map(|way| way.counts))
    }

    fn end(&mut self) -> Option<Result<[Way; 2]>> {
        self.over.store(true, Ordering::Relaxed);
        let result = self.thread.take()?.join();
        Some(result.unwrap_or_else(|_| Err(anyhow!("the wire panicked"))))
    }
}

impl Drop for FaultyWire {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

/// A socket for all frames that arrive at an interface of this namespace.
fn open(interface: &str) -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let protocol = SockProtocol::EthAll;
    let socket = socket(AddressFamily::Packet, SockType::Raw, flags, protocol)?;
    setsockopt(&socket, IgnoreOutgoing, &true)?;
    setsockopt(&socket, RcvBufForce, &BUFFER)?;
    let address = nix::ifaddrs::getifaddrs()?
        .filter(|address| address.interface_name == interface)
        .find_map(|address| address.address?.as_link_addr().copied())
        .with_context(|| format!("{interface} has no address"))?;
    bind(socket.as_raw_fd(), &address)?;
    // What has come from other interfaces before that.
    while recv(socket.as_raw_fd(), &mut [0], MsgFlags::empty()).is_ok() {}
    getsockopt(&socket, Statistics)?;
    Ok(socket)
}

/// Carries frames both ways until it is over.
fn relay(sockets: &[OwnedFd; 2], mut ways: [Way; 2], over: &AtomicBool) -> Result<[Way; 2]> {
    let mut buffer = vec![0; LONGEST];
    while !over.load(Ordering::Relaxed) {
        let due = ways.iter().filter_map(Way::next).min();
        let wait = due.map_or(LOOK, |due| due.saturating_duration_since(Instant::now()));
        // A millisecond more is better than to ask again and again within one.
        let wait = PollTimeout::try_from(wait.min(LOOK) + Duration::from_millis(1))?;
        let mut ready = sockets
            .each_ref()
            .map(|socket| PollFd::new(socket.as_fd(), PollFlags::POLLIN));
        poll(&mut ready, wait)?;
        for (way, from) in ways.iter_mut().zip(0..) {
            carry(way, &sockets[from], &sockets[1 - from], &mut buffer)?;
        }
    }
    for (way, socket) in ways.iter_mut().zip(sockets) {
        way.counts.missed = u64::from(getsockopt(socket, Statistics)?.tp_drops);
    }
    Ok(ways)
}

/// Carries what has come one way.
fn carry(way: &mut Way, from: &OwnedFd, to: &OwnedFd, buffer: &mut [u8]) -> Result<()> {
    let now = Instant::now();
    let [mut refused, mut too_long] = [0; 2];
    let mut error = None;
    let mut pass = |frame: &[u8]| match send(to.as_raw_fd(), frame, MsgFlags::empty()) {
        Ok(_) => {}
        Err(Errno::EMSGSIZE) => too_long += 1,
        Err(Errno::ENOBUFS | Errno::EAGAIN) => refused += 1,
        Err(other) => error = Some(other),
    };
    for _ in 0..BATCH {
        match recv(from.as_raw_fd(), buffer, MsgFlags::empty()) {
            Ok(length) => way.take(&mut buffer[..length], now, &mut pass),
            Err(Errno::EAGAIN) => break,
            Err(error) => return Err(error).context("receiving from the wire"),
        }
    }
    way.release(now, &mut pass);
    way.counts.refused += refused;
    way.counts.too_long += too_long;
    error.map_or(Ok(()), |error| Err(error).context("sending to the wire"))
}

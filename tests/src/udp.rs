//! UDP load whose packets are numbered: what is lost, and what comes twice, is seen by number.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use nix::sys::socket::{setsockopt, sockopt};

use crate::lab::Side;
use crate::netns::Namespace;

/// Bytes of a packet's payload.
const SIZE: usize = 200;
/// How often packets are sent: as many at once as are due.
const TICK: Duration = Duration::from_millis(1);
/// How long a packet may be on its way after the last one was sent.
const PATIENCE: Duration = Duration::from_secs(1);
/// Room for packets that the receiver has not taken yet.
const BUFFER: usize = 64 << 20;

/// What became of a stream of packets.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flow {
    /// Sent.
    pub sent: u64,
    /// Received, each number once.
    pub received: u64,
    /// Received again.
    pub twice: u64,
    /// Ranges of numbers that have not come, the first few.
    pub gaps: Vec<(u64, u64)>,
}

impl Flow {
    /// Whether every packet has come once.
    #[must_use]
    pub fn whole(&self) -> bool {
        self.sent == self.received && self.twice == 0 && self.sent > 0
    }
}

/// One end of a stream: the "VM" of a side.
#[derive(Clone, Debug)]
pub struct End {
    namespace: Namespace,
    inner: IpAddr,
}

impl From<&Side> for End {
    fn from(side: &Side) -> Self {
        Self {
            namespace: side.namespace.clone(),
            inner: side.inner,
        }
    }
}

/// A stream to run: `rate` packets a second between two sides.
#[derive(Clone, Debug)]
pub struct Stream {
    /// Who sends.
    pub from: End,
    /// Who receives.
    pub to: End,
    /// Packets a second.
    pub rate: u32,
}

/// Runs streams side by side until `end` is set, and says what became of each.
///
/// # Errors
/// A socket cannot be made.
pub fn run(streams: &[Stream], end: &AtomicBool) -> Result<Vec<Flow>> {
    scope(|scope| {
        let running: Vec<_> = (5200..)
            .zip(streams)
            .map(|(port, stream)| scope.spawn(move || run_one(stream, port, end)))
            .collect();
        let ended = running.into_iter().map(|thread| thread.join());
        ended
            .map(|flow| flow.map_err(|_| anyhow!("it panicked"))?)
            .collect()
    })
}

fn run_one(stream: &Stream, port: u16, end: &AtomicBool) -> Result<Flow> {
    let to = SocketAddr::new(stream.to.inner, port);
    let receiver = stream.to.namespace.within(|| Ok(UdpSocket::bind(to)?))?;
    setsockopt(&receiver, sockopt::RcvBufForce, &BUFFER).context("receive buffer")?;
    receiver.set_read_timeout(Some(Duration::from_millis(100)))?;
    let from = SocketAddr::new(stream.from.inner, 0);
    let sender = stream.from.namespace.within(|| {
        let socket = UdpSocket::bind(from)?;
        socket.connect(to)?;
        Ok(socket)
    })?;
    // All ones until the last packet is sent.
    let sent = AtomicU64::new(u64::MAX);
    scope(|scope| {
        let receiving = scope.spawn(|| receive(&receiver, &sent));
        let result = send(&sender, stream.rate, end);
        sent.store(*result.as_ref().unwrap_or(&0), Ordering::Relaxed);
        let mut flow = receiving.join().map_err(|_| anyhow!("it panicked"))?;
        flow.sent = result?;
        Ok(flow)
    })
}

/// Sends until `end`; the number sent.
fn send(socket: &UdpSocket, rate: u32, end: &AtomicBool) -> Result<u64> {
    let start = Instant::now();
    let mut packet = [0; SIZE];
    let mut number = 0_u64;
    while !end.load(Ordering::Relaxed) {
        let due = start.elapsed().as_micros() * u128::from(rate) / 1_000_000;
        while u128::from(number) < due {
            packet[..8].copy_from_slice(&number.to_le_bytes());
            socket.send(&packet).context("sending UDP")?;
            number += 1;
        }
        std::thread::sleep(TICK);
    }
    Ok(number)
}

/// Receives until all that was `sent` has come, or nothing comes any more.
fn receive(socket: &UdpSocket, sent: &AtomicU64) -> Flow {
    let mut flow = Flow::default();
    let mut seen: Vec<bool> = Vec::new();
    let mut packet = [0; SIZE];
    let mut last = Instant::now();
    loop {
        if let Ok(length @ 8..) = socket.recv(&mut packet) {
            debug_assert!(length <= SIZE);
            last = Instant::now();
            let (number, _) = packet.split_first_chunk().unwrap_or((&[0; 8], &[]));
            let number = usize::try_from(u64::from_le_bytes(*number)).unwrap_or(usize::MAX);
            if number >= seen.len() {
                seen.resize(number + 1, false);
            }
            if std::mem::replace(&mut seen[number], true) {
                flow.twice += 1;
            } else {
                flow.received += 1;
            }
        }
        let sent = sent.load(Ordering::Relaxed);
        if sent != u64::MAX && (flow.received >= sent || last.elapsed() > PATIENCE) {
            seen.resize(usize::try_from(sent).unwrap_or_default(), false);
            flow.gaps = gaps(&seen);
            return flow;
        }
    }
}

/// Ranges of what was not seen, the first ten.
fn gaps(seen: &[bool]) -> Vec<(u64, u64)> {
    let mut gaps: Vec<(u64, u64)> = Vec::new();
    for (number, _) in (0..).zip(seen).filter(|(_, seen)| !**seen) {
        let count = gaps.len();
        match gaps.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ if count == 10 => break,
            _ => gaps.push((number, number)),
        }
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_ranges() {
        assert_eq!(gaps(&[true, false, false, true, false]), [(1, 2), (4, 4)]);
        assert!(gaps(&[true; 3]).is_empty());
        assert_eq!(gaps(&[[true, false]; 20].concat()).len(), 10);
    }
}

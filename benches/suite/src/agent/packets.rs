//! Geneve of many logical networks, made and counted by plain UDP sockets: there is no tunnel device for them.

use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use culvert_tests::geneve::VNI;
use nix::sys::socket::{setsockopt, sockopt};
use serde::{Deserialize, Serialize};

/// Geneve's UDP port.
const PORT: u16 = 6081;
/// Length of Geneve's header.
const HEADER: usize = 8;
/// Room for packets that are not counted yet.
const BUFFER: usize = 32 << 20;
/// Packets between two looks at the clock.
const BURST: u32 = 64;

/// Packets to send.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub struct Flood {
    /// From where.
    pub from: std::net::IpAddr,
    /// To where.
    pub to: std::net::IpAddr,
    /// Number of VNIs, from that of the tunnel device on, one after the other.
    pub vnis: u32,
    /// Length of the UDP payload.
    pub bytes: usize,
    /// For how long.
    pub seconds: u32,
}

/// Sends them as fast as it gets; how many.
pub(super) fn flood(flood: &Flood) -> Result<u64> {
    let socket = UdpSocket::bind(SocketAddr::new(flood.from, 0))?;
    socket.connect(SocketAddr::new(flood.to, PORT))?;
    let mut packet = vec![0; flood.bytes.max(HEADER)];
    // What is inside is Ethernet (RFC 8926 §3.4), and is nobody's here.
    packet[2..4].copy_from_slice(&[0x65, 0x58]);
    let end = Instant::now() + Duration::from_secs(u64::from(flood.seconds));
    let (mut sent, mut vni) = (0, 0_u32);
    while Instant::now() < end {
        for _ in 0..BURST {
            let [_, high, middle, low] = (VNI + vni).to_be_bytes();
            packet[4..7].copy_from_slice(&[high, middle, low]);
            vni = (vni + 1) % flood.vnis.max(1);
            // A full queue is no error: who sends as fast as it gets, loses.
            sent += u64::from(socket.send(&packet).is_ok());
        }
    }
    Ok(sent)
}

/// Who counts what arrives.
pub(super) struct Sink {
    count: Arc<AtomicU64>,
    end: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Sink {
    pub(super) fn open() -> Result<Self> {
        let socket = UdpSocket::bind((std::net::Ipv4Addr::UNSPECIFIED, PORT))
            .context("UDP port 6081 is somebody's")?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER).context("receive buffer")?;
        socket.set_read_timeout(Some(Duration::from_millis(100)))?;
        let (count, end) = (
            Arc::new(AtomicU64::new(0)),
            Arc::new(AtomicBool::new(false)),
        );
        let (counter, ending) = (Arc::clone(&count), Arc::clone(&end));
        let thread = std::thread::spawn(move || {
            let mut packet = [0; 64];
            while !ending.load(Ordering::Relaxed) {
                if socket.recv(&mut packet).is_ok() {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        Ok(Self {
            count,
            end,
            thread: Some(thread),
        })
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

impl Drop for Sink {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

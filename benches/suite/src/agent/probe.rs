//! Round trips beside a load: small UDP packets at a steady rate, to somebody who sends them back.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use culvert_tests::record::Latency;

/// Where the echo is.
const PORT: u16 = 5302;
/// How long a probe may take, and how soon the end is seen.
const PATIENCE: Duration = Duration::from_millis(200);

/// Sends back what comes, until `end`.
pub(super) fn echo(address: IpAddr, end: &Arc<AtomicBool>) -> Result<()> {
    let socket = UdpSocket::bind((address, PORT))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let end = Arc::clone(end);
    std::thread::spawn(move || {
        let mut packet = [0; 64];
        while !end.load(Ordering::Relaxed) {
            if let Ok((length, from)) = socket.recv_from(&mut packet) {
                let _ = socket.send_to(&packet[..length], from);
            }
        }
    });
    Ok(())
}

/// Probes that are under way.
pub(super) struct Probe {
    end: Arc<AtomicBool>,
    threads: Option<(JoinHandle<u32>, JoinHandle<Vec<f64>>)>,
}

impl Probe {
    /// Starts to send one each `interval` microseconds; none if that is 0.
    pub(super) fn start(to: IpAddr, interval: u32) -> Result<Self> {
        let end = Arc::new(AtomicBool::new(false));
        if interval == 0 {
            return Ok(Self { end, threads: None });
        }
        let any: IpAddr = if to.is_ipv4() {
            [0; 4].into()
        } else {
            [0_u16; 8].into()
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(SocketAddr::new(to, PORT))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let (sender, start, sending_ends) = (socket.try_clone()?, Instant::now(), Arc::clone(&end));
        let interval = Duration::from_micros(u64::from(interval));
        let sending = std::thread::spawn(move || {
            let mut sent = 0;
            while !sending_ends.load(Ordering::Relaxed) {
                // What it carries is when it left, so that nothing has to be remembered.
                let now = start.elapsed().as_nanos();
                if sender.send(&now.to_le_bytes()).is_ok() {
                    sent += 1;
                }
                std::thread::sleep(interval);
            }
            sent
        });
        let receiving_ends = Arc::clone(&end);
        let receiving = std::thread::spawn(move || {
            let mut times = Vec::new();
            let mut packet = [0; 16];
            loop {
                match socket.recv(&mut packet) {
                    Ok(16) => {
                        let taken = start.elapsed().as_nanos() - u128::from_le_bytes(packet);
                        times.push(Duration::from_nanos(
                            u64::try_from(taken).unwrap_or(u64::MAX),
                        ));
                    }
                    _ if receiving_ends.load(Ordering::Relaxed) => break,
                    _ => {}
                }
            }
            times.iter().map(|time| time.as_secs_f64() * 1e6).collect()
        });
        Ok(Self {
            end,
            threads: Some((sending, receiving)),
        })
    }

    /// Ends them; how long they took.
    pub(super) fn end(self) -> Result<Option<Latency>> {
        self.end.store(true, Ordering::Relaxed);
        let Some((sending, receiving)) = self.threads else {
            return Ok(None);
        };
        let sent = sending.join().map_err(|_| anyhow!("it panicked"))?;
        let times = receiving.join().map_err(|_| anyhow!("it panicked"))?;
        Ok(Some(summary(sent, times)))
    }
}

fn summary(sent: u32, mut times: Vec<f64>) -> Latency {
    times.sort_by(f64::total_cmp);
    let at = |thousandths: usize| {
        let index = (times.len() * thousandths / 1000).min(times.len().saturating_sub(1));
        times.get(index).copied().unwrap_or_default()
    };
    Latency {
        sent,
        received: u32::try_from(times.len()).unwrap_or(u32::MAX),
        p50: at(500),
        p99: at(990),
        p999: at(999),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_of_what_came_back() {
        let latency = summary(2_000, (1..=1_000).map(f64::from).collect());
        assert_eq!((latency.sent, latency.received), (2_000, 1_000));
        assert_eq!(
            (latency.p50, latency.p99, latency.p999),
            (501.0, 991.0, 1_000.0)
        );
        assert_eq!(summary(3, Vec::new()).p99, 0.0);
    }

    #[test]
    fn probes_come_back() {
        let end = Arc::new(AtomicBool::new(false));
        let address: IpAddr = [127, 0, 0, 9].into();
        echo(address, &end).unwrap();
        let probe = Probe::start(address, 1_000).unwrap();
        std::thread::sleep(Duration::from_millis(100));
        let latency = probe.end().unwrap().unwrap();
        end.store(true, Ordering::Relaxed);
        assert!(
            latency.sent > 10 && latency.received == latency.sent,
            "{latency:?}"
        );
        assert!(latency.p50 > 0.0 && latency.p50 <= latency.p999);
    }
}

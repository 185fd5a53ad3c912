//! The judges of a campaign: nftables counts Geneve in clear, and every packet that crosses the bridge is captured and
//! looked at as it comes, so that nothing is kept but which numbers there were.

use std::collections::{BTreeSet, HashMap};
use std::io::Read;
use std::path::PathBuf;
use std::process::Child;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use culvert_packet::headers::{self, Address, Kind};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use pcap_file::pcap::PcapReader;

use super::numbers::Numbers;
use crate::lab::Lab;
use crate::netns::wait_for;
use crate::wire::take_counts;

/// Bytes of a packet that are looked at: up to the IV of ESP in UDP over IPv6, with room for extension headers.
const SNAPLEN: u32 = 128;

/// How long the capture may be behind the counters.
const BEHIND: Duration = Duration::from_secs(20);

/// An SA, as the wire shows it.
type Sa = (Address, u32);

/// What there was on the wire.
#[derive(Debug, Default)]
pub struct Seen {
    /// Packets of ESP.
    pub packets: u64,
    sequences: HashMap<Sa, Numbers>,
    ivs: HashMap<Sa, Numbers>,
    /// What must not be: the first few.
    faults: BTreeSet<String>,
}

impl Seen {
    /// Looks at a packet.
    pub fn look(&mut self, packet: &[u8]) {
        let Ok(headers) = headers::walk(packet) else {
            return;
        };
        let at = headers.transport;
        match headers::classify(packet, &headers) {
            Kind::Esp(spi) => self.esp(packet, spi, at),
            Kind::EspInUdp(spi) => self.esp(packet, spi, at + 8),
            Kind::Geneve => self.fault(format!("Geneve in clear: {packet:02x?}")),
            _ => {}
        }
    }

    fn esp(&mut self, packet: &[u8], spi: u32, at: usize) {
        let sequence = packet.get(at + 4..at + 8).and_then(|it| it.try_into().ok());
        let iv = packet
            .get(at + 8..at + 16)
            .and_then(|it| it.try_into().ok());
        let addresses = headers::addresses(packet);
        let (Some(sequence), Some(iv), Some((_, to))) = (sequence, iv, addresses) else {
            return self.fault(format!("ESP that is cut off: {packet:02x?}"));
        };
        let (sequence, iv) = (u32::from_be_bytes(sequence), u64::from_be_bytes(iv));
        self.packets += 1;
        let sa = (to, spi);
        // The low half of a number is on the wire. No campaign has so many packets that it comes round.
        if !self
            .sequences
            .entry(sa)
            .or_default()
            .insert(u64::from(sequence))
        {
            self.fault(format!("SPI {spi:#x}: sequence number {sequence} twice"));
        }
        if !self.ivs.entry(sa).or_default().insert(iv) {
            self.fault(format!("SPI {spi:#x}: IV {iv:#x} twice, at {sequence}"));
        }
    }

    fn fault(&mut self, text: String) {
        if self.faults.len() < 10 {
            self.faults.insert(text);
        }
    }

    /// Whether all is well.
    ///
    /// # Errors
    /// What is not.
    pub fn verdict(&self) -> Result<()> {
        let faults: Vec<&str> = self.faults.iter().map(String::as_str).collect();
        ensure!(faults.is_empty(), "on the wire: {}", faults.join("; "));
        Ok(())
    }

    /// SAs that there were packets of.
    #[must_use]
    pub fn sas(&self) -> usize {
        self.sequences.len()
    }
}

/// The judges at work.
#[derive(Debug)]
pub struct Judge {
    seen: Arc<Mutex<Seen>>,
    /// Packets of ESP that nftables counted.
    counted: u64,
    tcpdump: Child,
    log: PathBuf,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Judge {
    /// Begins to look at what crosses the bridge, which in promiscuous mode gets a copy of it whatever its ports do.
    ///
    /// # Errors
    /// tcpdump does not start.
    pub fn start(lab: &Lab) -> Result<Self> {
        let log = lab.home.path().join("campaign-tcpdump.log");
        let mut command = lab.underlay.command("tcpdump");
        command
            .args(["-i", "br0", "-Q", "in", "-n", "-U", "-Z", "root"])
            .args(["-B", "65536", "--immediate-mode"])
            .args(["-s", &SNAPLEN.to_string(), "-w", "-"]);
        let mut tcpdump = lab.home.spawn_piped(command, &log)?;
        let output = tcpdump.stdout.take().context("tcpdump's output")?;
        let seen = Arc::<Mutex<Seen>>::default();
        let thread = {
            let seen = Arc::clone(&seen);
            std::thread::spawn(move || read(output, &seen))
        };
        let this = Self {
            seen,
            counted: 0,
            tcpdump,
            log,
            thread: Some(thread),
        };
        wait_for("tcpdump", Duration::from_secs(10), || {
            this.said().contains("listening on")
        })?;
        take_counts(&lab.underlay)?;
        Ok(this)
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Judges everything until now.
    ///
    /// # Errors
    /// Something must not be, or was not seen.
    pub fn judge(&mut self, lab: &Lab) -> Result<()> {
        let counts = take_counts(&lab.underlay)?;
        self.counted += counts.esp.packets;
        let whole = wait_for("the capture to have all that was counted", BEHIND, || {
            self.seen().packets >= self.counted
        });
        self.seen().verdict()?;
        ensure!(
            counts.plaintext_geneve.packets == 0,
            "Geneve in clear: {counts:?}"
        );
        whole.with_context(|| {
            let seen = self.seen().packets;
            format!("{seen} seen of {} packets: {}", self.counted, self.said())
        })
    }

    /// Ends: what there was.
    ///
    /// # Errors
    /// As [`Judge::judge`].
    pub fn finish(mut self, lab: &Lab) -> Result<Seen> {
        self.judge(lab)?;
        kill(
            Pid::from_raw(self.tcpdump.id().cast_signed()),
            Signal::SIGINT,
        )?;
        self.tcpdump.wait()?;
        let thread = self.thread.take().context("who looks")?;
        thread.join().map_err(|_| anyhow!("it panicked"))??;
        let said = self.said();
        ensure!(
            said.contains("\n0 packets dropped by kernel"),
            "the capture missed packets: {said}"
        );
        self.seen().verdict()?;
        Ok(std::mem::take(&mut self.seen()))
    }
}

impl Drop for Judge {
    fn drop(&mut self) {
        // Done already, if all is well; and the thread ends with it.
        let _ = self.tcpdump.kill();
        let _ = self.tcpdump.wait();
    }
}

/// Looks at packets until there are no more.
fn read(output: impl Read, seen: &Mutex<Seen>) -> Result<()> {
    let mut reader = PcapReader::new(output)?;
    // Raw, as the checked kind refuses packets of which only the beginning was captured.
    while let Some(packet) = reader.next_raw_packet() {
        let packet = packet?;
        seen.lock()
            .unwrap_or_else(PoisonError::into_inner)
            .look(&packet.data);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ethernet, IPv4 with `protocol`, and `payload`.
    fn packet(protocol: u8, to: u8, payload: &[u8]) -> Vec<u8> {
        let mut packet = vec![2; 12];
        packet.extend([8, 0, 0x45, 0]);
        packet.extend(u16::try_from(20 + payload.len()).unwrap().to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, protocol, 0, 0, 192, 0, 2, 1, 192, 0, 2, to]);
        packet.extend(payload);
        packet
    }

    fn esp(spi: u32, sequence: u32, iv: u64) -> Vec<u8> {
        let mut payload = spi.to_be_bytes().to_vec();
        payload.extend(sequence.to_be_bytes());
        payload.extend(iv.to_be_bytes());
        payload.extend([0; 40]);
        payload
    }

    fn in_udp(ports: [u16; 2], payload: &[u8]) -> Vec<u8> {
        let mut udp: Vec<u8> = ports.iter().flat_map(|port| port.to_be_bytes()).collect();
        udp.extend(u16::try_from(8 + payload.len()).unwrap().to_be_bytes());
        udp.extend([0, 0]);
        udp.extend(payload);
        udp
    }

    fn faults(packets: &[Vec<u8>]) -> (u64, Vec<String>) {
        let mut seen = Seen::default();
        packets.iter().for_each(|packet| seen.look(packet));
        (seen.packets, seen.faults.into_iter().collect())
    }

    #[test]
    fn what_may_be_is_no_fault() {
        let (packets, faults) = faults(&[
            packet(50, 2, &esp(0x1001, 1, 1)),
            packet(50, 2, &esp(0x1001, 2, 2)),
            packet(50, 2, &esp(0x1002, 1, 1)),
            // The same SPI of another host is another SA.
            packet(50, 3, &esp(0x1001, 1, 1)),
            packet(17, 2, &in_udp([4500, 4500], &esp(0x1001, 3, 3))),
            packet(17, 2, &in_udp([1, 2], &[0; 40])),
            packet(1, 2, &[0; 40]),
            vec![0; 60],
        ]);
        assert_eq!((packets, faults), (5, vec![]));
    }

    #[test]
    fn every_fault_is_seen() {
        let both = faults(&[
            packet(50, 2, &esp(0x1001, 7, 7)),
            packet(17, 2, &in_udp([4500, 4500], &esp(0x1001, 7, 8))),
        ]);
        assert_eq!(both.1, ["SPI 0x1001: sequence number 7 twice"]);
        // Another number, but the nonce of the one before: a counter with a salt and one without.
        let both = faults(&[
            packet(50, 2, &esp(0x1001, 1, 0x55)),
            packet(50, 2, &esp(0x1001, 0x55, 0x55)),
        ]);
        assert_eq!(both.1, ["SPI 0x1001: IV 0x55 twice, at 85"]);
        let clear = faults(&[packet(17, 2, &in_udp([5000, 6081], &[0; 40]))]);
        assert!(clear.1[0].starts_with("Geneve in clear"), "{:?}", clear.1);
    }
}

//! A port on capture files, so that `culvert pcap` runs the very code of the workers: one port reads a
//! capture, the other writes one.

use std::cell::Cell;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Seek, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::rc::Rc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapReader, PcapWriter};
use pcap_file::pcapng::{Block, PcapNgReader};
use pcap_file::{DataLink, TsResolution};

use super::Port;
use crate::frame::{Frame, Pool};

/// Magic number of a pcapng section header.
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Longest frame that a capture may have in it, as tcpdump's have; the crate's own 65,535 leave no room for Ethernet
/// in front of the longest IP packets.
const LONGEST: u32 = 262_144;

/// The time of the packet under way: packets go through one at a time, so that each keeps its own.
pub type Clock = Rc<Cell<Duration>>;

/// A capture that is read, or written, or neither.
#[derive(Default)]
pub struct PcapPort {
    input: Option<Input>,
    output: Option<PcapWriter<BufWriter<File>>>,
    queued: Vec<Frame>,
    clock: Clock,
    /// Why reading or writing ended early.
    problem: Option<anyhow::Error>,
    /// Packets read.
    pub read: u64,
    /// Packets written.
    pub written: u64,
}

enum Input {
    Pcap(PcapReader<BufReader<File>>),
    PcapNg(PcapNgReader<BufReader<File>>),
}

impl PcapPort {
    /// A port that receives the packets of the capture at `path`, pcap or pcapng.
    ///
    /// # Errors
    /// It cannot be read, or is no capture of Ethernet.
    pub fn reading(path: &Path, clock: &Clock) -> Result<Self> {
        let mut file =
            File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut magic = [0; 4];
        file.read_exact(&mut magic)
            .and_then(|()| file.rewind())
            .with_context(|| format!("{} is no capture file", path.display()))?;
        let file = BufReader::new(file);
        let input = if magic == PCAPNG {
            Input::PcapNg(PcapNgReader::new(file).context("pcapng")?)
        } else {
            let reader = PcapReader::new(file)
                .with_context(|| format!("{} is neither pcap nor pcapng", path.display()))?;
            let link = reader.header().datalink;
            if link != DataLink::ETHERNET {
                bail!("{}: link type {link:?}, not Ethernet", path.display());
            }
            Input::Pcap(reader)
        };
        Ok(Self {
            input: Some(input),
            clock: Rc::clone(clock),
            ..Self::default()
        })
    }

    /// A port that writes what is sent on it to `path`, as pcap.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn writing(path: &Path, clock: &Clock) -> Result<Self> {
        let file =
            File::create(path).with_context(|| format!("cannot write {}", path.display()))?;
        let header = PcapHeader {
            ts_resolution: TsResolution::NanoSecond,
            datalink: DataLink::ETHERNET,
            snaplen: LONGEST,
            ..PcapHeader::default()
        };
        Ok(Self {
            output: Some(PcapWriter::with_header(BufWriter::new(file), header)?),
            clock: Rc::clone(clock),
            ..Self::default()
        })
    }

    /// Ends: writes what is buffered.
    ///
    /// # Errors
    /// What went wrong while reading or writing.
    pub fn finish(self) -> Result<()> {
        if let Some(problem) = self.problem {
            return Err(problem);
        }
        if let Some(output) = self.output {
            output
                .into_writer()
                .flush()
                .context("writing the capture")?;
        }
        Ok(())
    }

    /// The next packet's time and bytes.
    fn next(&mut self) -> Result<Option<(Duration, Vec<u8>)>> {
        match &mut self.input {
            None => Ok(None),
            Some(Input::Pcap(reader)) => {
                let unit = match reader.header().ts_resolution {
                    TsResolution::MicroSecond => 1000,
                    TsResolution::NanoSecond => 1,
                };
                // Raw, as the checked kind refuses packets of which only the beginning was captured; the
                // worker counts those.
                reader.next_raw_packet().map_or(Ok(None), |packet| {
                    let packet = packet.context("the capture is damaged")?;
                    let fraction = u64::from(packet.ts_frac) * unit;
                    let time =
                        Duration::from_secs(packet.ts_sec.into()) + Duration::from_nanos(fraction);
                    Ok(Some((time, packet.data.into_owned())))
                })
            }
            Some(Input::PcapNg(reader)) => {
                while let Some(block) = reader.next_block() {
                    match block.context("the capture is damaged")? {
                        Block::InterfaceDescription(interface)
                            if interface.linktype != DataLink::ETHERNET =>
                        {
                            bail!("link type {:?}, not Ethernet", interface.linktype);
                        }
                        Block::EnhancedPacket(packet) => {
                            return Ok(Some((packet.timestamp, packet.data.into_owned())));
                        }
                        Block::SimplePacket(packet) => {
                            return Ok(Some((Duration::ZERO, packet.data.into_owned())));
                        }
                        _ => {}
                    }
                }
                Ok(None)
            }
        }
    }

    fn write(&mut self, frame: &Frame) -> Result<()> {
        let Some(output) = &mut self.output else {
            return Ok(());
        };
        let length = u32::try_from(frame.len())?;
        output
            .write_packet(&PcapPacket::new(self.clock.get(), length, frame.bytes()))
            .context("writing the capture")?;
        self.written += 1;
        Ok(())
    }

    fn fail(&mut self, problem: anyhow::Error) {
        self.problem.get_or_insert(problem);
        self.input = None;
        self.output = None;
    }
}

impl Port for PcapPort {
    fn receive(&mut self, pool: &mut Pool, batch: &mut Vec<Frame>, _most: usize) -> usize {
        let (time, bytes) = match self.next() {
            Ok(Some(packet)) => packet,
            Ok(None) => return 0,
            Err(problem) => {
                self.fail(problem);
                return 0;
            }
        };
        let Some(mut frame) = pool.take() else {
            return 0;
        };
        self.read += 1;
        if let Err(problem) = frame.write(&bytes) {
            let which = format!("packet {}", self.read);
            self.fail(anyhow::Error::from(problem).context(which));
            pool.give(frame);
            return 0;
        }
        self.clock.set(time);
        batch.push(frame);
        1
    }

    fn queue(&mut self, frame: Frame, _pool: &mut Pool) -> Result<(), Frame> {
        self.queued.push(frame);
        Ok(())
    }

    fn flush(&mut self, pool: &mut Pool) {
        for frame in std::mem::take(&mut self.queued) {
            if let Err(problem) = self.write(&frame) {
                self.fail(problem);
            }
            pool.give(frame);
        }
    }

    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// VLAN tags and the longest IPv6 packet.
    #[test]
    fn the_longest_frames_are_read_and_written() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("long.pcap");
        let long = vec![7; 22 + 40 + 65_535];
        let mut pool = Pool::on_heap(1, 66_000);
        let clock = Clock::default();

        let mut port = PcapPort::writing(&path, &clock).unwrap();
        let mut frame = pool.take().unwrap();
        frame.write(&long).unwrap();
        port.queue(frame, &mut pool).unwrap();
        port.flush(&mut pool);
        port.finish().unwrap();

        let mut port = PcapPort::reading(&path, &clock).unwrap();
        let mut batch = Vec::new();
        assert_eq!(port.receive(&mut pool, &mut batch, 1), 1);
        assert_eq!(batch[0].bytes(), long);
        for frame in batch {
            pool.give(frame);
        }
        port.finish().unwrap();
    }
}

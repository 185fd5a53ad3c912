//! IPv4 fragmentation of sealed packets (RFC 791 §3.2, RFC 4303 §3.3.4).
//!
//! The packet's own frame becomes the first fragment: it is cut short. The data behind the cut is copied
//! into fresh frames, behind copies of the headers. All frames are taken before the first byte is changed,
//! so that a packet goes out whole or not at all.

use std::vec::Drain;

use culvert_esp::buffer::Frame;
use culvert_packet::headers::{Headers, Version};

use super::{
    DONT_FRAGMENT, MORE_FRAGMENTS, OFFSET, Supply, bytes, change_word, checksum, set_word, word,
};
use crate::frame::HEADROOM;

/// Most fragments after the first: enough for the longest IPv4 packet at an MTU of 576.
pub const MOST_LATER: usize = 128;

/// Length of the longest IPv4 header.
const LONGEST_HEADER: usize = 60;
/// Length of the IPv4 header without options.
const HEADER: usize = 20;

/// Why a packet was not cut. It is as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// It says "don't fragment": the sender must hear of the MTU instead.
    DontFragment,
    /// IPv6: only the source itself may fragment (RFC 8200 §5), and it must hear of the MTU.
    NotIpv4,
    /// It is a fragment already.
    Fragmented,
    /// Its headers are not those that were given, or its IP options are malformed.
    Malformed,
    /// The MTU does not take a header and eight bytes.
    MtuTooSmall,
    /// More than [`MOST_LATER`] fragments after the first.
    TooMany,
    /// No frame to be had for a fragment, or one that is too small for it.
    NoFrame,
}

/// Whether its sender lets the packet be fragmented on its way: never over IPv6 (RFC 8200 §5).
#[must_use]
pub fn may_fragment(packet: &[u8], headers: &Headers) -> bool {
    headers.version == Version::V4
        && packet
            .get(headers.ip..headers.transport)
            .is_some_and(|header| header.len() >= HEADER && word(header, 6) & DONT_FRAGMENT == 0)
}

/// Cuts packets; keeps the space for the list of fragments, so that no packet allocates.
#[derive(Debug)]
pub struct Fragmenter<F> {
    later: Vec<F>,
}

impl<F> Default for Fragmenter<F> {
    fn default() -> Self {
        Self {
            later: Vec::with_capacity(MOST_LATER),
        }
    }
}

impl<F: Frame> Fragmenter<F> {
    // RFC 4303 §3.3.4 [3.3.4-fragment-after]
    /// Cuts the IPv4 packet of `frame`, whose `headers` are relative to the frame's start, into fragments of
    /// at most `mtu` bytes from the IP header on. `frame` becomes the first; the others come out, to be sent
    /// after it in their order. A packet that is no longer than `mtu` stays as it is, and nothing comes out.
    ///
    /// What is left in the returned iterator when it is dropped is lost with its frames.
    ///
    /// # Errors
    /// See [`Error`]; `frame` is unchanged then, and every frame of `supply` is back.
    pub fn fragment(
        &mut self,
        frame: &mut F,
        headers: &Headers,
        mtu: usize,
        supply: &mut impl Supply<F>,
    ) -> Result<Drain<'_, F>, Error> {
        let packet = bytes(frame).get(..headers.end).ok_or(Error::Malformed)?;
        if let Some(cuts) = Cuts::new(packet, headers, mtu)? {
            if let Err(error) = self.fill(packet, headers, &cuts, supply) {
                self.later.drain(..).for_each(|unused| supply.give(unused));
                return Err(error);
            }
            let ip = &mut bytes(frame)[headers.ip..];
            change_word(ip, 2, cuts.first_length);
            change_word(ip, 6, MORE_FRAGMENTS);
            let start = frame.bounds().start;
            frame.set_bounds(start..start + headers.transport + cuts.first);
        }
        Ok(self.later.drain(..))
    }

    /// Takes and writes the fragments after the first.
    fn fill(
        &mut self,
        packet: &[u8],
        headers: &Headers,
        cuts: &Cuts,
        supply: &mut impl Supply<F>,
    ) -> Result<(), Error> {
        let rest = &packet[headers.transport + cuts.first..];
        let ethernet = &packet[..headers.ip];
        let mut offset = cuts.first;
        for data in rest.chunks(cuts.later) {
            let last = headers.transport + offset + data.len() == packet.len();
            let header = cuts.header(offset, data.len(), last)?;
            let header = &header[..cuts.header_length];
            let length = ethernet.len() + header.len() + data.len();
            let mut target = supply.take(length).ok_or(Error::NoFrame)?;
            let written = write(&mut target, &[ethernet, header, data]);
            self.later.push(target);
            written.ok_or(Error::NoFrame)?;
            offset += data.len();
        }
        Ok(())
    }
}

/// Makes `frame` the concatenation of `parts`, behind the headroom.
fn write<F: Frame>(frame: &mut F, parts: &[&[u8]]) -> Option<()> {
    let mut end = HEADROOM;
    for part in parts {
        let room = frame.chunk().get_mut(end..end + part.len())?;
        room.copy_from_slice(part);
        end += part.len();
    }
    frame.set_bounds(HEADROOM..end);
    Some(())
}

/// Where a packet is cut.
struct Cuts {
    /// Data of the first fragment, in bytes.
    first: usize,
    /// IP length of the first fragment.
    first_length: u16,
    /// Data of each later fragment but the last, in bytes.
    later: usize,
    /// IP header of the later fragments, without length, fragment word and checksum.
    later_header: [u8; LONGEST_HEADER],
    header_length: usize,
}

impl Cuts {
    /// `None` if nothing is to be cut.
    fn new(packet: &[u8], headers: &Headers, mtu: usize) -> Result<Option<Self>, Error> {
        if packet.len().saturating_sub(headers.ip) <= mtu {
            return Ok(None);
        }
        if headers.version == Version::V6 {
            return Err(Error::NotIpv4);
        }
        let header = packet
            .get(headers.ip..headers.transport)
            .filter(|header| (HEADER..=LONGEST_HEADER).contains(&header.len()))
            .ok_or(Error::Malformed)?;
        let flags = word(header, 6);
        if flags & DONT_FRAGMENT != 0 {
            return Err(Error::DontFragment);
        }
        if flags & (MORE_FRAGMENTS | OFFSET) != 0 {
            return Err(Error::Fragmented);
        }
        let (later_header, header_length) = later_header(header)?;
        // RFC 791 §3.2: all but the last carry a multiple of eight bytes.
        let room = |header: usize| match mtu.saturating_sub(header) & !7 {
            0 => Err(Error::MtuTooSmall),
            room => Ok(room),
        };
        let (first, later) = (room(header.len())?, room(header_length)?);
        let rest = packet.len() - headers.transport - first;
        if rest.div_ceil(later) > MOST_LATER {
            return Err(Error::TooMany);
        }
        let first_length = u16::try_from(header.len() + first).map_err(|_| Error::Malformed)?;
        Ok(Some(Self {
            first,
            first_length,
            later,
            later_header,
            header_length,
        }))
    }

    /// Header of the fragment with `length` bytes of data at `offset`.
    fn header(
        &self,
        offset: usize,
        length: usize,
        last: bool,
    ) -> Result<[u8; LONGEST_HEADER], Error> {
        let mut header = self.later_header;
        let total = u16::try_from(self.header_length + length).map_err(|_| Error::Malformed)?;
        let mut fragment = u16::try_from(offset / 8).map_err(|_| Error::Malformed)?;
        if !last {
            fragment |= MORE_FRAGMENTS;
        }
        set_word(&mut header, 2, total);
        set_word(&mut header, 6, fragment);
        set_word(&mut header, 10, 0);
        let sum = checksum::finish(checksum::sum(&header[..self.header_length]));
        set_word(&mut header, 10, sum);
        Ok(header)
    }
}

/// The header of fragments after the first, and its length: of the options, only those whose "copied" flag
/// is set (RFC 791 §3.1), padded to a multiple of four bytes.
fn later_header(header: &[u8]) -> Result<([u8; LONGEST_HEADER], usize), Error> {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let (fixed, mut options) = header.split_at(HEADER);
    let mut later = [END; LONGEST_HEADER];
    later[..HEADER].copy_from_slice(fixed);
    let mut length = HEADER;
    loop {
        let (option, rest) = match *options {
            [] | [END, ..] => break,
            [NO_OPERATION, ..] => options.split_at(1),
            [_, size, ..] if size >= 2 => options
                .split_at_checked(usize::from(size))
                .ok_or(Error::Malformed)?,
            _ => return Err(Error::Malformed),
        };
        if option[0] & COPIED != 0 {
            later[length..length + option.len()].copy_from_slice(option);
            length += option.len();
        }
        options = rest;
    }
    let length = length.next_multiple_of(4);
    later[0] = 0x40 | (length / 4).to_le_bytes()[0];
    Ok((later, length))
}

#[cfg(test)]
mod tests;

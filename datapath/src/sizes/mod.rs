//! Packets that are larger than the path takes, either way.
//!
//! Out: a packet that sealing makes longer than the MTU is either sealed and then cut by [`fragment`]
//! (IPv4 without DF: RFC 4303 §3.3.4 wants fragments of ESP, not ESP of fragments), or, where the sender
//! wants no fragments (DF, IPv6), not sealed at all: [`too_big`] turns it into the ICMP error that tells the
//! host's own stack how long its packets may be.
//!
//! In: a peer, or a router before it, may have cut ESP packets as well. [`reassembly`] puts them together
//! again, as ESP can be opened only whole, in a bounded table.
//!
//! All of it is sans-IO: frames, time and MTU come in as arguments; nothing allocates per packet.

pub mod fragment;
pub mod reassembly;
#[cfg(test)]
mod testing;
pub mod too_big;

use culvert_esp::buffer::Frame;
use culvert_esp::checksum;

/// More fragments follow: a flag in the IPv4 word of flags and offset (RFC 791 §3.1).
const MORE_FRAGMENTS: u16 = 0x2000;
/// The packet is not to be cut: a flag in the same word.
const DONT_FRAGMENT: u16 = 0x4000;
/// The offset's part of the same word, in units of eight bytes.
const OFFSET: u16 = 0x1fff;

/// Where free frames come from and go back to.
pub trait Supply<F> {
    /// Takes a free frame for a packet of `length` bytes; its bounds mean nothing.
    fn take(&mut self, length: usize) -> Option<F>;
    /// Gives a frame back that was not used.
    fn give(&mut self, frame: F);
    /// The same packet in the longest frame that can be had.
    fn lengthen(&mut self, frame: F) -> F {
        frame
    }
}

/// The packet in `frame`; empty if its bounds are not within its chunk.
fn bytes<F: Frame>(frame: &mut F) -> &mut [u8] {
    let bounds = frame.bounds();
    frame.chunk().get_mut(bounds).unwrap_or_default()
}

/// The 16-bit word at `at`, which must be within `bytes`.
fn word(bytes: &[u8], at: usize) -> u16 {
    u16::from_be_bytes([bytes[at], bytes[at + 1]])
}

/// Writes the 16-bit word at `at`, which must be within `bytes`.
fn set_word(bytes: &mut [u8], at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
}

/// Writes the word at `at` of an IPv4 header, and corrects its checksum by the difference: a header that
/// was damaged on its way does not become right by this.
fn change_word(header: &mut [u8], at: usize, value: u16) {
    let sum = checksum::update(word(header, 10), [(word(header, at), value)]);
    set_word(header, at, value);
    set_word(header, 10, sum);
}

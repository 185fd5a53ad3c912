//! What the programs share: packets as the header walk reads them.
#![no_std]

use aya_ebpf::programs::{TcContext, XdpContext};
use culvert_packet::headers::Packet;

/// No header that is walked begins farther than this; the verifier wants to know.
const FARTHEST: usize = 2048;

/// A packet in an XDP program: read where it lies.
pub struct Xdp<'a>(pub &'a XdpContext);

impl Packet for Xdp<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        if offset > FARTHEST {
            return None;
        }
        let start = self.0.data() + offset;
        if start + N > self.0.data_end() {
            return None;
        }
        // SAFETY: the N bytes end at or before data_end, as just checked (and as the verifier checks).
        Some(unsafe { *(start as *const [u8; N]) })
    }
}

/// A packet in a tc program: read through the kernel, as its headers may not be in the linear part.
pub struct Tc<'a>(pub &'a TcContext);

impl Packet for Tc<'_> {
    #[inline(always)]
    fn read<const N: usize>(&self, offset: usize) -> Option<[u8; N]> {
        self.0.load(offset).ok()
    }
}

//! How long packets may be, and in how many buffers AF_XDP moves one.
#![expect(unsafe_code, reason = "a socket's address, which nix does not have")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use culvert_esp::MAX_TAILROOM;
use log::warn;

use crate::frame::{HEADROOM, LONG, PIECE};

/// Ethernet's header, with two VLAN tags.
const ETHERNET: u32 = 14 + 2 * 4;

/// In how many buffers a packet may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffers {
    /// In one: a page, less what native XDP on a veth keeps for itself. Costs least.
    One,
    /// In several: eBPF programs and sockets that know of them, and copying where a packet is in more than one.
    Several,
}

impl Buffers {
    /// The longest IP packets that the host port takes, in bytes.
    #[must_use]
    pub const fn longest(self) -> u32 {
        match self {
            Self::One => 3498,
            Self::Several => 16_000,
        }
    }

    /// What a wire with this MTU needs, if the kernel has it.
    ///
    /// # Errors
    /// There is no AF_XDP.
    pub fn choose(wire: &str, mtu: u32) -> Result<Self> {
        let one = Self::One.longest();
        if mtu <= one {
            return Ok(Self::One);
        }
        if !kernel_has_several()? {
            warn!(
                "{wire} has MTU {mtu}, but before Linux 6.6 AF_XDP takes packets up to {one} bytes: longer ones are lost. \
                 Lower the MTU of {wire}, or make the Geneve device's so low that its packets stay below"
            );
            return Ok(Self::One);
        }
        if mtu > Self::Several.longest() {
            warn!(
                "{wire} has MTU {mtu}, but Culvert takes packets up to {} bytes: the Geneve device's MTU must be so low \
                 that they stay below",
                Self::Several.longest()
            );
        }
        Ok(Self::Several)
    }
}

impl fmt::Display for Buffers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::One => "packets in one buffer",
            Self::Several => "packets in several buffers",
        })
    }
}

// What the host port takes can be sealed where it was received to.
const _: () = {
    let around = ETHERNET as usize + MAX_TAILROOM;
    assert!(Buffers::One.longest() as usize + around <= PIECE);
    assert!(HEADROOM + Buffers::Several.longest() as usize + around <= LONG as usize);
};

/// Whether AF_XDP takes packets in several buffers (`XDP_USE_SG`, Linux 6.6). Asked by binding a socket to no interface: the
/// kernel looks at the flags first (`xsk_bind`).
fn kernel_has_several() -> Result<bool> {
    // SAFETY: all arguments are in the call.
    let socket = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    let socket = nix::errno::Errno::result(socket).context("no AF_XDP socket")?;
    // SAFETY: it was just opened, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    let address = libc::sockaddr_xdp {
        sxdp_family: u16::try_from(libc::AF_XDP)?,
        sxdp_flags: libc::XDP_USE_SG,
        sxdp_ifindex: 0,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    let length = libc::socklen_t::try_from(size_of_val(&address))?;
    // SAFETY: `address` is live, and `length` bytes long.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    Ok(result != 0 && io::Error::last_os_error().raw_os_error() == Some(libc::ENODEV))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_wire_of_a_large_mtu_needs_several() {
        for mtu in [68, 1500, 3498] {
            assert_eq!(Buffers::choose("wire", mtu).unwrap(), Buffers::One);
        }
    }

    #[test]
    fn a_kernel_that_refuses_is_served_in_one() {
        // Without privileges there is no socket to ask by.
        if let Ok(has) = kernel_has_several() {
            let wanted = if has { Buffers::Several } else { Buffers::One };
            assert_eq!(Buffers::choose("wire", 9000).unwrap(), wanted);
            assert_eq!(Buffers::choose("wire", 65_520).unwrap(), wanted);
        }
    }
}

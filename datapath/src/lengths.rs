//! How long packets may be, and in how many buffers AF_XDP moves one.
#![expect(unsafe_code, reason = "a socket's address, which nix does not have")]

use std::fmt;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};
use culvert_esp::MAX_TAILROOM;

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
    /// The longest IP packets that the host port takes, in bytes: as long as can be, whatever the NIC has, as datagrams that came in
    /// fragments go up the stack whole.
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
    /// There is no AF_XDP to ask.
    pub fn for_mtu(mtu: u32) -> Result<Self> {
        let needed = mtu > Self::One.longest() && kernel_has_several()?;
        Ok(if needed { Self::Several } else { Self::One })
    }

    /// What is to be minded on a wire with this MTU, if anything.
    #[must_use]
    pub fn limit(self, wire: &str, mtu: u32) -> Option<String> {
        let longest = self.longest();
        let why = match self {
            _ if mtu <= longest => return None,
            Self::One => "as AF_XDP has before Linux 6.6",
            Self::Several => "as a frame does",
        };
        Some(format!(
            "{wire} has MTU {mtu}, but Culvert takes packets up to {longest} bytes, {why}: lower its MTU, or the Geneve \
             device's, so that they stay below"
        ))
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
            assert_eq!(Buffers::for_mtu(mtu).unwrap(), Buffers::One);
            assert_eq!(Buffers::One.limit("eth1", mtu), None);
        }
        assert_eq!(Buffers::Several.limit("eth1", 9000), None);
    }

    #[test]
    fn a_kernel_that_refuses_is_served_in_one() {
        // Without privileges there is no socket to ask by.
        if let Ok(has) = kernel_has_several() {
            let wanted = if has { Buffers::Several } else { Buffers::One };
            assert_eq!(Buffers::for_mtu(9000).unwrap(), wanted);
            assert_eq!(Buffers::for_mtu(65_520).unwrap(), wanted);
        }
    }

    #[test]
    fn what_is_lost_is_named_with_what_to_do() {
        let text = Buffers::One.limit("eth1", 9000).unwrap();
        assert!(
            text.contains("Linux 6.6") && text.contains("3498") && text.contains("lower"),
            "{text}"
        );
        let text = Buffers::Several.limit("eth1", 65_520).unwrap();
        assert!(text.contains("16000"), "{text}");
    }
}

//! TAP devices: making one, and what the kernel can do with it. By ioctl on `/dev/net/tun`.
#![expect(unsafe_code, reason = "ioctl")]

use std::fs::{File, OpenOptions};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result};
use culvert_gso::vnet::Layout;

use crate::nic::interface_request;

/// What the kernel may leave to us (linux/if_tun.h): checksums, segments of TCP and UDP.
const PLAIN: libc::c_uint = TUN_F_CSUM;
/// And of those in UDP tunnels, with a checksum or without.
const TUNNELS: libc::c_uint = TUN_F_CSUM
    | TUN_F_TSO4
    | TUN_F_TSO6
    | TUN_F_TSO_ECN
    | TUN_F_USO4
    | TUN_F_USO6
    | TUN_F_UDP_TUNNEL_GSO
    | TUN_F_UDP_TUNNEL_GSO_CSUM;

const TUN_F_CSUM: libc::c_uint = 0x01;
const TUN_F_TSO4: libc::c_uint = 0x02;
const TUN_F_TSO6: libc::c_uint = 0x04;
const TUN_F_TSO_ECN: libc::c_uint = 0x08;
const TUN_F_USO4: libc::c_uint = 0x20;
const TUN_F_USO6: libc::c_uint = 0x40;
const TUN_F_UDP_TUNNEL_GSO: libc::c_uint = 0x080;
const TUN_F_UDP_TUNNEL_GSO_CSUM: libc::c_uint = 0x100;

/// A TAP with all its queues.
#[derive(Debug)]
pub struct Tap {
    /// One for each worker. Reads do not block.
    pub queues: Vec<File>,
    /// The header before each packet.
    pub layout: Layout,
}

impl Tap {
    /// Opens `name`, or makes it, with `queues` queues. It is gone when they are closed, until [`Tap::persist`].
    ///
    /// # Errors
    /// There is no TUN driver, or `name` is another kind of interface.
    pub fn open(name: &str, queues: u32) -> Result<Self> {
        let first = open_queue(name, false)?;
        let layout = offload(&first)?;
        let mut all = vec![first];
        // Without superpackets, the kernel's own GRO is to do what it can, which a queue says when it is opened.
        let napi = layout != Layout::Tunnel;
        if napi {
            all.clear();
        }
        for _ in all.len()..queues as usize {
            all.push(open_queue(name, napi)?);
        }
        if napi {
            offload(all.first().context("a TAP without queues")?)?;
        }
        Ok(Self {
            queues: all,
            layout,
        })
    }

    /// Lets it stay when its queues are closed. Last, as a start that fails leaves nothing.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn persist(&self) -> Result<()> {
        let queue = self.queues.first().context("a TAP without queues")?;
        // SAFETY: TUNSETPERSIST has its argument in the call.
        let result =
            unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETPERSIST, 1 as libc::c_int) };
        check(result).context("TUNSETPERSIST")
    }

    /// Whether this kernel hands over superpackets of UDP tunnels (Linux 6.17); tried with a TAP that goes at once.
    ///
    /// # Errors
    /// There can be no TAP at all.
    pub fn has_superpackets() -> Result<bool> {
        // The kernel finds a name for it.
        Ok(offload(&open_queue("cvtry%d", false)?)? == Layout::Tunnel)
    }
}

fn open_queue(name: &str, napi: bool) -> Result<File> {
    let queue = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .context("/dev/net/tun, which a unit with PrivateDevices= does not have")?;
    let mut request = interface_request(name)?;
    let mut flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
    if napi {
        flags |= libc::IFF_NAPI;
    }
    request.ifr_ifru.ifru_flags = flags.to_le_bytes()[..2]
        .try_into()
        .map(i16::from_le_bytes)?;
    // SAFETY: TUNSETIFF reads and writes an ifreq, which lives until the call returns.
    let result = unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    check(result).with_context(|| format!("TAP {name}"))?;
    Ok(queue)
}

/// Asks for as much as the kernel has.
fn offload(queue: &File) -> Result<Layout> {
    let set = |layout: Layout, offloads: libc::c_uint| -> Result<()> {
        let size = libc::c_int::try_from(layout.size())?;
        // SAFETY: TUNSETVNETHDRSZ reads an int, which lives until the call returns.
        check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
        // SAFETY: TUNSETOFFLOAD has its argument in the call.
        check(unsafe { libc::ioctl(queue.as_raw_fd(), libc::TUNSETOFFLOAD, offloads) })
    };
    if set(Layout::Tunnel, TUNNELS).is_ok() {
        return Ok(Layout::Tunnel);
    }
    set(Layout::V1, PLAIN).context("offloads of the TAP")?;
    Ok(Layout::V1)
}

fn check(result: libc::c_int) -> Result<()> {
    nix::errno::Errno::result(result)?;
    Ok(())
}

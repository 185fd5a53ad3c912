//! What the kernel says of an interface. By ioctl and not from sysfs, which shows the interfaces of
//! the network namespace that it was mounted in, not of the one we run in.
#![expect(unsafe_code, reason = "ioctl")]

use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// Its name.
    pub name: String,
    /// MTU in bytes.
    pub mtu: u32,
    /// RX queues in use.
    pub queues: u32,
}

impl Nic {
    /// Asks the kernel.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn query(name: &str) -> Result<Self> {
        let mut request = interface_request(name)?;
        ioctl(libc::SIOCGIFMTU, &mut request).with_context(|| format!("interface {name}"))?;
        // SAFETY: SIOCGIFMTU has just filled in this member.
        let mtu = unsafe { request.ifr_ifru.ifru_mtu };
        Ok(Self {
            name: name.to_owned(),
            mtu: u32::try_from(mtu).context("MTU")?,
            queues: queues(name)?,
        })
    }
}

/// `struct ethtool_channels` of linux/ethtool.h.
#[repr(C)]
#[derive(Default)]
struct Channels {
    command: u32,
    max_rx: u32,
    max_tx: u32,
    max_other: u32,
    max_combined: u32,
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// `ETHTOOL_GCHANNELS` of linux/ethtool.h.
const GET_CHANNELS: u32 = 0x3c;

/// RX queues that packets may arrive on. A driver that does not tell has one.
fn queues(name: &str) -> Result<u32> {
    let mut channels = Channels {
        command: GET_CHANNELS,
        ..Channels::default()
    };
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut channels).cast();
    match ioctl(libc::SIOCETHTOOL, &mut request) {
        Ok(()) => Ok((channels.rx + channels.combined).max(1)),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(1),
        Err(error) => Err(error).with_context(|| format!("queues of interface {name}")),
    }
}

fn interface_request(name: &str) -> Result<libc::ifreq> {
    if name.is_empty() || name.len() >= libc::IFNAMSIZ {
        bail!("\"{name}\" is no interface name: 1 to 15 bytes");
    }
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn ioctl(command: libc::Ioctl, request: &mut libc::ifreq) -> std::io::Result<()> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    // SAFETY: `request` is a live ifreq; where the command follows its pointer, it was set to live memory of
    // the type that the command expects.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), command, request) };
    if result < 0 {
        return Err(std::io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_described() {
        let nic = Nic::query("lo").unwrap();
        assert!(nic.mtu >= 1500 && nic.queues == 1);
    }

    #[test]
    fn an_unknown_interface_is_named() {
        let error = Nic::query("culvert-none").unwrap_err();
        assert!(format!("{error:#}").contains("culvert-none"), "{error:#}");
        assert!(Nic::query("a-name-that-is-too-long").is_err());
    }
}

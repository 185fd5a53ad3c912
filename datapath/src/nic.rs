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

/// An offload of an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// Checksums computed by hardware.
    TxChecksum,
    /// VLAN tags inserted by hardware.
    TxVlan,
    /// Segments put together in software.
    Gro,
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct Value {
    command: u32,
    data: u32,
}

// Commands and a flag of linux/ethtool.h.
const SET_TX_CHECKSUM: u32 = 0x17;
const GET_FLAGS: u32 = 0x25;
const SET_FLAGS: u32 = 0x26;
const SET_GRO: u32 = 0x2c;
const FLAG_TX_VLAN: u32 = 1 << 7;

/// Switches an offload on or off.
///
/// # Errors
/// The kernel refuses.
pub fn set_offload(name: &str, offload: Offload, on: bool) -> Result<()> {
    let (command, data) = match offload {
        Offload::TxChecksum => (SET_TX_CHECKSUM, u32::from(on)),
        Offload::Gro => (SET_GRO, u32::from(on)),
        Offload::TxVlan => {
            let flags = value(name, GET_FLAGS, 0)?;
            let others = flags & !FLAG_TX_VLAN;
            (SET_FLAGS, if on { others | FLAG_TX_VLAN } else { others })
        }
    };
    value(name, command, data)
        .map(|_| ())
        .with_context(|| format!("{offload:?} offload of {name}"))
}

fn value(name: &str, command: u32, data: u32) -> Result<u32> {
    let mut value = Value { command, data };
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    ioctl(libc::SIOCETHTOOL, &mut request)?;
    Ok(value.data)
}

pub(crate) fn interface_request(name: &str) -> Result<libc::ifreq> {
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

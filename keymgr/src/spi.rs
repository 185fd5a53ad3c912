//! SPIs for inbound SAs: numbers that nobody on this host has, the kernel neither.

use std::net::IpAddr;

use culvert_proto::sa::Spi;
use log::debug;
use netlink_sys::{Socket, SocketAddr};

/// Where charon's kernel interfaces take them from; those that people choose by hand are far below.
const RANGE: std::ops::RangeInclusive<u32> = 0xc000_0000..=0xcfff_ffff;
/// So often an SPI is drawn that is taken before it is given up; with 100,000 SAs, one in 2,600 is taken.
const TRIES: u32 = 100;

/// An SPI for SAs to `destination` that neither `taken` nor the kernel knows; `None`: there is none to be had.
pub(crate) fn allocate(destination: IpAddr, taken: impl Fn(Spi) -> bool) -> Option<Spi> {
    (0..TRIES).find_map(|_| {
        let mut random = [0; 4];
        aws_lc_rs::rand::fill(&mut random).ok()?;
        let span = RANGE.end() - RANGE.start() + 1;
        let spi = Spi::new(RANGE.start() + u32::from_ne_bytes(random) % span).ok()?;
        (!taken(spi) && !kernel_has(destination, spi)).then_some(spi)
    })
}

/// Whether the kernel has an ESP SA of that name. A kernel without IPsec has none.
#[must_use]
pub fn kernel_has(destination: IpAddr, spi: Spi) -> bool {
    match ask_kernel(destination, spi) {
        Ok(there) => there,
        Err(error) => {
            debug!("the kernel does not say what SAs it has: {error}");
            false
        }
    }
}

/// Asks by `XFRM_MSG_GETSA` (linux/xfrm.h): it answers with the SA, or with an error.
fn ask_kernel(destination: IpAddr, spi: Spi) -> std::io::Result<bool> {
    const NETLINK_XFRM: isize = 6;
    const XFRM_MSG_NEWSA: u16 = 0x10;
    const XFRM_MSG_GETSA: u16 = 0x12;
    const NLM_F_REQUEST: u16 = 1;
    const LENGTH: u32 = 16 + 24;
    let (family, mut address) = match destination {
        IpAddr::V4(v4) => (nix::libc::AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (nix::libc::AF_INET6, v6.octets().to_vec()),
    };
    address.resize(16, 0);
    // struct nlmsghdr, then struct xfrm_usersa_id.
    let mut message = Vec::new();
    message.extend_from_slice(&LENGTH.to_ne_bytes());
    message.extend_from_slice(&XFRM_MSG_GETSA.to_ne_bytes());
    message.extend_from_slice(&NLM_F_REQUEST.to_ne_bytes());
    message.extend_from_slice(&[0; 8]);
    message.extend_from_slice(&address);
    message.extend_from_slice(&spi.get().to_be_bytes());
    message.extend_from_slice(&u16::try_from(family).unwrap_or_default().to_ne_bytes());
    message.extend_from_slice(&[50, 0]);

    let socket = Socket::new(NETLINK_XFRM)?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.send(&message, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let kind = answer.get(4..6).and_then(|kind| kind.try_into().ok());
    Ok(kind.map(u16::from_ne_bytes) == Some(XFRM_MSG_NEWSA))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    #[test]
    fn what_is_taken_is_not_given() {
        let (here, asked) = ("192.0.2.1".parse().unwrap(), Cell::new(0));
        let taken = |_| asked.replace(asked.get() + 1) < 5;
        let spi = allocate(here, taken).unwrap();
        assert!(RANGE.contains(&spi.get()) && asked.get() == 6);
        assert!(allocate(here, |_| true).is_none());
    }
}

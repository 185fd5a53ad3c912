//! Keepalives of ESP in UDP (RFC 3948 §2.3, §4): they hold open what a NAT on the way has noted of the flow.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;

use culvert_esp::checksum;
use culvert_esp::sa::address;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, bind, sendto,
    socket,
};

/// The one byte of a keepalive.
const PAYLOAD: u8 = 0xff;

/// Sends one, between addresses and ports. A raw socket, as an IKE daemon has the port; the kernel finds the
/// route and the neighbour.
pub(crate) fn send(source: SocketAddr, destination: SocketAddr) -> io::Result<()> {
    let family = match source {
        SocketAddr::V4(_) => AddressFamily::Inet,
        SocketAddr::V6(_) => AddressFamily::Inet6,
    };
    let socket = socket(
        family,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::Udp,
    )?;
    // A raw socket has no ports of its own.
    let end = |ip: IpAddr| SockaddrStorage::from(SocketAddr::new(ip, 0));
    bind(socket.as_raw_fd(), &end(source.ip()))?;
    let datagram = datagram(source, destination);
    sendto(
        socket.as_raw_fd(),
        &datagram,
        &end(destination.ip()),
        MsgFlags::empty(),
    )?;
    Ok(())
}

/// The UDP datagram. Its checksum is zero over IPv4 (RFC 3948 §2.3), and computed over IPv6.
fn datagram(source: SocketAddr, destination: SocketAddr) -> [u8; 9] {
    let mut datagram = [0; 9];
    datagram[..2].copy_from_slice(&source.port().to_be_bytes());
    datagram[2..4].copy_from_slice(&destination.port().to_be_bytes());
    datagram[4..6].copy_from_slice(&9_u16.to_be_bytes());
    datagram[8] = PAYLOAD;
    if source.is_ipv6() {
        let [from, to] = [source.ip(), destination.ip()].map(address);
        let sum = checksum::udp_v6(&from, &to, &datagram);
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    datagram
}

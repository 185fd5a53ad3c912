//! charon's own sockets, made ready for kernel IPsec: what Culvert's datapath cannot serve, the kernel does.

use std::ffi::c_int;
use std::io;

use crate::os;

const AF_INET: c_int = 2;
const AF_INET6: c_int = 10;
/// Level and option of a socket's policy (linux/in.h, linux/in6.h).
const IP_XFRM_POLICY: (c_int, c_int) = (0, 17);
const IPV6_XFRM_POLICY: (c_int, c_int) = (41, 35);
/// Level, option and value of ESP in UDP (linux/udp.h).
const UDP_ENCAP: (c_int, c_int) = (17, 100);
const UDP_ENCAP_ESPINUDP: c_int = 2;
const NETLINK_XFRM: c_int = 6;

const XFRM_POLICY_IN: u8 = 0;
const XFRM_POLICY_OUT: u8 = 1;
/// `struct xfrm_userpolicy_info`: its length, and where what is not 0 stands. Its action 0 is to let pass.
const POLICY: usize = 168;
const SELECTOR_FAMILY: usize = 40;
const DIRECTION: usize = 160;

const EINVAL: i32 = 22;
const ENOPROTOOPT: i32 = 92;
const EOPNOTSUPP: i32 = 95;

/// IKE is in clear, whatever policies there are.
pub(crate) fn bypass(socket: c_int, family: c_int) -> Result<(), String> {
    let option = match family {
        AF_INET => IP_XFRM_POLICY,
        AF_INET6 => IPV6_XFRM_POLICY,
        other => return Err(format!("a socket of the address family {other}")),
    };
    let set = || {
        [XFRM_POLICY_OUT, XFRM_POLICY_IN]
            .into_iter()
            .try_for_each(|direction| {
                os::set_option(socket, option.0, option.1, &allow(family, direction))
            })
    };
    let result = match set() {
        // Nobody has asked for XFRM yet, and it is a module.
        Err(error) if error.raw_os_error() == Some(EINVAL) => {
            os::load_netlink(NETLINK_XFRM);
            set()
        }
        result => result,
    };
    unless_missing(result).map_err(|error| format!("IKE may be caught by policies: {error}"))
}

/// The kernel opens the ESP that comes in UDP.
pub(crate) fn take_esp_in_udp(socket: c_int) -> Result<(), String> {
    let (level, option) = UDP_ENCAP;
    let result = os::set_option(socket, level, option, &UDP_ENCAP_ESPINUDP.to_ne_bytes());
    unless_missing(result).map_err(|error| format!("the kernel takes no ESP in UDP: {error}"))
}

/// Without XFRM there are no policies that could catch anything, and nobody who could open ESP.
fn unless_missing(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if matches!(error.raw_os_error(), Some(ENOPROTOOPT | EOPNOTSUPP)) => Ok(()),
        result => result,
    }
}

/// `struct xfrm_userpolicy_info` that lets all of one direction pass.
fn allow(family: c_int, direction: u8) -> [u8; POLICY] {
    let mut policy = [0; POLICY];
    let family = u16::try_from(family).unwrap_or_default().to_ne_bytes();
    policy[SELECTOR_FAMILY..][..2].copy_from_slice(&family);
    policy[DIRECTION] = direction;
    policy
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::UdpSocket;
    use std::os::fd::AsRawFd;

    #[test]
    fn sockets_are_made_ready_or_it_is_said_why() {
        for (address, family) in [("127.0.0.1:0", AF_INET), ("[::1]:0", AF_INET6)] {
            let Ok(socket) = UdpSocket::bind(address) else {
                continue;
            };
            // Not without privileges, or the kernel has no XFRM.
            if let Err(text) = bypass(socket.as_raw_fd(), family) {
                assert!(text.contains("not permitted"), "{text}");
            }
            take_esp_in_udp(socket.as_raw_fd()).unwrap();
        }
        let text = bypass(-1, AF_INET).unwrap_err();
        assert!(text.contains("Bad file descriptor"), "{text}");
        assert!(bypass(-1, 1).is_err());
        assert!(take_esp_in_udp(-1).is_err());
    }
}

//! The lab of `handover.rs`: two namespaces on one wire, with the kernel's IPsec on both sides.

use std::net::UdpSocket;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_keymgr::kernel::{Kernel, KernelPolicy, KernelSa, Progress, Sas};
use culvert_proto::policy::{self, Geneve, PolicySpec, Selector};
use culvert_proto::sa::Direction;
use culvert_tests::netns::{Home, Namespace};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, bind, recv, send, setsockopt,
    socket, sockopt,
};

pub(crate) const A: &str = "192.0.2.1";
pub(crate) const B: &str = "192.0.2.2";
const PORT: u16 = 6081;
pub(crate) const REQID: u32 = 7;

/// Two namespaces on one wire, and a way to the kernel in each.
pub(crate) struct Pair {
    pub(crate) namespaces: [Namespace; 2],
    pub(crate) kernels: [Kernel; 2],
    _home: Home,
}

impl Pair {
    pub(crate) fn new() -> Result<Self> {
        let home = Home::new(false)?;
        let namespaces = [
            Namespace::new(home.name("-a"))?,
            Namespace::new(home.name("-b"))?,
        ];
        let [a, b] = &namespaces;
        a.ip(&format!(
            "link add eth type veth peer name eth netns {}",
            b.name()
        ))?;
        for (namespace, address) in [(a, A), (b, B)] {
            namespace.ip(&format!("address add {address}/24 dev eth"))?;
            namespace.ip("link set eth up")?;
        }
        let open = |namespace: &Namespace| namespace.within(|| Ok(Kernel::open()?));
        Ok(Self {
            kernels: [open(a)?, open(b)?],
            namespaces,
            _home: home,
        })
    }

    /// The same SA on both sides, from a to b, going on at these numbers.
    pub(crate) fn install(
        &mut self,
        sa: &KernelSa,
        out: &Progress,
        inbound: &Progress,
    ) -> Result<()> {
        self.kernels[0].add_sa(sa, out)?;
        self.kernels[1].add_sa(&inbound_of(sa), inbound)?;
        Ok(())
    }

    /// What a sends under it, and b takes under it only.
    pub(crate) fn protect(&mut self, sa: &KernelSa) -> Result<()> {
        let of = |local: &str, remote: &str, geneve, outbound, inbound| {
            let spec = PolicySpec {
                selector: Selector {
                    geneve,
                    ..Selector::hosts(local.parse()?, remote.parse()?)
                },
                order: 1,
                action: policy::Action::Protect { outbound, inbound },
            };
            let sas = Sas {
                reqid: REQID,
                trap: false,
            };
            Ok::<_, anyhow::Error>(KernelPolicy::of(&spec, Some(&sas)))
        };
        let here = of(A, B, Geneve::Remote, Some(sa.id), Vec::new())?;
        let there = of(B, A, Geneve::Local, None, vec![inbound_of(sa).id])?;
        for (kernel, policies) in self.kernels.iter_mut().zip([here, there]) {
            for policy in policies {
                kernel.set_policy(&policy)?;
            }
        }
        Ok(())
    }

    /// A socket that sends from a to b's Geneve port, and one that receives there.
    pub(crate) fn sockets(&self) -> Result<[UdpSocket; 2]> {
        let from = self.namespaces[0].within(|| {
            let socket = UdpSocket::bind((A, 0))?;
            socket.connect((B, PORT))?;
            Ok(socket)
        })?;
        let to = self.namespaces[1].within(|| {
            let socket = UdpSocket::bind((B, PORT))?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            Ok(socket)
        })?;
        Ok([from, to])
    }

    /// What `XfrmIn…` or `XfrmOut…` has counted in a namespace.
    pub(crate) fn errors(&self, side: usize, name: &str) -> Result<u64> {
        let text = self.namespaces[side]
            .within(|| Ok(std::fs::read_to_string("/proc/thread-self/net/xfrm_stat")?))?;
        let mut words = text.split_whitespace();
        words.find(|word| *word == name);
        words
            .next()
            .context("no such counter")?
            .parse()
            .context(text.clone())
    }
}

/// Frames on a namespace's end of the wire.
pub(crate) struct Wire(OwnedFd);

impl Wire {
    pub(crate) fn open(namespace: &Namespace) -> Result<Self> {
        namespace.within(|| {
            let socket = socket(
                AddressFamily::Packet,
                SockType::Raw,
                SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
                SockProtocol::EthAll,
            )?;
            setsockopt(&socket, sockopt::RcvBufForce, &(64 << 20))?;
            Ok(Self(socket))
        })
    }

    /// The frames with ESP that have come.
    pub(crate) fn esp(&self) -> Result<Vec<Vec<u8>>> {
        let mut frames = Vec::new();
        let mut frame = [0; 2048];
        loop {
            match recv(self.0.as_raw_fd(), &mut frame, MsgFlags::empty()) {
                // IPv4 without options, protocol 50.
                Ok(length) if frame[12..14] == [8, 0] && frame[23] == 50 => {
                    frames.push(frame[..length].to_vec());
                }
                Ok(_) => {}
                Err(nix::errno::Errno::EAGAIN) => return Ok(frames),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Low half of a frame's sequence number.
pub(crate) fn number(frame: &[u8]) -> u32 {
    u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]])
}

/// Sends frames into the wire at a.
pub(crate) fn replay(namespace: &Namespace, frames: &[&Vec<u8>]) -> Result<()> {
    namespace.within(|| {
        let socket = socket(
            AddressFamily::Packet,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC,
            SockProtocol::EthAll,
        )?;
        let address = nix::ifaddrs::getifaddrs()?
            .filter(|interface| interface.interface_name == "eth")
            .find_map(|interface| interface.address?.as_link_addr().copied())
            .context("eth has no address")?;
        bind(socket.as_raw_fd(), &address)?;
        for frame in frames {
            send(socket.as_raw_fd(), frame, MsgFlags::empty())?;
        }
        Ok(())
    })
}

/// How many packets come before none comes any more.
pub(crate) fn received(socket: &UdpSocket) -> usize {
    let mut buffer = [0; 2048];
    std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count()
}

/// The same, as b has it.
pub(crate) fn inbound_of(sa: &KernelSa) -> KernelSa {
    let mut sa = sa.clone();
    sa.id.direction = Direction::In;
    sa
}

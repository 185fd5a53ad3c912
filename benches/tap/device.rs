//! A TAP in a network namespace of its own, and who sends superpackets into it.

use std::fs::File;
use std::io::{IoSlice, Write};
use std::mem::size_of_val;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;

use culvert_datapath::tap::Tap;
use culvert_gso::vnet::{Checksum, Gso, Header, Kind, LONGEST, Layout};
use nix::net::if_::if_nametoindex;
use nix::sched::{CloneFlags, unshare};

/// Bytes of each segment's payload.
pub(crate) const SEGMENT: usize = 1400;
/// Segments of a superpacket: as many as fit 64 KiB.
pub(crate) const SEGMENTS: usize = 46;
/// Bytes of a superpacket, with Ethernet's header.
pub(crate) const LENGTH: usize = HEADERS + SEGMENTS * SEGMENT;
const NAME: &str = "bench0";
/// Ethernet, IPv4, TCP.
const HEADERS: usize = 14 + 20 + 20;
/// The fields of a vnet header that every layout has.
const PLAIN: usize = 10;

/// The TAP. It goes with the namespace, which goes with the process.
pub(crate) struct Device {
    /// Its queue.
    pub(crate) queue: File,
    /// A packet socket.
    sender: File,
    header: [u8; LONGEST],
    layout: Layout,
    /// Ethernet's, IP's and TCP's headers, then a superpacket's payload.
    packet: Vec<u8>,
}

impl Device {
    /// Makes it, and takes this thread to its namespace.
    pub(crate) fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace");
        let tap = Tap::open(NAME, 1).expect("a TAP");
        for words in [
            "link set dev bench0 addrgenmode none",
            "link set dev bench0 up",
        ] {
            let status = Command::new("ip").args(words.split(' ')).status();
            assert!(status.expect("ip").success(), "ip {words}");
        }
        let vnet = Header {
            checksum: Some(Checksum {
                start: 34,
                offset: 16,
            }),
            valid: false,
            headers: HEADERS as u16,
            gso: Some(Gso {
                kind: Kind::TcpV4,
                size: SEGMENT as u16,
                ecn: false,
                tunnel: None,
            }),
        };
        let mut header = [0; LONGEST];
        vnet.write(&mut header, tap.layout).expect("a header");
        Self {
            queue: tap.queues.into_iter().next().expect("a queue"),
            sender: packet_socket(),
            header,
            layout: tap.layout,
            packet: packet(),
        }
    }

    /// Has the kernel queue a superpacket for whoever reads the TAP.
    pub(crate) fn send(&mut self) {
        let parts = [
            IoSlice::new(&self.header[..PLAIN]),
            IoSlice::new(&self.packet),
        ];
        let sent = self.sender.write_vectored(&parts).expect("to send");
        assert_eq!(sent, PLAIN + LENGTH);
    }

    /// A superpacket as a worker writes it, joined of frames: the header, the first one, and the payload of the others.
    pub(crate) fn joined(&self) -> Vec<Vec<u8>> {
        let first = HEADERS + SEGMENT;
        let mut parts = vec![
            self.header[..self.layout.size()].to_vec(),
            self.packet[..first].to_vec(),
        ];
        // Each in a page of its own, as frames are.
        parts.extend(self.packet[first..].chunks(SEGMENT).map(|payload| {
            let mut page = Vec::with_capacity(4096);
            page.extend(payload);
            page
        }));
        parts
    }

    /// What one read gives.
    pub(crate) fn length(&self) -> usize {
        self.layout.size() + LENGTH
    }
}

/// TCP over IPv4, to a MAC address that is not the TAP's: whoever takes it in, looks no further.
fn packet() -> Vec<u8> {
    let mut packet = vec![2, 9, 9, 9, 9, 9, 2, 8, 8, 8, 8, 8, 8, 0];
    packet.extend([0x45, 0]);
    packet.extend(((LENGTH - 14) as u16).to_be_bytes());
    packet.extend([0, 1, 0x40, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet.extend([
        0xc0, 2, 0x14, 0x51, 0, 0, 1, 0, 0, 0, 2, 0, 0x50, 0x10, 1, 0,
    ]);
    packet.extend([0; 4]);
    assert_eq!(packet.len(), HEADERS);
    packet.extend((HEADERS..LENGTH).map(|at| at as u8));
    packet
}

/// A packet socket whose packets have a vnet header before them, and go to the TAP past any queueing.
fn packet_socket() -> File {
    let protocol = i32::from((libc::ETH_P_IP as u16).to_be());
    // SAFETY: has its arguments in the call.
    let socket = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    assert!(socket >= 0, "a packet socket");
    // SAFETY: it was just opened, and is nobody else's.
    let socket = unsafe { OwnedFd::from_raw_fd(socket) };
    for option in [libc::PACKET_VNET_HDR, libc::PACKET_QDISC_BYPASS] {
        let on: libc::c_int = 1;
        // SAFETY: the option is an int, which lives until the call returns.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_PACKET,
                option,
                (&raw const on).cast(),
                size_of_val(&on) as u32,
            )
        };
        assert_eq!(result, 0, "option {option}");
    }
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: protocol as u16,
        sll_ifindex: if_nametoindex(NAME).expect("the TAP") as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address lives until the call returns, and is as long as is said.
    let result = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of_val(&address) as u32,
        )
    };
    assert_eq!(result, 0, "bind");
    File::from(socket)
}

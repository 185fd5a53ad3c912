//! Two TAPs, with the kernel between them.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use culvert_gso::vnet::{Header, Layout};
use nix::sched::{CloneFlags, unshare};

mod ioctl {
    // The numbers of linux/if_tun.h; nix's macros would take the sizes from the types of the arguments.
    nix::ioctl_write_ptr_bad!(set_interface, 0x4004_54ca, [u8; 40]);
    nix::ioctl_write_ptr_bad!(set_header_size, 0x4004_54d8, i32);
    nix::ioctl_write_int_bad!(set_offloads, 0x4004_54d0);
}

/// `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR`.
const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;
/// `IFF_NAPI`: what is written goes through the kernel's GRO.
const NAPI: u16 = 0x0010;
/// `TUN_F_CSUM`, `_TSO4`, `_TSO6`, `_TSO_ECN`, `_USO4`, `_USO6`, `_UDP_TUNNEL_GSO`, `_UDP_TUNNEL_GSO_CSUM`.
pub(crate) const EVERYTHING: i32 = 0x1ef;

/// A TAP, which can be read without waiting.
pub(crate) struct Tap {
    pub(crate) file: File,
    layout: Layout,
}

impl Tap {
    fn new(name: &str, layout: Layout, offloads: i32, flags: u16) -> std::io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let mut request = [0; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&(FLAGS | flags).to_ne_bytes());
        let size = i32::try_from(layout.size()).unwrap();
        // SAFETY: the file is TUN's, and the request is as long as a `struct ifreq`.
        unsafe { ioctl::set_interface(file.as_raw_fd(), &raw const request) }?;
        // SAFETY: the file is TUN's, and takes an int.
        unsafe { ioctl::set_header_size(file.as_raw_fd(), &raw const size) }?;
        // SAFETY: the file is TUN's, and takes a number.
        unsafe { ioctl::set_offloads(file.as_raw_fd(), offloads) }?;
        Ok(Self { file, layout })
    }

    pub(crate) fn write(&mut self, header: &Header, frame: &[u8]) -> std::io::Result<()> {
        let mut bytes = vec![0; self.layout.size()];
        header.write(&mut bytes, self.layout).unwrap();
        bytes.extend(frame);
        self.file.write_all(&bytes)
    }

    /// All that is there.
    pub(crate) fn read(&mut self) -> Vec<(Header, Vec<u8>)> {
        let mut frames = Vec::new();
        let mut buffer = vec![0; 70_000];
        loop {
            match self.file.read(&mut buffer) {
                Ok(length) => {
                    let header = Header::parse(&buffer[..length], self.layout).unwrap();
                    frames.push((header, buffer[self.layout.size()..length].to_vec()));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return frames,
                // A packet that the kernel finds no header for: it is lost, and the next read has the next.
                Err(error) if error.kind() == ErrorKind::InvalidInput => {}
                Err(error) => panic!("{error}"),
            }
        }
    }

    /// All that is there, of which the kernel has left nothing to do.
    pub(crate) fn complete(&mut self) -> Vec<Vec<u8>> {
        let all = self.read();
        assert!(
            all.iter()
                .all(|(header, _)| header.gso.is_none() && header.checksum.is_none())
        );
        all.into_iter().map(|(_, frame)| frame).collect()
    }
}

fn run(command: &str) {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap())
        .args(words)
        .output()
        .unwrap_or_else(|error| panic!("{command}: {error}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {text}");
}

/// How the two TAPs are.
pub(crate) struct Setup {
    /// What the one that is read from takes.
    pub(crate) offloads: i32,
    /// What is written goes through the kernel's GRO, which keeps it for this long, in nanoseconds.
    pub(crate) gro: Option<u32>,
}

/// The kernel cuts everything.
pub(crate) const CUTS: Setup = Setup {
    offloads: 0,
    gro: None,
};

/// Runs `test` with two TAPs on a bridge: what is written to the first can be read from the second. Says why if it cannot.
pub(crate) fn with_taps(setup: &Setup, test: impl FnOnce(&mut Tap, &mut Tap) + Send) {
    let work = || {
        if !nix::unistd::geteuid().is_root() {
            return println!("skipped: needs root");
        }
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        run("ip link add bridge type bridge mcast_snooping 0");
        // Not what it thinks of IP headers, where the kernel has br_netfilter.
        for family in ["iptables", "ip6tables"] {
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), "0");
        }
        let napi = if setup.gro.is_some() { NAPI } else { 0 };
        let taps = Tap::new("in", Layout::Tunnel, EVERYTHING, napi)
            .and_then(|from| Ok((from, Tap::new("out", Layout::Tunnel, setup.offloads, 0)?)));
        let (mut from, mut to) = match taps {
            Ok(taps) => taps,
            Err(error) => return println!("skipped: this kernel's TUN has no tunnels: {error}"),
        };
        for link in ["bridge", "in", "out"] {
            if link != "bridge" {
                run(&format!(
                    "ip link set {link} mtu 65521 txqueuelen 10000 master bridge"
                ));
            }
            run(&format!("ip link set {link} up"));
        }
        if let Some(nanoseconds) = setup.gro {
            // The one of this namespace, for this thread.
            run("mount --make-rprivate /");
            run("mount -t sysfs sysfs /sys");
            std::fs::write(
                "/sys/class/net/in/gro_flush_timeout",
                nanoseconds.to_string(),
            )
            .unwrap();
        }
        std::thread::sleep(std::time::Duration::from_millis(100));
        to.read();
        test(&mut from, &mut to);
    };
    // Namespaces are a thread's.
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(work).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

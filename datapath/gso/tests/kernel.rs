//! The kernel as the judge. A superpacket is written to a TAP; a bridge brings it to another, which takes no offloads, so
//! that the kernel's own software GSO cuts it. What comes out must be what this crate makes of it.
//!
//! Needs root, for a network namespace of its own, and a kernel whose TUN knows UDP tunnels (6.17). 100,000 cases with
//! `CULVERT_EVERY_CASE`, fewer without.

#![expect(
    unsafe_code,
    clippy::unwrap_used,
    clippy::panic,
    reason = "TUN's ioctls; a test fails by panicking"
)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

use culvert_gso::coalesce::{Checksums, Settings};
use culvert_gso::vnet::{Header, Layout};
use culvert_gso::{Coalescer, Superpacket};
use nix::sched::{CloneFlags, unshare};

use common::{Dice, Shape, cut, written};

const ANY_LENGTH: usize = 65535;

mod ioctl {
    // The numbers of linux/if_tun.h; nix's macros would take the sizes from the types of the arguments.
    nix::ioctl_write_ptr_bad!(set_interface, 0x4004_54ca, [u8; 40]);
    nix::ioctl_write_ptr_bad!(set_header_size, 0x4004_54d8, i32);
    nix::ioctl_write_int_bad!(set_offloads, 0x4004_54d0);
}

/// `IFF_TAP`, `IFF_NO_PI`, `IFF_VNET_HDR`.
const FLAGS: u16 = 0x0002 | 0x1000 | 0x4000;
/// `TUN_F_CSUM`, `_TSO4`, `_TSO6`, `_TSO_ECN`, `_USO4`, `_USO6`, `_UDP_TUNNEL_GSO`, `_UDP_TUNNEL_GSO_CSUM`.
const EVERYTHING: i32 = 0x1ef;

/// A TAP, which can be read without waiting.
struct Tap {
    file: File,
    layout: Layout,
}

impl Tap {
    fn new(name: &str, layout: Layout, offloads: i32) -> std::io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        let mut request = [0; 40];
        request[..name.len()].copy_from_slice(name.as_bytes());
        request[16..18].copy_from_slice(&FLAGS.to_ne_bytes());
        let size = i32::try_from(layout.size()).unwrap();
        // SAFETY: the file is TUN's, and the request is as long as a `struct ifreq`.
        unsafe { ioctl::set_interface(file.as_raw_fd(), &raw const request) }?;
        // SAFETY: the file is TUN's, and takes an int.
        unsafe { ioctl::set_header_size(file.as_raw_fd(), &raw const size) }?;
        // SAFETY: the file is TUN's, and takes a number.
        unsafe { ioctl::set_offloads(file.as_raw_fd(), offloads) }?;
        Ok(Self { file, layout })
    }

    fn write(&mut self, header: &Header, frame: &[u8]) -> std::io::Result<()> {
        let mut bytes = vec![0; self.layout.size()];
        header.write(&mut bytes, self.layout).unwrap();
        bytes.extend(frame);
        self.file.write_all(&bytes)
    }

    /// All that is there.
    fn read(&mut self) -> Vec<(Header, Vec<u8>)> {
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
    fn complete(&mut self) -> Vec<Vec<u8>> {
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

/// Runs `test` with two TAPs on a bridge: what is written to the first can be read from the second, which takes
/// `offloads`. Says why if it cannot.
fn with_taps(offloads: i32, test: impl FnOnce(&mut Tap, &mut Tap) + Send) {
    let work = || {
        if !nix::unistd::geteuid().is_root() {
            return println!("skipped: needs root");
        }
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
        run("ip link add bridge type bridge mcast_snooping 0");
        // Not what it thinks of IP headers, where the kernel has br_netfilter.
        for family in ["iptables", "ip6tables"] {
            let _ = std::fs::write(format!("/proc/sys/net/bridge/bridge-nf-call-{family}"), "0");
        }
        let taps = Tap::new("in", Layout::Tunnel, EVERYTHING)
            .and_then(|from| Ok((from, Tap::new("out", Layout::Tunnel, offloads)?)));
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
        std::thread::sleep(std::time::Duration::from_millis(100));
        to.read();
        test(&mut from, &mut to);
    };
    // A namespace is a thread's.
    std::thread::scope(|scope| {
        if let Err(panic) = scope.spawn(work).join() {
            std::panic::resume_unwind(panic);
        }
    });
}

fn cases() -> u64 {
    match std::env::var_os("CULVERT_EVERY_CASE") {
        Some(_) => 100_000,
        None => 3000,
    }
}

fn same(ours: &[Vec<u8>], kernels: &[Vec<u8>], about: &dyn std::fmt::Debug) {
    for (index, (ours, kernels)) in ours.iter().zip(kernels).enumerate() {
        let at = ours.iter().zip(kernels).position(|(a, b)| a != b);
        assert!(
            ours == kernels,
            "segment {index}: byte {at:?} of {} (ours) and {} (the kernel's): {about:?}",
            ours.len(),
            kernels.len()
        );
    }
    assert_eq!(ours.len(), kernels.len(), "{about:?}");
}

/// What is in a failure's report.
fn about(seed: u64, shape: &Shape) -> String {
    let mut shape = shape.clone();
    let payload = std::mem::take(&mut shape.payload);
    format!(
        "case {seed}, {} bytes of payload in {shape:?}",
        payload.len()
    )
}

#[test]
fn segments_are_those_of_the_kernel() {
    with_taps(0, |from, to| {
        let mut packets = 0;
        for seed in 0..cases() {
            let mut dice = Dice(seed);
            let tunnel = !dice.one_in(4);
            let shape = Shape::random(&mut dice, tunnel);
            let (header, bytes) = shape.superpacket();
            let about = about(seed, &shape);
            from.write(&header, &bytes)
                .unwrap_or_else(|error| panic!("{error}: {about}"));
            let kernels = to.complete();
            packets += kernels.len();
            same(&cut(&header, &bytes, ANY_LENGTH), &kernels, &about);
        }
        println!("{} superpackets, {packets} segments", cases());
    });
}

/// One bit of the superpacket or its header is another. This crate may refuse what the kernel takes, and be content with
/// what the kernel drops; but what both cut, they cut alike.
#[test]
fn damaged_superpackets_are_not_cut_otherwise() {
    with_taps(0, |from, to| {
        let (mut both, mut ours_only, mut kernels_only) = (0, 0, 0);
        for seed in 0..cases() {
            let mut dice = Dice(seed ^ 0x7777_0000);
            let tunnel = !dice.one_in(4);
            let shape = Shape::random(&mut dice, tunnel);
            let (header, frame) = shape.superpacket();
            let mut bytes = vec![0; Layout::Tunnel.size()];
            header.write(&mut bytes, Layout::Tunnel).unwrap();
            bytes.extend(frame);
            let at = dice.below(Layout::Tunnel.size() + shape.headers());
            bytes[at] ^= 1 << dice.below(8);
            let frame = &bytes[Layout::Tunnel.size()..];
            let ours = Header::parse(&bytes, Layout::Tunnel)
                .ok()
                .and_then(|header| {
                    Superpacket::new(&header, frame).ok()?;
                    Some(cut(&header, frame, ANY_LENGTH))
                });
            let taken = from.file.write_all(&bytes).is_ok();
            let kernels = to.complete();
            match ours {
                Some(ours) if taken && !kernels.is_empty() => {
                    both += 1;
                    same(&ours, &kernels, &about(seed, &shape));
                }
                Some(_) => ours_only += 1,
                None if !kernels.is_empty() => kernels_only += 1,
                None => {}
            }
        }
        println!(
            "{both} by both, {ours_only} by this crate only, {kernels_only} by the kernel only"
        );
        assert!(ours_only * 100 < both, "{ours_only} of {both}");
        assert!(kernels_only * 10 < both, "{kernels_only} of {both}");
    });
}

#[test]
fn what_was_joined_is_cut_by_the_kernel_into_what_it_was() {
    with_taps(0, |from, to| {
        let settings = Settings {
            tcp: true,
            udp: true,
            tunnel_checksum: true,
            checksums: Checksums::Trusted,
        };
        let mut coalescer = Coalescer::new(settings, 64);
        let (mut groups, mut packets) = (0, 0);
        for seed in 0..cases() {
            let shape = Shape::random(&mut Dice(seed ^ 0x5555_0000), true);
            let frames = shape.segments();
            coalescer.coalesce(&frames);
            let about = about(seed, &shape);
            for group in coalescer.groups() {
                let (header, bytes) = written(&coalescer, group, &frames);
                from.write(&header, &bytes)
                    .unwrap_or_else(|error| panic!("{error}: {header:?}, {about}"));
            }
            groups += coalescer.groups().len();
            packets += frames.len();
            same(&frames, &to.complete(), &about);
        }
        println!("{packets} packets in {groups} groups");
    });
}

/// What the kernel writes before a superpacket is understood, and is what this crate would write, but for VLAN tags: the
/// kernel counts the first for one of three offsets, and with a second the tunnel is IPv4, whatever it is.
#[test]
fn headers_are_those_of_the_kernel() {
    with_taps(EVERYTHING, |from, to| {
        for seed in 0..500 {
            let shape = Shape::random(&mut Dice(seed), seed % 4 != 0);
            let (header, bytes) = shape.superpacket();
            from.write(&header, &bytes).unwrap();
            let all = to.read();
            let [(kernels, frame)] = &all[..] else {
                panic!("{} frames: {}", all.len(), about(seed, &shape));
            };
            assert_eq!(frame, &bytes);
            let (mut kernels, mut ours) = (*kernels, header);
            // A hint.
            (kernels.headers, ours.headers) = (0, 0);
            if shape.ethernet.len() > 12
                && let Some(tunnel) = ours.gso.as_mut().unwrap().tunnel.as_mut()
            {
                tunnel.outer_transport -= 4;
                tunnel.inner_network -= 4;
                tunnel.v6 &= shape.ethernet.len() == 16;
            }
            assert_eq!(kernels, ours, "{}", about(seed, &shape));
            assert_eq!(
                cut(&kernels, frame, ANY_LENGTH),
                cut(&header, &bytes, ANY_LENGTH)
            );
        }
    });
}

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

#[path = "../common/mod.rs"]
mod common;
mod gro;
mod taps;

use std::io::Write;

use culvert_gso::coalesce::{Checksums, Settings};
use culvert_gso::vnet::{Header, Layout};
use culvert_gso::{Coalescer, Superpacket};

use common::{Dice, Shape, cut, written};
use taps::{CUTS, EVERYTHING, Setup, with_taps};

const ANY_LENGTH: usize = 65535;

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
    with_taps(&CUTS, |from, to| {
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
    with_taps(&CUTS, |from, to| {
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
    with_taps(&CUTS, |from, to| {
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
    let all = Setup {
        offloads: EVERYTHING,
        gro: None,
    };
    with_taps(&all, |from, to| {
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

//! The kernel's GRO as the judge of what is joined. It joins the inner packets of a tunnel by the same rules as those
//! without a tunnel, and for the latter it needs no Geneve device. So each packet is made twice, with and without tunnel:
//! the kernel gets the one, this crate the other, and both must make the same groups, whose inner packets are the same.

use std::process::Command;
use std::time::Duration;

use culvert_gso::Coalescer;
use culvert_gso::coalesce::{Checksums, Settings};
use culvert_gso::vnet::Header;

use crate::cases;
use crate::common::{Dice, Outer, Shape, written};
use crate::taps::{EVERYTHING, Setup, with_taps};

/// How long GRO keeps packets, in nanoseconds: far longer than a batch takes.
const KEPT: u32 = 1_500_000;

/// How often a batch is tried: GRO lets go of packets when the clock ticks, which may be within a batch.
const TRIES: usize = 20;

/// Packets of one flow, and what may happen between them. Not among it are other IPv6 flow labels, as the kernel lets
/// packets pass each other then; and what this crate does not join, as no header can say it: IPv4 identifications that stay
/// the same, and TCP segments that are shorter than those of any superpacket.
fn flow(dice: &mut Dice) -> Vec<Shape> {
    let mut shape = loop {
        let shape = Shape::random(dice, false);
        if shape.ethernet.len() == 12 && shape.ip.options.is_empty() {
            break shape;
        }
    };
    shape.size = 60_000;
    let mut size = dice.within(8..=200);
    if let Some(tcp) = &mut shape.tcp {
        tcp.flags = if dice.one_in(4) { 0x50 } else { 0x10 };
        tcp.urgent = 0;
    }
    let mut shapes = Vec::new();
    for _ in 0..dice.within(2..=16) {
        let mut one = shape.clone();
        let mut length = match dice.below(12) {
            0 => dice.within(8..=size),
            1 => dice.within(size..=size + 40),
            _ => size,
        };
        if dice.one_in(30) {
            size = dice.within(8..=200);
        }
        let ip = &mut shape.ip;
        match dice.below(40) {
            0 => ip.tos ^= 1,
            1 => ip.ttl ^= 1,
            2 => ip.df ^= true,
            3 => ip.id = ip.id.wrapping_add(5),
            _ => {}
        }
        ip.id = ip.id.wrapping_add(1);
        if let (Some(next), Some(tcp)) = (&mut shape.tcp, &mut one.tcp) {
            match dice.below(40) {
                0 => next.acknowledgement ^= 1,
                1 => next.window ^= 1,
                2 => next.flags ^= 0x40,
                3 => next.sequence = next.sequence.wrapping_add(1),
                4 => next.sequence = next.sequence.wrapping_sub(1),
                5 => {
                    if let Some(last) = next.options.last_mut() {
                        // Options that are NOPs become others of the same length.
                        *last ^= 1;
                    }
                }
                6 => tcp.flags |= 0x08,
                7 => tcp.flags |= 0x01,
                8 => tcp.flags |= 0x80,
                9 => tcp.flags |= 0x20,
                10 => tcp.flags |= 0x02,
                11 => tcp.flags |= 0x04,
                12 => length = 0,
                _ => {}
            }
            let length = u32::try_from(length).unwrap();
            next.sequence = next.sequence.wrapping_add(length);
        }
        one.payload = dice.bytes(length);
        shapes.push(one);
    }
    shapes
}

/// The packet, and the same in a tunnel.
fn both(shapes: &[Shape]) -> (Vec<Vec<u8>>, Vec<Vec<u8>>) {
    let outer = Outer {
        ip: crate::common::Ip {
            v6: false,
            tos: 0,
            id: 0,
            df: true,
            ttl: 64,
            flow_label: 0,
            addresses: vec![10, 0, 0, 1, 10, 0, 0, 2],
            options: Vec::new(),
        },
        port: 0xc001,
        checksum: false,
        geneve: vec![0, 0x65, 0x58, 0, 0, 7, 0],
        options: vec![1, 2, 3, 0],
        ethernet: Vec::new(),
    };
    let in_tunnel = |shape: &Shape| {
        let mut shape = shape.clone();
        let ethernet = std::mem::replace(&mut shape.ethernet, vec![2; 12]);
        shape.outer = Some(Outer {
            ethernet,
            ..outer.clone()
        });
        shape.whole()
    };
    (
        shapes.iter().map(Shape::whole).collect(),
        shapes.iter().map(in_tunnel).collect(),
    )
}

/// The segment size, if something was joined, and the packet.
type Joined = (Option<u16>, Vec<u8>);

fn comparable(header: &Header, packet: &[u8]) -> Joined {
    (header.gso.map(|gso| gso.size), packet.to_vec())
}

/// What distinguishes packets of a flow.
fn brief_shape(shape: &Shape) -> String {
    let ip = &shape.ip;
    let tcp = shape.tcp.as_ref().map(|tcp| {
        let flags = format!("{:#04x}", tcp.flags);
        (tcp.sequence, flags, tcp.acknowledgement, tcp.window)
    });
    let fixed = (ip.v6, ip.tos, ip.ttl, ip.df, ip.id);
    format!("\n{} bytes, {fixed:?}, {tcp:?}", shape.payload.len())
}

#[test]
fn what_is_joined_is_what_the_kernel_joins() {
    let setup = Setup {
        offloads: EVERYTHING,
        gro: Some(KEPT),
    };
    with_taps(&setup, |from, to| {
        let ethtool = Command::new("ethtool")
            .args(["-K", "in", "rx-udp-gro-forwarding", "on"])
            .status();
        let settings = Settings {
            tcp: true,
            // Which the kernel does only where it was asked for.
            udp: ethtool.is_ok_and(|status| status.success()),
            tunnel_checksum: true,
            checksums: Checksums::Verified,
        };
        let mut coalescer = Coalescer::new(settings, 64);
        let (mut packets, mut groups, mut again) = (0, 0, 0);
        let cases = cases() / 10;
        for seed in 0..cases {
            let shapes = flow(&mut Dice(seed ^ 0x6666_0000));
            let (plain, tunnelled) = both(&shapes);
            let outer = tunnelled[0].len() - plain[0].len();
            coalescer.coalesce(&tunnelled);
            let ours: Vec<Joined> = coalescer
                .groups()
                .iter()
                .map(|group| {
                    let (header, bytes) = written(&coalescer, group, &tunnelled);
                    comparable(&header, &bytes[outer..])
                })
                .collect();
            let mut kernels = Vec::new();
            for attempt in 0.. {
                for frame in &plain {
                    from.write(&Header::default(), frame).unwrap();
                }
                std::thread::sleep(Duration::from_nanos((KEPT + 500_000).into()));
                kernels = to
                    .read()
                    .iter()
                    .map(|(header, bytes)| comparable(header, bytes))
                    .collect();
                if kernels == ours || attempt == TRIES {
                    break;
                }
                again += 1;
            }
            let brief = |joined: &[Joined]| -> Vec<(Option<u16>, usize)> {
                joined
                    .iter()
                    .map(|(size, packet)| (*size, packet.len()))
                    .collect()
            };
            assert!(
                kernels == ours,
                "case {seed}: ours {:?}, the kernel's {:?}, of {}",
                brief(&ours),
                brief(&kernels),
                shapes.iter().map(brief_shape).collect::<String>()
            );
            packets += plain.len();
            groups += ours.len();
        }
        println!("{cases} batches, {packets} packets in {groups} groups; {again} tried again");
    });
}

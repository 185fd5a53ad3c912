//! What is joined, and what is not, one rule at a time.

use culvert_gso::Coalescer;
use culvert_gso::coalesce::Settings;

use crate::common::batch::{ANY_LENGTH, EVERYTHING, VERIFIED, check, groups};
use crate::common::{Dice, Shape, cut, low, written};

/// TCP without anything special, three segments: what a test changes is all that is special.
fn simple() -> Shape {
    simple_of(false)
}

fn simple_of(v6: bool) -> Shape {
    let mut dice = Dice(3);
    loop {
        let mut shape = Shape::random(&mut dice, true);
        let outer = shape.outer.as_mut().unwrap();
        if outer.ip.v6 != v6 || shape.ip.v6 != v6 || shape.tcp.is_none() {
            continue;
        }
        outer.ip.options.clear();
        outer.ip.df = false;
        outer.checksum = v6;
        outer.options = vec![1, 2, 3, 0, 4, 5, 6, 0];
        shape.ip.options.clear();
        shape.ip.df = true;
        let tcp = shape.tcp.as_mut().unwrap();
        tcp.flags = 0x10;
        tcp.urgent = 0;
        tcp.options = vec![1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2];
        shape.size = 100;
        shape.payload.resize(300, 7);
        return shape;
    }
}

fn udp() -> Shape {
    let mut shape = simple();
    shape.tcp = None;
    shape
}

/// Frames of `shape`, of which those from the second on are of what `change` makes of it.
fn changed(shape: &Shape, change: impl Fn(&mut Shape)) -> Vec<Vec<u8>> {
    let mut other = shape.clone();
    change(&mut other);
    let mut frames = other.segments();
    frames[0] = shape.segments().swap_remove(0);
    frames
}

fn tcp(shape: &mut Shape) -> &mut crate::common::Tcp {
    shape.tcp.as_mut().unwrap()
}

fn outer(shape: &mut Shape) -> &mut crate::common::Outer {
    shape.outer.as_mut().unwrap()
}

#[test]
fn what_differs_is_not_joined() {
    type Change = fn(&mut Shape);
    let changes: &[(&str, Change)] = &[
        ("outer MAC address", |s| s.ethernet[3] ^= 1),
        ("VLAN", |s| s.ethernet.extend([0x81, 0, 0, 9])),
        ("outer type of service", |s| outer(s).ip.tos ^= 1),
        ("outer TTL", |s| outer(s).ip.ttl ^= 1),
        ("outer DF", |s| outer(s).ip.df = true),
        ("outer identification without DF", |s| {
            outer(s).ip.id ^= 0x80;
        }),
        ("outer address", |s| outer(s).ip.addresses[3] ^= 1),
        ("outer port", |s| outer(s).port ^= 1),
        ("tunnel checksum", |s| outer(s).checksum = true),
        ("Geneve's critical flag", |s| outer(s).geneve[0] |= 0x40),
        ("VNI", |s| outer(s).geneve[5] ^= 1),
        ("Geneve option", |s| outer(s).options[7] ^= 1),
        ("Geneve options' length", |s| {
            outer(s).options.extend([0; 4]);
        }),
        ("inner MAC address", |s| outer(s).ethernet[3] ^= 1),
        ("inner VLAN", |s| outer(s).ethernet.extend([0x81, 0, 0, 9])),
        ("ECN", |s| s.ip.tos ^= 1),
        ("TTL", |s| s.ip.ttl ^= 1),
        ("DF", |s| s.ip.df ^= true),
        ("identification", |s| s.ip.id ^= 0x80),
        ("IP options", |s| s.ip.options = vec![1; 4]),
        ("source address", |s| s.ip.addresses[3] ^= 1),
        ("destination address", |s| s.ip.addresses[7] ^= 1),
        ("source port", |s| s.ports[0] ^= 1),
        ("destination port", |s| s.ports[1] ^= 1),
    ];
    let for_v6: &[(&str, Change)] = &[
        ("outer traffic class", |s| outer(s).ip.tos ^= 0x40),
        ("outer hop limit", |s| outer(s).ip.ttl ^= 1),
        ("outer flow label", |s| outer(s).ip.flow_label ^= 1),
        ("outer address", |s| outer(s).ip.addresses[31] ^= 1),
        ("tunnel checksum", |s| outer(s).checksum = false),
        ("ECN", |s| s.ip.tos ^= 1),
        ("hop limit", |s| s.ip.ttl ^= 1),
        ("flow label", |s| s.ip.flow_label ^= 0x8_0000),
        ("extension header", |s| {
            s.ip.options = vec![0, 0, 1, 4, 0, 0, 0, 0];
        }),
        ("source address", |s| s.ip.addresses[15] ^= 1),
        ("destination address", |s| s.ip.addresses[31] ^= 1),
    ];
    let for_tcp: &[(&str, Change)] = &[
        ("a gap", |s| tcp(s).sequence += 1),
        ("an overlap", |s| tcp(s).sequence -= 1),
        ("acknowledgement", |s| tcp(s).acknowledgement ^= 1),
        ("window", |s| tcp(s).window ^= 1),
        ("urgent pointer", |s| tcp(s).urgent = 1),
        ("timestamp", |s| tcp(s).options[7] ^= 1),
        ("options' length", |s| tcp(s).options.extend([1; 4])),
        ("ECE", |s| tcp(s).flags ^= 0x40),
        ("URG", |s| tcp(s).flags ^= 0x20),
        ("RST", |s| tcp(s).flags ^= 0x04),
        ("SYN", |s| tcp(s).flags ^= 0x02),
    ];
    let all = vec![vec![0, 1, 2]];
    for (shape, changes) in [
        (simple(), changes),
        (udp(), changes),
        (simple(), for_tcp),
        (simple_of(true), for_v6),
        (simple_of(true), for_tcp),
    ] {
        assert_eq!(groups(EVERYTHING, &changed(&shape, |_| {})), all);
        for (what, change) in changes {
            let frames = changed(&shape, change);
            let groups = groups(EVERYTHING, &frames);
            assert_eq!(groups[0], [0], "{what}");
            check(EVERYTHING, &frames);
            check(VERIFIED, &frames);
        }
    }
    // The kernel does not look at it.
    let mut shape = simple();
    outer(&mut shape).ip.df = true;
    let frames = changed(&shape, |s| outer(s).ip.id ^= 0x80);
    assert_eq!(groups(EVERYTHING, &frames), all);
    check(EVERYTHING, &frames);
}

#[test]
fn flags_end_a_group() {
    let frames = |flags: &[u8]| -> Vec<Vec<u8>> {
        let mut shape = simple();
        shape.payload.resize(100 * flags.len(), 7);
        let segments = shape.segments();
        let one = |(index, flags): (usize, &u8)| {
            let mut frame = segments[index].clone();
            let at = frame.len() - 100 - 12 - 20;
            let before = frame[at + 13];
            frame[at + 13] = *flags;
            // One byte of the covered words has changed.
            let sum = u32::from(!u16::from_be_bytes([frame[at + 16], frame[at + 17]]))
                + u32::from(!u16::from(before))
                + u32::from(*flags);
            let sum = !low(usize::try_from((sum & 0xffff) + (sum >> 16)).unwrap() & 0xffff);
            frame[at + 16..at + 18].copy_from_slice(&sum.to_be_bytes());
            frame
        };
        flags.iter().enumerate().map(one).collect()
    };
    let (ack, psh, fin, cwr) = (0x10, 0x18, 0x11, 0x90);
    for (flags, expected) in [
        (&[ack, psh, ack, ack][..], vec![vec![0, 1], vec![2, 3]]),
        (&[ack, ack, fin], vec![vec![0, 1, 2]]),
        (&[psh, ack, ack], vec![vec![0], vec![1, 2]]),
        (
            &[ack, ack, cwr, ack, ack],
            vec![vec![0, 1], vec![2], vec![3, 4]],
        ),
        (&[0x50, 0x50, ack], vec![vec![0, 1], vec![2]]),
        (&[0x12, ack], vec![vec![0], vec![1]]),
        (&[0x14, ack], vec![vec![0], vec![1]]),
        (&[0x30, ack], vec![vec![0], vec![1]]),
    ] {
        let frames = frames(flags);
        assert_eq!(groups(EVERYTHING, &frames), expected, "{flags:02x?}");
        assert_eq!(groups(VERIFIED, &frames), expected, "{flags:02x?}");
        check(VERIFIED, &frames);
    }
}

#[test]
fn sizes_end_a_group() {
    for shape in [simple(), udp()] {
        // A shorter one is the last, and a longer one is not joined.
        let frames = |sizes: &[usize]| -> Vec<Vec<u8>> {
            let mut frames = Vec::new();
            let mut sent = 0;
            for (index, size) in sizes.iter().enumerate() {
                let mut shape = shape.clone();
                shape.ip.id = shape.ip.id.wrapping_add(low(index));
                outer(&mut shape).ip.id = outer(&mut shape).ip.id.wrapping_add(low(index));
                if let Some(tcp) = &mut shape.tcp {
                    tcp.sequence = tcp.sequence.wrapping_add(u32::try_from(sent).unwrap());
                }
                shape.payload = vec![7; *size];
                shape.size = 1000;
                frames.push(if *size == 0 {
                    shape.payload = vec![7];
                    let mut frame = shape.segments().remove(0);
                    frame.pop();
                    frame
                } else {
                    shape.segments().remove(0)
                });
                sent += size;
            }
            frames
        };
        for (sizes, expected) in [
            (&[100, 100, 50, 50][..], vec![vec![0, 1, 2], vec![3]]),
            (&[100, 100, 101, 101], vec![vec![0, 1], vec![2, 3]]),
            (&[100, 99, 100], vec![vec![0, 1], vec![2]]),
            (&[8, 8, 1], vec![vec![0, 1, 2]]),
        ] {
            let frames = frames(sizes);
            assert_eq!(groups(VERIFIED, &frames), expected, "{sizes:?}");
            check(VERIFIED, &frames);
        }
        // Segments that no superpacket of TCP has.
        let joined = groups(EVERYTHING, &frames(&[7, 7])).len() == 1;
        assert_eq!(joined, shape.tcp.is_none());
        // Lengths that are not the frame's.
        assert_eq!(groups(EVERYTHING, &frames(&[100, 0, 100]))[0], [0]);
        let mut padded = frames(&[100, 100]);
        padded[1].push(0);
        assert_eq!(groups(EVERYTHING, &padded), [[0], [1]]);
    }
}

#[test]
fn no_group_is_longer_than_ip_can_say() {
    let mut shape = simple();
    shape.size = 1400;
    let mut frames = Vec::new();
    for _ in 0..3 {
        shape.payload = vec![7; 1400 * 40];
        frames.extend(shape.segments());
        let tcp = tcp(&mut shape);
        tcp.sequence = tcp.sequence.wrapping_add(1400 * 40);
        shape.ip.id = shape.ip.id.wrapping_add(40);
        outer(&mut shape).ip.id = outer(&mut shape).ip.id.wrapping_add(40);
    }
    let groups = groups(EVERYTHING, &frames);
    let headers = shape.headers();
    let most = (65535 - headers) / 1400;
    assert_eq!(groups[0].len(), most);
    assert_eq!(groups.iter().map(Vec::len).sum::<usize>(), 120);
    check(EVERYTHING, &frames);

    let mut shape = udp();
    shape.size = 10;
    shape.payload = vec![7; 1280];
    let frames = shape.segments();
    let lengths: Vec<usize> = crate::common::batch::groups(EVERYTHING, &frames)
        .iter()
        .map(Vec::len)
        .collect();
    assert_eq!(lengths, [64, 64]);
    check(EVERYTHING, &frames);
}

/// Nothing passes what nobody knows, and what was not joined ends its flow's group only.
#[test]
fn order_is_kept() {
    let a = simple();
    let mut b = simple();
    b.ports[0] ^= 2;
    let (a, b) = (a.segments(), b.segments());
    let [a0, a1, a2] = &a[..] else { panic!() };
    let [b0, b1, b2] = &b[..] else { panic!() };
    let arp = [&[2; 12][..], &[8, 6], &[0; 46]].concat();
    let batch = |frames: &[&Vec<u8>]| -> Vec<Vec<usize>> {
        let frames: Vec<Vec<u8>> = frames.iter().map(|frame| (*frame).clone()).collect();
        check(VERIFIED, &frames);
        groups(EVERYTHING, &frames)
    };
    assert_eq!(batch(&[a0, b0, a1, b1, a2, b2]), [[0, 2, 4], [1, 3, 5]]);
    assert_eq!(
        batch(&[a0, a1, &arp, a2, b0]),
        [vec![0, 1], vec![2], vec![3], vec![4]]
    );
    // A damaged one of the same flow, which others must not pass.
    let mut damaged = a1.clone();
    let at = damaged.len() - 100 - 32 + 12;
    damaged[at] = 0x10;
    assert_eq!(
        batch(&[a0, b0, &damaged, a1, b1]),
        [vec![0], vec![1, 4], vec![2], vec![3]]
    );
    // Doubled, and late.
    assert_eq!(batch(&[a0, a1, a1, a2]), [vec![0, 1], vec![2, 3]]);
    assert_eq!(batch(&[a0, a2, a1]), [[0], [1], [2]]);
    // More flows than are kept open.
    let mut frames = Vec::new();
    for round in 0..2 {
        for flow in 0..33 {
            let mut shape = simple();
            shape.ports[1] = 5000 + flow;
            frames.push(shape.segments().swap_remove(round));
        }
    }
    let groups = groups(EVERYTHING, &frames);
    assert_eq!(groups[0], [0], "the oldest had to go");
    check(EVERYTHING, &frames);
}

#[test]
fn a_wrong_checksum_is_seen_where_it_is_asked_for() {
    let mut frames = simple().segments();
    let last = frames[1].len() - 1;
    frames[1][last] ^= 1;
    assert_eq!(groups(EVERYTHING, &frames), [[0, 1, 2]]);
    assert_eq!(groups(VERIFIED, &frames), [[0], [1], [2]]);
}

/// 0 and 0xffff are one checksum, and segmenting writes the one, completing the other: what would not become again what it
/// was goes on as it is.
#[test]
fn both_zeros_stay_what_they_are() {
    let mut shape = simple();
    shape.payload = vec![7; 200];
    for last in 0..=0xffff_u16 {
        shape.payload[98..100].copy_from_slice(&last.to_be_bytes());
        let mut frames = shape.segments();
        let at = frames[0].len() - 100 - 32 + 16;
        if frames[0][at..at + 2] != [0, 0] {
            continue;
        }
        assert_eq!(groups(EVERYTHING, &frames), [[0, 1]]);
        check(EVERYTHING, &frames);
        check(EVERYTHING, &frames[..1]);
        frames[0][at..at + 2].fill(0xff);
        assert_eq!(groups(EVERYTHING, &frames), [[0], [1]]);
        check(EVERYTHING, &frames);
        return;
    }
    panic!("one of all has the checksum zero");
}

/// A packet by itself needs no checksum from the kernel either, if it is known to be right.
#[test]
fn a_single_packet_has_a_partial_checksum_if_it_is_trusted() {
    for seed in 0..300 {
        let frames = vec![Shape::random(&mut Dice(seed), true).segments().remove(0)];
        for (settings, partial) in [(EVERYTHING, true), (VERIFIED, false)] {
            let mut coalescer = Coalescer::new(settings, 1);
            coalescer.coalesce(&frames);
            let (header, bytes) = written(&coalescer, &coalescer.groups()[0], &frames);
            assert_eq!(header.checksum.is_some(), partial);
            assert_eq!(header.valid, !partial);
            assert_eq!(cut(&header, &bytes, ANY_LENGTH), frames);
        }
    }
}

#[test]
fn what_was_not_offered_is_not_done() {
    let tcp = simple().segments();
    let udp = udp().segments();
    let mut shape = simple();
    outer(&mut shape).checksum = true;
    let sums = shape.segments();
    let joined = |settings, frames: &[Vec<u8>]| groups(settings, frames).len() == 1;
    let without_udp = Settings {
        udp: false,
        ..EVERYTHING
    };
    let without_sums = Settings {
        tunnel_checksum: false,
        ..EVERYTHING
    };
    let nothing = Settings {
        tcp: false,
        ..EVERYTHING
    };
    for (settings, expected) in [
        (EVERYTHING, [true; 3]),
        (without_udp, [true, false, true]),
        (without_sums, [true, true, false]),
        (nothing, [false; 3]),
    ] {
        let found = [&tcp, &udp, &sums].map(|frames| joined(settings, frames));
        assert_eq!(found, expected, "{settings:?}");
    }
}

/// A batch leaves nothing to the next.
#[test]
fn nothing_is_kept() {
    let frames = simple().segments();
    let mut coalescer = Coalescer::new(EVERYTHING, 3);
    coalescer.coalesce(&frames[..1]);
    assert_eq!(coalescer.coalesce(&frames[1..]).len(), 1);
    assert_eq!(coalescer.groups()[0].first(), 0);
    assert_eq!(coalescer.coalesce(&frames[..0]).len(), 0);
}

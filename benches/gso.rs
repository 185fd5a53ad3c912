//! Superpackets: what cutting and joining cost for each segment of 1400 bytes of payload, beside the sum of its bytes.
//! Superpackets are larger than the first cache, and are read where the kernel would just have written them.

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use culvert_gso::coalesce::{Checksums, Settings};
use culvert_gso::vnet::{Checksum, Gso, Header, Kind, Tunnel};
use culvert_gso::{Coalescer, Superpacket, checksum};

const SIZE: usize = 1400;
const SEGMENTS: usize = 44;
/// Ethernet, IPv4, UDP, Geneve with an option of 8 bytes, Ethernet, IPv4, TCP with timestamps.
const HEADERS: usize = INNER + 20 + 32;
const INNER: usize = 14 + 20 + 8 + 16 + 14;

fn ip(protocol: u8, length: usize) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(u16::try_from(length).unwrap().to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    let sum = checksum::finish(checksum::sum(&header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

/// A superpacket of `segments` segments with its vnet header.
fn superpacket(segments: usize) -> (Header, Vec<u8>) {
    let payload = segments * SIZE;
    let total = HEADERS + payload;
    let mut bytes = [&[2; 12][..], &[8, 0], &ip(17, total - 14)].concat();
    bytes.extend([0xc0, 1, 0x17, 0xc1]);
    bytes.extend(u16::try_from(total - 34).unwrap().to_be_bytes());
    bytes.extend([
        0, 0, 2, 0, 0x65, 0x58, 0, 0, 7, 0, 1, 2, 0x80, 1, 0, 1, 0, 2,
    ]);
    bytes.extend([&[2; 12][..], &[8, 0], &ip(6, total - INNER)].concat());
    bytes.extend([
        0xc0, 2, 0x14, 0x51, 0, 0, 1, 0, 0, 0, 2, 0, 0x80, 0x10, 1, 0,
    ]);
    let pseudo = [10, 0, 0, 1, 10, 0, 0, 2, 0, 6];
    let sum = checksum::sum(&pseudo) + (payload + 32) as u64;
    bytes.extend(checksum::fold(sum).to_be_bytes());
    bytes.extend([0, 0, 1, 1, 8, 10, 0, 0, 0, 1, 0, 0, 0, 2]);
    assert_eq!(bytes.len(), HEADERS);
    bytes.extend((0..payload).map(|at| at.to_le_bytes()[0]));
    let header = Header {
        checksum: Some(Checksum {
            start: u16::try_from(INNER + 20).unwrap(),
            offset: 16,
        }),
        valid: false,
        headers: u16::try_from(HEADERS).unwrap(),
        gso: Some(Gso {
            kind: Kind::TcpV4,
            size: u16::try_from(SIZE).unwrap(),
            ecn: false,
            tunnel: Some(Tunnel {
                v6: false,
                checksum: false,
                outer_transport: 34,
                inner_network: u16::try_from(INNER).unwrap(),
            }),
        }),
    };
    (header, bytes)
}

fn sums(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("gso/bytes");
    group.throughput(Throughput::Bytes(SIZE as u64));
    let (from, mut to) = (vec![7; SIZE], vec![0; SIZE]);
    group.bench_function("sum", |bencher| {
        bencher.iter(|| checksum::sum(black_box(&from)));
    });
    group.bench_function("copy and sum", |bencher| {
        bencher.iter(|| checksum::copy_and_sum(black_box(&mut to), black_box(&from)));
    });
    group.bench_function("copy", |bencher| {
        bencher.iter(|| black_box(&mut to).copy_from_slice(black_box(&from)));
    });
    group.finish();
}

fn segments(criterion: &mut Criterion) {
    let (mut header, bytes) = superpacket(SEGMENTS);
    let mut group = criterion.benchmark_group("gso/segment");
    group.throughput(Throughput::Elements(SEGMENTS as u64));
    let mut frames = vec![[0; 2048]; SEGMENTS];
    for tunnel_checksum in [false, true] {
        if let Some(tunnel) = header.gso.as_mut().and_then(|gso| gso.tunnel.as_mut()) {
            tunnel.checksum = tunnel_checksum;
        }
        let with = if tunnel_checksum {
            ", tunnel checksum"
        } else {
            ""
        };
        group.bench_function(format!("headers{with}"), |bencher| {
            bencher.iter(|| {
                let packet = Superpacket::new(black_box(&header), black_box(&bytes)).unwrap();
                for (segment, frame) in packet.segments(2048).iter().zip(&mut frames) {
                    segment.headers_into(frame).unwrap();
                }
                black_box(&mut frames);
            });
        });
        group.bench_function(format!("whole{with}"), |bencher| {
            bencher.iter(|| {
                let packet = Superpacket::new(black_box(&header), black_box(&bytes)).unwrap();
                for (segment, frame) in packet.segments(2048).iter().zip(&mut frames) {
                    segment.write_into(frame).unwrap();
                }
                black_box(&mut frames);
            });
        });
    }
    group.finish();
}

/// One flow, and eight whose packets alternate.
fn joins(criterion: &mut Criterion) {
    let (header, bytes) = superpacket(8);
    let packet = Superpacket::new(&header, &bytes).unwrap();
    let flow = |number: u8| -> Vec<Vec<u8>> {
        let mut bytes = bytes.clone();
        // The source port, in the sum of the pseudo header as well, so that checksums stay right.
        bytes[INNER + 21] = number;
        let packet = Superpacket::new(&header, &bytes).unwrap();
        let one = |segment: culvert_gso::segment::Segment<'_>| {
            let mut frame = vec![0; segment.len()];
            segment.write_into(&mut frame).unwrap();
            frame
        };
        packet.segments(2048).iter().map(one).collect()
    };
    assert_eq!(packet.segments(2048).count(), 8);
    let (long_header, long) = superpacket(SEGMENTS);
    let long = Superpacket::new(&long_header, &long).unwrap();
    let one: Vec<Vec<u8>> = long
        .segments(2048)
        .iter()
        .map(|segment| {
            let mut frame = vec![0; segment.len()];
            segment.write_into(&mut frame).unwrap();
            frame
        })
        .collect();
    let flows: Vec<Vec<Vec<u8>>> = (0..8).map(flow).collect();
    let eight: Vec<Vec<u8>> = (0..8)
        .flat_map(|at| flows.iter().map(move |flow| flow[at].clone()))
        .collect();
    let mut group = criterion.benchmark_group("gso/coalesce");
    for checksums in [Checksums::Trusted, Checksums::Verified] {
        for (name, frames, groups) in [("one flow", &one, 1), ("eight flows", &eight, 8)] {
            let settings = Settings {
                tcp: true,
                udp: true,
                tunnel_checksum: true,
                checksums,
            };
            let mut coalescer = Coalescer::new(settings, 64);
            let mut first = frames[0].clone();
            assert_eq!(coalescer.coalesce(frames).len(), groups);
            group.throughput(Throughput::Elements(frames.len() as u64));
            group.bench_function(format!("{name}, {checksums:?}"), |bencher| {
                bencher.iter(|| {
                    coalescer.coalesce(black_box(frames));
                    for group in coalescer.groups() {
                        black_box(coalescer.prepare(group, &mut first));
                    }
                });
            });
        }
    }
    group.finish();
}

criterion_group!(all, sums, segments, joins);
criterion_main!(all);

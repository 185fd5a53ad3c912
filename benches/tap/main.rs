//! What a superpacket of 64 KiB costs at a TAP: to read it, into pages of the usual size or huge ones, by a system call each or
//! many of them by io_uring; and to write it, joined of the frames of a batch.
//!
//! The ways take turns, batch by batch, so that what the machine does meanwhile hits them alike. Only reading and writing are
//! timed, and not how the packets come about. A worker's turn takes 64 frames, so that it reads one or two superpackets; more of
//! them are there only while it falls behind.

mod device;
mod memory;
mod ring;

use std::fs::File;
use std::hint::black_box;
use std::io::{IoSlice, Read, Write};
use std::time::Instant;

use culvert_benches::clocks::{self, Clocks};
use culvert_gso::checksum;
use device::Device;
use memory::Memory;
use ring::Ring;

/// Packets of a batch, and how often it is read by each way.
const BATCHES: [(usize, usize); 4] = [(1, 4000), (2, 2000), (8, 600), (32, 200)];
const MOST: usize = 32;
/// Bytes of a port's buffer: the longest packet, with Ethernet's and the vnet header.
const HEAP: usize = 65_535 + 32 + 24;

/// All that is read to and written from.
struct Bench {
    queue: File,
    length: usize,
    /// As a worker's port has it.
    heap: Box<[u8]>,
    ordinary: Memory,
    huge: Memory,
    ring: Ring,
    fixed: Ring,
    fixed_huge: Ring,
    parts: Vec<Vec<u8>>,
}

/// A way of reading or writing a batch of so many.
type Way = (&'static str, fn(&mut Bench, usize));

const READS: [Way; 11] = [
    ("read, buffer of the heap", |bench, count| {
        for _ in 0..count {
            read(&bench.queue, &mut bench.heap, bench.length);
        }
    }),
    ("read, one buffer", |bench, count| {
        for _ in 0..count {
            read(&bench.queue, bench.ordinary.buffer(0), bench.length);
        }
    }),
    ("read, one buffer, huge pages", |bench, count| {
        for _ in 0..count {
            read(&bench.queue, bench.huge.buffer(0), bench.length);
        }
    }),
    ("read and sum, one buffer", |bench, count| {
        for _ in 0..count {
            read_and_sum(&bench.queue, bench.ordinary.buffer(0), bench.length);
        }
    }),
    ("read and sum, one buffer, huge pages", |bench, count| {
        for _ in 0..count {
            read_and_sum(&bench.queue, bench.huge.buffer(0), bench.length);
        }
    }),
    ("read, a buffer each", |bench, count| {
        for number in 0..count {
            read(&bench.queue, bench.ordinary.buffer(number), bench.length);
        }
    }),
    ("read, a buffer each, huge pages", |bench, count| {
        for number in 0..count {
            read(&bench.queue, bench.huge.buffer(number), bench.length);
        }
    }),
    ("io_uring", |bench, count| {
        bench.ring.read(&mut bench.ordinary, count, bench.length);
    }),
    ("io_uring, huge pages", |bench, count| {
        bench.ring.read(&mut bench.huge, count, bench.length);
    }),
    ("io_uring, registered buffer", |bench, count| {
        let memory = &mut bench.ordinary;
        bench.fixed.read_fixed(memory, count, bench.length);
    }),
    ("io_uring, registered buffer, huge pages", |bench, count| {
        let memory = &mut bench.huge;
        bench.fixed_huge.read_fixed(memory, count, bench.length);
    }),
];

const WRITES: [Way; 2] = [
    ("writev", |bench, count| {
        let parts: Vec<IoSlice<'_>> = bench.parts.iter().map(|part| IoSlice::new(part)).collect();
        for _ in 0..count {
            let written = (&bench.queue).write_vectored(&parts).expect("to write");
            assert_eq!(written, bench.length);
        }
    }),
    ("io_uring", |bench, count| {
        let vector = |part: &Vec<u8>| libc::iovec {
            iov_base: part.as_ptr().cast_mut().cast(),
            iov_len: part.len(),
        };
        let parts: Vec<libc::iovec> = bench.parts.iter().map(vector).collect();
        bench.ring.write(&parts, count, bench.length);
    }),
];

fn read(mut queue: &File, buffer: &mut [u8], length: usize) {
    assert_eq!(queue.read(buffer).expect("to read"), length);
}

/// With a pass over it, as cutting makes one.
fn read_and_sum(queue: &File, buffer: &mut [u8], length: usize) {
    read(queue, buffer, length);
    black_box(checksum::sum(&buffer[..length]));
}

fn main() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("tap: left out, as it needs root, for a namespace and a TAP");
        return;
    }
    let mut device = Device::new();
    let queue = device.queue.try_clone().expect("a descriptor");
    let (mut ordinary, mut huge) = (Memory::ordinary(MOST), Memory::huge(MOST));
    let most = MOST as u32;
    let mut bench = Bench {
        ring: Ring::new(&queue, most),
        fixed: Ring::with_buffer(&queue, most, &mut ordinary),
        fixed_huge: Ring::with_buffer(&queue, most, &mut huge),
        length: device.length(),
        parts: device.joined(),
        queue,
        heap: vec![1; HEAP].into(),
        ordinary,
        huge,
    };
    eprintln!(
        "pages of {} and of {}; {} KiB in transparent huge pages",
        bench.ordinary.kind,
        bench.huge.kind,
        Memory::transparent()
    );
    let (clock, start) = (clocks::now(), Instant::now());
    let mut results = Vec::new();
    for (count, rounds) in BATCHES {
        let mut measure = |what: &str, ways: &[Way], before: &mut dyn FnMut()| {
            let mut times: Vec<Clocks> = ways.iter().map(|_| Clocks::default()).collect();
            for _ in 0..rounds {
                for ((_, way), clocks) in ways.iter().zip(&mut times) {
                    (0..count).for_each(|_| before());
                    clocks.add(clocks::of(|| way(&mut bench, count)), count);
                }
            }
            for ((name, _), clocks) in ways.iter().zip(times) {
                results.push((format!("tap/{what}/{name}/{count}"), clocks));
            }
        };
        measure("out", &READS, &mut || device.send());
        measure("in", &WRITES, &mut || ());
    }
    empty(&mut bench, &mut results);
    let per_ns = (clocks::now() - clock) as f64 / start.elapsed().as_nanos() as f64;
    for (name, mut clocks) in results {
        let [median, low, high] = [0.5, 0.1, 0.9].map(|part| clocks.quantile(part));
        println!(
            "time {name} ns={:.0} low={:.0} high={:.0} clocks={median:.0}",
            median / per_ns,
            low / per_ns,
            high / per_ns,
        );
    }
}

/// What it costs to find nothing there, as each turn of a worker that is not behind does.
fn empty(bench: &mut Bench, results: &mut Vec<(String, Clocks)>) {
    let mut times = Clocks::default();
    for _ in 0..10_000 {
        let clocks = clocks::of(|| (&bench.queue).read(bench.ordinary.buffer(0)).is_err());
        times.add(clocks, 1);
    }
    results.push(("tap/out/read, nothing there/1".to_owned(), times));
}

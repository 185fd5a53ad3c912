//! The whole pipeline, from received frames to finished ones in memory: headers, classification, SPD, SA, sequence
//! number or replay window, cipher, policy. `worker` is the same with the worker round it and its ports.
//!
//! `cargo bench -p culvert-benches --bench pipeline -- [FILTER]` times it with criterion and then counts its clocks a
//! packet, beside those of the bare cipher on a text of the same length in alternation with it, a line each;
//! `-- --clocks [FILTER]` does the second only. `--packets WAY SIZE COUNT` takes so many packets through it, for callgrind.

mod rig;

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput};
use culvert_benches::clocks::{self, Clocks};
use culvert_benches::{aead, counted, nonce, text_length};
use culvert_datapath::worker::BATCH;
use culvert_esp::{Backend, UDP_HEADER};
use culvert_proto::sa::Cipher;
use rig::{Rig, Way, WorkerRig};

/// Bytes behind the UDP header.
const SIZES: [usize; 3] = [64, 512, 1400];
/// Packets a batch.
const BATCHES: [usize; 4] = [1, 16, 64, 256];
/// Packets that clocks are counted over.
const COUNTED: usize = 200_000;

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [flag, way, size, count] = &arguments[..]
        && flag == "--packets"
    {
        return packets(way, number(size), number(count));
    }
    let filter = arguments.iter().find(|argument| !argument.starts_with('-'));
    if !arguments.iter().any(|argument| argument == "--clocks") {
        let mut criterion = Criterion::default()
            .warm_up_time(Duration::from_millis(200))
            .measurement_time(Duration::from_millis(700))
            .sample_size(20)
            .configure_from_args();
        timed(&mut criterion);
        criterion.final_summary();
    }
    count_clocks(filter.map_or("", String::as_str));
}

fn number(text: &str) -> usize {
    text.parse().expect("a number")
}

/// Every case, with its name without size and batch.
fn cases() -> impl Iterator<Item = (String, Way, Cipher, Backend)> {
    Way::ALL.into_iter().flat_map(|way| {
        Cipher::COMMON.into_iter().flat_map(move |cipher| {
            Backend::ALL.iter().map(move |&backend| {
                let name = format!("{}/{cipher}/{}", way.name(), backend.name());
                (name, way, cipher, backend)
            })
        })
    })
}

fn timed(criterion: &mut Criterion) {
    for (name, way, cipher, backend) in cases() {
        let mut group = criterion.benchmark_group(format!("pipeline/{name}"));
        group.throughput(Throughput::Elements(1));
        for size in SIZES {
            for batch in BATCHES {
                group.bench_function(BenchmarkId::new(size.to_string(), batch), |bencher| {
                    let mut rig = Rig::new(way, cipher, backend, size, batch);
                    bencher.iter_custom(|packets| {
                        let mut total = Duration::ZERO;
                        let batches = packets.div_ceil(batch as u64);
                        for _ in 0..batches {
                            rig.prepare();
                            let start = Instant::now();
                            rig.run();
                            total += start.elapsed();
                        }
                        total.mul_f64(packets as f64 / (batches * batch as u64) as f64)
                    });
                });
            }
        }
    }
}

fn count_clocks(filter: &str) {
    for (name, way, cipher, backend) in cases() {
        for size in SIZES {
            for batch in BATCHES {
                let name = format!("pipeline/{name}/{size}/{batch}");
                if name.contains(filter) {
                    let bare = Bare::new(way, cipher, backend, size, batch);
                    let mut rig = Rig::new(way, cipher, backend, size, batch);
                    alternate(&name, bare, &mut rig, Rig::prepare, Rig::run);
                }
            }
            let name = format!("worker/{name}/{size}/{BATCH}");
            if name.contains(filter) {
                let bare = Bare::new(way, cipher, backend, size, BATCH);
                let mut rig = WorkerRig::new(way, cipher, backend, size);
                alternate(&name, bare, &mut rig, WorkerRig::prepare, WorkerRig::run);
            }
        }
    }
}

/// Counts the clocks of `run`, and of the bare cipher in alternation with it.
fn alternate<R>(
    name: &str,
    mut bare: Bare,
    rig: &mut R,
    prepare: impl Fn(&mut R),
    run: impl Fn(&mut R),
) {
    let batch = bare.texts.len();
    let (mut whole, mut alone) = (Clocks::default(), Clocks::default());
    for _ in 0..COUNTED / batch {
        prepare(rig);
        whole.add(clocks::of(|| run(rig)), batch);
        bare.prepare();
        alone.add(clocks::of(|| bare.run()), batch);
    }
    println!(
        "clocks {name} best={:.0} median={:.0} bare_best={:.0} bare_median={:.0} over={:.0}",
        whole.best(),
        whole.median(),
        alone.best(),
        alone.median(),
        whole.best() - alone.best()
    );
}

/// Takes `count` packets through, of which callgrind sees no more than the pipeline.
fn packets(way: &str, size: usize, count: usize) {
    let way = Way::ALL.into_iter().find(|known| known.name() == way);
    let way = way.expect("in or out");
    let mut rig = Rig::new(way, Cipher::Aes256Gcm16, Backend::AwsLc, size, 256);
    assert!(count.is_multiple_of(rig.batch()), "whole batches");
    for _ in 0..count / rig.batch() {
        rig.prepare();
        counted(&mut || rig.run());
    }
}

/// The cipher alone, on texts as long as those of the packets.
struct Bare {
    way: Way,
    key: culvert_esp::aead::Aead,
    arriving: Vec<u8>,
    texts: Vec<Vec<u8>>,
    number: u64,
}

impl Bare {
    fn new(way: Way, cipher: Cipher, backend: Backend, size: usize, batch: usize) -> Self {
        let key = aead(cipher, backend);
        let mut arriving = vec![0; text_length(UDP_HEADER + size)];
        if way == Way::In {
            let icv = key.seal(nonce(0), &[0; 12], &mut arriving).expect("sealed");
            arriving.extend(icv);
        }
        Self {
            way,
            key,
            texts: vec![arriving.clone(); batch],
            arriving,
            number: 0,
        }
    }

    fn prepare(&mut self) {
        for text in &mut self.texts {
            text.copy_from_slice(&self.arriving);
        }
    }

    fn run(&mut self) {
        for text in &mut self.texts {
            match self.way {
                Way::Out => {
                    self.number += 1;
                    let icv = self.key.seal(nonce(self.number), &[0; 12], text);
                    black_box(icv).expect("sealed");
                }
                Way::In => black_box(self.key.open(nonce(0), &[0; 12], text)).expect("opened"),
            }
        }
    }
}

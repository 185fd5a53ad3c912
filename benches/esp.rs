//! Sealing and opening one packet, beside the bare AEAD call on a text of the same length in the same run.
//!
//! `bare` is the cipher alone; `esp` is the lease of a sequence number, headers, padding, cipher and, inbound,
//! replay window, padding check and policy.

use std::hint::black_box;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use culvert_benches::{
    aead, geneve, inbound_sa, nonce, outbound_sa, restore, text_length, with_room,
};
use culvert_esp::buffer::{Frame, HeapFrame};
use culvert_esp::{Backend, MAX_ICV, open, seal};
use culvert_proto::sa::Cipher;

/// Bytes of the UDP datagram.
const SIZES: [usize; 5] = [64, 256, 512, 1400, 8900];
/// A wire that takes them all.
const MTU: usize = 9216;
/// Packets that are timed together, as a worker takes them.
const BATCH: usize = 64;

/// Times `work` on `iterations` frames in batches; `prepare` makes a batch ready outside the clock.
fn timed<T>(
    iterations: u64,
    batch: &mut [T],
    mut prepare: impl FnMut(&mut [T]),
    mut work: impl FnMut(&mut [T]),
) -> Duration {
    let mut total = Duration::ZERO;
    let mut left = usize::try_from(iterations).expect("a number of packets");
    while left > 0 {
        let count = left.min(batch.len());
        prepare(&mut batch[..count]);
        let start = Instant::now();
        work(&mut batch[..count]);
        total += start.elapsed();
        left -= count;
    }
    total
}

fn sealing(criterion: &mut Criterion) {
    for cipher in Cipher::COMMON {
        for &backend in Backend::ALL {
            let mut group = criterion.benchmark_group(format!("seal/{cipher}/{}", backend.name()));
            for size in SIZES {
                group.throughput(Throughput::Bytes(size as u64));
                let bare = aead(cipher, backend);
                group.bench_function(BenchmarkId::new("bare", size), |bencher| {
                    let mut texts = vec![vec![0; text_length(size)]; BATCH];
                    let mut number = 0_u64;
                    bencher.iter_custom(|iterations| {
                        timed(
                            iterations,
                            &mut texts,
                            |_| {},
                            |texts| {
                                for text in texts {
                                    number += 1;
                                    black_box(bare.seal(nonce(number), &[0; 12], text))
                                        .expect("sealed");
                                }
                            },
                        )
                    });
                });
                let sa = outbound_sa(cipher, backend);
                let (clear, headers) = geneve(size);
                group.bench_function(BenchmarkId::new("esp", size), |bencher| {
                    let mut frames = vec![with_room(&clear); BATCH];
                    let start = frames[0].bounds().start;
                    bencher.iter_custom(|iterations| {
                        timed(
                            iterations,
                            &mut frames,
                            |frames| {
                                for frame in frames {
                                    restore(frame, start, clear.len(), &clear[..34]);
                                }
                            },
                            |frames| {
                                let count = u32::try_from(frames.len()).expect("a batch");
                                let mut lease = sa.lease(count);
                                for frame in frames {
                                    let sequence = lease.take().expect("a number");
                                    let plan = seal::plan(&sa, &headers, MTU);
                                    black_box(seal::seal(&sa, sequence, &plan, &headers, frame))
                                        .expect("sealed");
                                }
                            },
                        )
                    });
                });
            }
        }
    }
}

fn opening(criterion: &mut Criterion) {
    for cipher in Cipher::COMMON {
        for &backend in Backend::ALL {
            let mut group = criterion.benchmark_group(format!("open/{cipher}/{}", backend.name()));
            for size in SIZES {
                group.throughput(Throughput::Bytes(size as u64));
                let bare = aead(cipher, backend);
                group.bench_function(BenchmarkId::new("bare", size), |bencher| {
                    let mut sealed = vec![0; text_length(size)];
                    let icv = bare.seal([0; 12], &[0; 12], &mut sealed).expect("sealed");
                    sealed.extend(icv);
                    let mut texts = vec![sealed.clone(); BATCH];
                    assert_eq!(sealed.len(), text_length(size) + MAX_ICV);
                    bencher.iter_custom(|iterations| {
                        timed(
                            iterations,
                            &mut texts,
                            |texts| {
                                texts
                                    .iter_mut()
                                    .for_each(|text| text.copy_from_slice(&sealed))
                            },
                            |texts| {
                                for text in texts {
                                    black_box(bare.open([0; 12], &[0; 12], text)).expect("opened");
                                }
                            },
                        )
                    });
                });
                let outbound = outbound_sa(cipher, backend);
                let (inbound, state) = inbound_sa(cipher, backend);
                let (clear, headers) = geneve(size);
                group.bench_function(BenchmarkId::new("esp", size), |bencher| {
                    let mut lease = outbound.lease(u32::try_from(BATCH).expect("a batch"));
                    let sealed: Vec<HeapFrame> = (0..BATCH)
                        .map(|_| {
                            let mut frame = with_room(&clear);
                            let sequence = lease.take().expect("a number");
                            let plan = seal::plan(&outbound, &headers, MTU);
                            seal::seal(&outbound, sequence, &plan, &headers, &mut frame)
                                .expect("sealed");
                            frame
                        })
                        .collect();
                    let headers = culvert_packet::headers::walk(sealed[0].bytes()).expect("good");
                    let mut frames = sealed.clone();
                    bencher.iter_custom(|iterations| {
                        timed(
                            iterations,
                            &mut frames,
                            |frames| {
                                for (frame, sealed) in frames.iter_mut().zip(&sealed) {
                                    let bounds = Frame::bounds(sealed);
                                    restore(frame, bounds.start, bounds.len(), sealed.bytes());
                                }
                                state
                                    .iter()
                                    .for_each(|word| word.store(0, Ordering::Relaxed));
                            },
                            |frames| {
                                for frame in frames {
                                    black_box(open::open(&inbound, false, &headers, frame))
                                        .expect("opened");
                                }
                            },
                        )
                    });
                });
            }
        }
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30);
    targets = sealing, opening
}
criterion_main!(benches);

//! The replay window: what it costs to ask it and to tell it, packet by packet.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use culvert_esp::replay::ReplayWindow;
use culvert_state::Words;
use culvert_state::layout::inbound;

/// Numbers that are timed together.
const BATCH: u32 = 1024;

fn window(size: u32) -> ReplayWindow {
    let words = Words::on_heap(inbound::words(size));
    ReplayWindow::new(words, size, true).expect("words of the right length")
}

fn benches(criterion: &mut Criterion) {
    for size in [32, 1024, 4096] {
        let mut group = criterion.benchmark_group("replay");
        group.throughput(Throughput::Elements(u64::from(BATCH)));
        // The check alone, which every packet costs, also a forged one.
        let asked = window(size);
        group.bench_function(BenchmarkId::new("check", size), |bencher| {
            bencher.iter(|| {
                for low in 1..=BATCH {
                    black_box(asked.check(black_box(low)).is_ok());
                }
            });
        });
        // Check and commit of numbers that come in order.
        let told = window(size);
        let mut next = 0_u32;
        group.bench_function(BenchmarkId::new("check and commit", size), |bencher| {
            bencher.iter(|| {
                for _ in 0..BATCH {
                    next = next.wrapping_add(1);
                    if let Ok(token) = told.check(black_box(next)) {
                        black_box(told.commit(token).is_ok());
                    }
                }
            });
        });
    }
}

criterion_group! {
    name = all;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30);
    targets = benches
}
criterion_main!(all);

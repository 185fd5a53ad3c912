//! The bare AEADs: every backend beside the others, by criterion in time and then all in turn in clocks, which is what
//! [`Choice`](culvert_esp::Choice) goes by. `cargo bench -p culvert-benches --features ring --bench aead -- clocks` gives
//! the clocks alone.

use std::hint::black_box;
use std::time::Duration;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group};
use culvert_benches::clocks::{self, Clocks};
use culvert_esp::aead::Aead;
use culvert_esp::{Backend, MAX_ICV};
use culvert_proto::sa::Cipher;

/// Bytes of the text.
const SIZES: [usize; 4] = [64, 512, 1400, 8900];
/// Calls that are timed together: reading the clock should not count. With 1400 bytes they fit the L1 cache.
const BATCH: usize = 16;
/// Times that each backend has its turn.
const ROUNDS: usize = 4000;

/// What is measured.
#[derive(Clone, Copy)]
enum Work {
    Seal,
    Open,
}

impl Work {
    const ALL: [(Self, &'static str); 2] = [(Self::Seal, "seal"), (Self::Open, "open")];

    /// Text with room for an ICV, ready for [`Work::run`].
    fn prepare(self, aead: &Aead, text: &mut [u8]) {
        if let Self::Open = self {
            seal(aead, text);
        }
    }

    #[inline]
    fn run(self, aead: &Aead, text: &mut [u8]) {
        match self {
            Self::Seal => seal(aead, text),
            Self::Open => {
                let [nonce, aad] = around();
                aead.open(nonce, &aad, text).expect("a right ICV");
            }
        }
    }
}

#[inline]
fn seal(aead: &Aead, text: &mut [u8]) {
    let (text, icv) = text.split_last_chunk_mut::<MAX_ICV>().expect("room");
    let [nonce, aad] = around();
    *icv = aead.seal(nonce, &aad, text).expect("sealed");
}

/// Nonce (salt and IV) and associated data (SPI and 64-bit sequence number), put together for each packet as an SA does. No packet
/// leaves, so they may come again.
#[inline]
fn around() -> [[u8; 12]; 2] {
    let number = black_box(0x77_u64).to_be();
    [black_box(0x5a5a_5a5a_u32), black_box(0xc0c0_c0c0)].map(|first| {
        let all = u128::from(number) << 32 | u128::from(first);
        let [all @ .., _, _, _, _] = all.to_le_bytes();
        all
    })
}

/// The backends that have the cipher.
fn backends(cipher: Cipher) -> impl Iterator<Item = (Backend, Aead)> {
    let key = vec![0x5a; cipher.key_length()];
    Backend::ALL.iter().filter_map(move |&backend| {
        let aead = Aead::new(backend, cipher.algorithm(), &key).ok()?;
        Some((backend, aead))
    })
}

fn times(criterion: &mut Criterion) {
    for (work, name) in Work::ALL {
        for cipher in Cipher::COMMON {
            let mut group = criterion.benchmark_group(format!("aead/{name}/{cipher}"));
            for (backend, aead) in backends(cipher) {
                for size in SIZES {
                    group.throughput(Throughput::Bytes(size as u64));
                    group.bench_function(BenchmarkId::new(backend.name(), size), |bencher| {
                        bencher.iter_batched_ref(
                            || {
                                let mut text = vec![0x42; size + MAX_ICV];
                                work.prepare(&aead, &mut text);
                                text
                            },
                            |text| work.run(&aead, black_box(text)),
                            BatchSize::SmallInput,
                        );
                    });
                }
            }
        }
    }
}

/// Clocks of one call for each backend, which take turns: what disturbs the machine disturbs all.
fn turns(work: Work, cipher: Cipher, size: usize) -> Vec<(Backend, Clocks)> {
    let mut contenders: Vec<_> = backends(cipher)
        .map(|(backend, aead)| (backend, aead, Clocks::default()))
        .collect();
    let mut texts = vec![vec![0x42; size + MAX_ICV]; BATCH];
    for _ in 0..ROUNDS {
        for (_, aead, clocks) in &mut contenders {
            for text in &mut texts {
                work.prepare(aead, text);
            }
            let taken = clocks::of(|| {
                for text in &mut texts {
                    work.run(aead, black_box(text));
                }
            });
            clocks.add(taken, BATCH);
        }
    }
    contenders
        .into_iter()
        .map(|(backend, _, clocks)| (backend, clocks))
        .collect()
}

/// A line for each for programs, and a table of the best.
fn table() {
    let mut table = format!("{:<24}", "best, in clocks");
    for size in SIZES {
        table += &format!("{:>8}", format!("{size} B"));
    }
    for (work, name) in Work::ALL {
        for cipher in Cipher::COMMON {
            let mut columns = SIZES.map(|size| turns(work, cipher, size));
            table += &format!("\n{name} {cipher}");
            for row in 0..columns[0].len() {
                let backend = columns[0][row].0.name();
                table += &format!("\n  {backend:<22}");
                for (column, size) in columns.iter_mut().zip(SIZES) {
                    let clocks = &mut column[row].1;
                    let (best, median) = (clocks.best(), clocks.median());
                    table += &format!("{best:>8.0}");
                    println!(
                        "clocks {name}/{cipher}/{backend}/{size} best={best:.0} median={median:.0}"
                    );
                }
            }
        }
    }
    println!("{table}");
}

criterion_group! {
    name = benches;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30);
    targets = times
}

fn main() {
    benches();
    // Criterion lists or tries the benches only.
    if !std::env::args().any(|argument| ["--list", "--test"].contains(&&*argument)) {
        table();
    }
}

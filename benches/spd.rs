//! Looking a packet's policy up. What is compared has the same number of peers, so that it is the lookup that
//! is compared, and not how much of the tables is in the CPU's caches. With one peer that holds exactly; the
//! more there are, the more pages and lines of control bytes they are scattered over in a larger table.

use std::hint::black_box;
use std::net::IpAddr;
use std::time::Duration;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use culvert_datapath::spd::{Query, Sides, Spd};
use culvert_packet::headers::mapped;
use culvert_proto::policy::{Action, Geneve, PolicySpec, Selector, VniRange};

const LOCAL: [u8; 4] = [192, 0, 2, 1];

fn peer(number: u32) -> [u8; 4] {
    (0x0a00_0000 + number).to_be_bytes()
}

fn hosts(count: u32) -> Vec<PolicySpec> {
    let policy = |number| PolicySpec {
        selector: Selector::hosts(IpAddr::from(LOCAL), IpAddr::from(peer(number))),
        order: 100,
        action: Action::Discard,
    };
    (0..count).map(policy).collect()
}

fn query(remote: [u8; 4], vni: u32) -> Query {
    Query {
        local: mapped(LOCAL),
        remote: mapped(remote),
        sides: Sides::Remote,
        vni: Some(vni),
    }
}

/// Queries for `count` peers out of `all`, in no order that the CPU could foresee.
fn peers(count: u32, all: u32) -> Vec<Query> {
    let scattered = (0..count).map(|number| number.wrapping_mul(7919) % count * (all / count));
    scattered.map(|number| query(peer(number), 7)).collect()
}

fn lookups(criterion: &mut Criterion, name: &str, parameter: u32, spd: &Spd, queries: &[Query]) {
    let mut group = criterion.benchmark_group(name);
    group.throughput(Throughput::Elements(queries.len() as u64));
    group.bench_function(BenchmarkId::from_parameter(parameter), |bencher| {
        bencher.iter(|| {
            for query in queries {
                black_box(spd.lookup(black_box(query)));
            }
        });
    });
}

fn benches(criterion: &mut Criterion) {
    for count in [1, 1_000, 100_000] {
        let policies = hosts(count);
        let spd = Spd::new(&policies);
        let one = vec![query(peer(count / 2), 7); 1_000];
        assert_eq!(spd.lookup(&one[0]), Some(count / 2));
        lookups(criterion, "spd/one peer", count, &spd, &one);
        if count >= 1_000 {
            for number in [50, 1_000] {
                let queries = peers(number, count);
                assert!(queries.iter().all(|query| spd.lookup(query).is_some()));
                let name = format!("spd/{number} peers");
                lookups(criterion, &name, count, &spd, &queries);
            }
        }
        let miss = vec![query([203, 0, 113, 1], 7); 1_000];
        assert_eq!(spd.lookup(&miss[0]), None);
        lookups(criterion, "spd/miss", count, &spd, &miss);
    }

    let mut policies = hosts(100_000);
    policies.push(PolicySpec {
        selector: Selector {
            local: "192.0.2.0/24".parse().expect("a prefix"),
            remote: "203.0.113.0/24".parse().expect("a prefix"),
            geneve: Geneve::Either,
            vnis: Vec::new(),
        },
        order: 200,
        action: Action::Bypass,
    });
    let spd = Spd::new(&policies);
    let prefix = vec![query([203, 0, 113, 1], 7); 1_000];
    assert_eq!(spd.lookup(&prefix[0]), Some(100_000));
    lookups(criterion, "spd/prefix", 100_001, &spd, &prefix);

    let ranges = (0..1_000).map(|range| {
        let mut policy = hosts(1).remove(0);
        let (first, last) = (range * 10, range * 10 + 8);
        policy.selector.vnis = vec![VniRange { first, last }];
        policy
    });
    let ranges: Vec<_> = ranges.collect();
    let spd = Spd::new(&ranges);
    let vnis = (0..1_000_u32).map(|number| query(peer(0), number * 7919 % 1_000 * 10 + 4));
    let vnis: Vec<_> = vnis.collect();
    assert!(vnis.iter().all(|query| spd.lookup(query).is_some()));
    lookups(criterion, "spd/VNIs", 1_000, &spd, &vnis);

    let mut group = criterion.benchmark_group("spd/compile");
    group.sample_size(10);
    let many = hosts(100_000);
    group.bench_function("100000 hosts", |bencher| {
        bencher.iter(|| Spd::new(black_box(&many)));
    });
    let policies: Vec<_> = (0..10)
        .flat_map(|order| {
            ranges.iter().cloned().map(move |mut policy| {
                // Overlapping, and in another order than the VNIs.
                policy.order = policy.selector.vnis[0].first * 7919 % 9973;
                policy.selector.vnis[0].last += 100 * order;
                policy
            })
        })
        .collect();
    group.bench_function("10000 ranges of VNIs", |bencher| {
        bencher.iter(|| Spd::new(black_box(&policies)));
    });
}

criterion_group! {
    name = spd;
    config = Criterion::default()
        .warm_up_time(Duration::from_millis(300))
        .measurement_time(Duration::from_secs(1))
        .sample_size(30);
    targets = benches
}
criterion_main!(spd);

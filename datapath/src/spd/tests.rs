use std::net::{IpAddr, Ipv6Addr};
use std::time::{Duration, Instant};

use culvert_proto::policy::{Action, Selector, VniRange};
use proptest::prelude::*;
use proptest::sample::select;

use super::*;

/// What `Spd::lookup` should say, by going through the policies.
fn oracle(policies: &[PolicySpec], query: &Query) -> Option<u32> {
    let [local, remote] =
        [query.local, query.remote].map(|address| Ipv6Addr::from(address).to_canonical());
    // A selector has one IP version; so has a packet.
    if local.is_ipv4() != remote.is_ipv4() {
        return None;
    }
    (0..)
        .zip(policies)
        .filter(|(_, policy)| {
            let selector = &policy.selector;
            let side = match selector.geneve {
                Geneve::Either => true,
                Geneve::Local => query.sides != Sides::Remote,
                Geneve::Remote => query.sides != Sides::Local,
                Geneve::Both => query.sides == Sides::Both,
            };
            let mut vnis = selector.vnis.iter();
            side && selector.local.contains(&local)
                && selector.remote.contains(&remote)
                && (selector.vnis.is_empty()
                    || query.vni.is_some_and(|vni| {
                        vnis.any(|range| (range.first..=range.last).contains(&vni))
                    }))
        })
        .min_by_key(|&(index, policy)| (policy.order, &policy.selector, index))
        .map(|(index, _)| index)
}

/// A policy from texts.
fn policy(order: u32, local: &str, remote: &str, geneve: Geneve, vnis: &[&str]) -> PolicySpec {
    PolicySpec {
        selector: Selector {
            local: local.parse().unwrap(),
            remote: remote.parse().unwrap(),
            geneve,
            vnis: vnis.iter().map(|range| range.parse().unwrap()).collect(),
        },
        order,
        action: Action::Discard,
    }
}

/// A query from texts.
fn query(local: &str, remote: &str, sides: Sides, vni: Option<u32>) -> Query {
    let [local, remote] = [local, remote].map(|text| bytes(text.parse().unwrap()));
    Query {
        local,
        remote,
        sides,
        vni,
    }
}

/// One of 16 addresses, that differ in their first, middle and last bits.
fn address(v4: bool, seed: u8) -> IpAddr {
    let [first, middle, last] = [(seed & 3) << 6, (seed >> 2) & 1, (seed >> 3) & 1];
    if v4 {
        [first, middle, 0, last].into()
    } else if seed & 3 == 3 {
        // Mapped, but in an IPv6 prefix; a packet that has it counts as IPv4.
        let [.., a, b] = [0, middle, 0, last].map(u16::from);
        [0, 0, 0, 0, 0, 0xffff, a << 8, b].into()
    } else {
        let segment = u16::from(first) << 8;
        [segment, 0, 0, u16::from(middle), 0, 0, 0, u16::from(last)].into()
    }
}

fn prefix(v4: bool) -> impl Strategy<Value = String> {
    let lengths = if v4 {
        vec![0, 1, 2, 8, 15, 16, 24, 31, 32, 32, 32]
    } else {
        vec![0, 1, 2, 64, 80, 96, 104, 112, 127, 128, 128, 128]
    };
    (any::<u8>(), select(lengths))
        .prop_map(move |(seed, length)| format!("{}/{length}", address(v4, seed)))
}

/// Ascending and apart, by the distances between their ends.
fn vnis() -> impl Strategy<Value = Vec<VniRange>> {
    let list = prop::collection::vec((0..4_u32, 0..4_u32), 1..4).prop_map(|steps| {
        let mut next = 0;
        let ranges = steps.into_iter().map(|(gap, length)| {
            let first = next + gap;
            let last = first + length;
            next = last + 2;
            VniRange { first, last }
        });
        ranges.collect()
    });
    let whole = VniRange {
        first: 0,
        last: 0xff_ffff,
    };
    prop_oneof![3 => Just(Vec::new()), 4 => list, 1 => Just(vec![whole])]
}

fn policies() -> impl Strategy<Value = Vec<PolicySpec>> {
    let prefixes = any::<bool>().prop_flat_map(|v4| (prefix(v4), prefix(v4)));
    let mixed = (prefix(true), prefix(false));
    let prefixes = prop_oneof![20 => prefixes, 1 => mixed];
    let geneve = select(vec![
        Geneve::Either,
        Geneve::Local,
        Geneve::Remote,
        Geneve::Both,
    ]);
    let policy =
        (prefixes, geneve, vnis(), 0..4_u32).prop_map(|((local, remote), geneve, vnis, order)| {
            let mut policy = policy(order, &local, &remote, geneve, &[]);
            policy.selector.local = policy.selector.local.trunc();
            policy.selector.remote = policy.selector.remote.trunc();
            policy.selector.vnis = vnis;
            policy
        });
    prop::collection::vec(policy, 0..24)
}

fn queries() -> impl Strategy<Value = Vec<Query>> {
    let versions = prop_oneof![
        4 => Just((true, true)),
        4 => Just((false, false)),
        1 => Just((true, false)),
    ];
    let sides = select(vec![Sides::Local, Sides::Remote, Sides::Both]);
    let query = (
        versions,
        any::<[u8; 2]>(),
        sides,
        prop::option::of(0..24_u32),
    )
        .prop_map(|((local, remote), [a, b], sides, vni)| Query {
            local: bytes(address(local, a)),
            remote: bytes(address(remote, b)),
            sides,
            vni,
        });
    prop::collection::vec(query, 1..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn the_same_as_going_through_the_policies(policies in policies(), queries in queries()) {
        // RFC 4303 §3.3.1 [3.3.1-lookup]
        let spd = Spd::new(&policies);
        for query in queries {
            prop_assert_eq!(spd.lookup(&query), oracle(&policies, &query), "{:?}", query);
        }
    }
}

#[test]
fn no_policies_no_policy() {
    let spd = Spd::default();
    assert_eq!(
        spd.lookup(&query("192.0.2.1", "192.0.2.2", Sides::Both, None)),
        None
    );
    assert_eq!(
        spd.lookup(&query("2001:db8::1", "2001:db8::2", Sides::Local, Some(1))),
        None
    );
}

#[test]
fn versions_are_apart() {
    let all = |order, prefix| policy(order, prefix, prefix, Geneve::Either, &[]);
    let v4 = query("192.0.2.1", "192.0.2.2", Sides::Local, None);
    let v6 = query("2001:db8::1", "2001:db8::2", Sides::Local, None);
    let mixed = query("192.0.2.1", "2001:db8::2", Sides::Local, None);
    let only_v6 = Spd::new([&all(0, "::/0")]);
    assert_eq!(only_v6.lookup(&v4), None);
    assert_eq!(only_v6.lookup(&v6), Some(0));
    let mapped = Spd::new([&all(0, "::ffff:0:0/96")]);
    assert_eq!(mapped.lookup(&v4), None);
    let both = Spd::new([&all(0, "0.0.0.0/0"), &all(1, "::/0")]);
    assert_eq!(both.lookup(&v4), Some(0));
    assert_eq!(both.lookup(&v6), Some(1));
    assert_eq!(both.lookup(&mixed), None);
    let of_both = policy(0, "0.0.0.0/0", "::/0", Geneve::Either, &[]);
    assert_eq!(Spd::new([&of_both]).lookup(&mixed), None);
}

#[test]
fn the_lowest_order_counts_however_long_the_prefixes() {
    let hosts = policy(7, "192.0.2.1/32", "192.0.2.2/32", Geneve::Either, &[]);
    let query = query("192.0.2.1", "192.0.2.2", Sides::Remote, None);
    for (order, found) in [(6, 1), (8, 0)] {
        let net = policy(order, "0.0.0.0/0", "192.0.2.0/24", Geneve::Either, &[]);
        assert_eq!(Spd::new([&hosts, &net]).lookup(&query), Some(found));
    }
}

#[test]
fn of_equal_order_the_smaller_selector_counts() {
    // 192.0.0.0 is smaller than 192.0.2.1; on equal prefixes Local is smaller than Remote, no VNIs than any.
    let net = policy(5, "192.0.0.0/16", "192.0.2.2/32", Geneve::Remote, &["1-9"]);
    let remote = policy(5, "192.0.2.1/32", "192.0.2.2/32", Geneve::Remote, &[]);
    let local = policy(5, "192.0.2.1/32", "192.0.2.2/32", Geneve::Local, &["5"]);
    let spd = Spd::new([&remote, &local, &net]);
    let find = |sides, vni| spd.lookup(&query("192.0.2.1", "192.0.2.2", sides, vni));
    assert_eq!(find(Sides::Both, Some(5)), Some(2));
    assert_eq!(find(Sides::Local, Some(5)), Some(1));
    assert_eq!(find(Sides::Remote, None), Some(0));
    assert_eq!(find(Sides::Both, Some(10)), Some(0));
    assert_eq!(find(Sides::Local, None), None);
}

#[test]
fn vnis_to_the_last() {
    let policies = [
        policy(
            1,
            "192.0.2.1/32",
            "192.0.2.2/32",
            Geneve::Either,
            &["16777215"],
        ),
        policy(
            2,
            "192.0.2.1/32",
            "192.0.2.2/32",
            Geneve::Either,
            &["0", "5-16777215"],
        ),
    ];
    let spd = Spd::new(&policies);
    let find = |vni| spd.lookup(&query("192.0.2.1", "192.0.2.2", Sides::Local, vni));
    let found = [
        Some(0),
        Some(1),
        Some(5),
        Some(0xff_fffe),
        Some(0xff_ffff),
        None,
    ]
    .map(find);
    assert_eq!(found, [Some(1), None, Some(1), Some(1), Some(0), None]);
}

#[test]
fn what_is_long_to_compile_is_not_quadratic() {
    let start = Instant::now();
    // All overlap, and the later ones begin before and end after the earlier ones.
    let nested = (0..20_000).map(|order| {
        let mut policy = policy(order, "192.0.2.1/32", "192.0.2.2/32", Geneve::Either, &[]);
        let (first, last) = (100_000 - order, 100_000 + order);
        policy.selector.vnis = vec![VniRange { first, last }];
        policy
    });
    let nested: Vec<_> = nested.collect();
    let spd = Spd::new(&nested);
    for away in [0, 1, 19_999] {
        let query = query("192.0.2.1", "192.0.2.2", Sides::Local, Some(100_000 - away));
        assert_eq!(spd.lookup(&query), Some(away));
    }
    let hosts = (0..100_000_u32).map(|host| {
        let [local, remote] =
            [0x0a00_0000, 0x0b00_0000 + host].map(|v4| std::net::Ipv4Addr::from(v4).into());
        PolicySpec {
            selector: Selector::hosts(local, remote),
            order: 1,
            action: Action::Bypass,
        }
    });
    let hosts: Vec<_> = hosts.collect();
    let spd = Spd::new(&hosts);
    assert_eq!(
        spd.lookup(&query("10.0.0.0", "11.1.0.0", Sides::Both, None)),
        Some(65536)
    );
    // A tenth of that here; what is quadratic takes minutes.
    assert!(start.elapsed() < Duration::from_secs(10));
}

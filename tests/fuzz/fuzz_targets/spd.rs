//! The SPD against a search through all policies: the same policy for every packet.
#![no_main]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_proto::policy::{Action, Geneve, PolicySpec, Selector, VniRange};
use ipnet::IpNet;
use libfuzzer_sys::fuzz_target;
use spd::{Query, Sides, Spd};

/// The code under test as it stands in the datapath, which would want eBPF and libxdp built with sanitizers.
#[path = "../../../datapath/src/spd.rs"]
#[allow(dead_code, reason = "the target does not use all of it")]
mod spd;

/// One of 256 addresses, that differ in their first, middle and last bits.
fn address(v4: bool, seed: u8) -> IpAddr {
    let [first, middle, last] = [seed << 6, seed >> 2 & 7, seed >> 5];
    let v4_address = Ipv4Addr::new(first, middle, 0, last);
    if v4 {
        v4_address.into()
    } else if seed & 3 == 3 {
        // Mapped, but in an IPv6 prefix; a packet that has it counts as IPv4.
        v4_address.to_ipv6_mapped().into()
    } else {
        Ipv6Addr::from([first, 0, 0, 0, 0, 0, 0, middle, 0, 0, 0, 0, 0, 0, 0, last]).into()
    }
}

fn prefix(v4: bool, seed: u8, length: u8) -> IpNet {
    let bits = if v4 { 32 } else { 128 };
    IpNet::new(address(v4, seed), length.min(bits)).unwrap()
}

/// A policy of seven bytes, and of two more for each range of VNIs. What is no good policy must not break anything,
/// either: ends in the wrong order, host bits, prefixes of different versions.
fn policy(input: &mut &[u8]) -> Option<PolicySpec> {
    let ([kind, order, seeds @ .., local, remote, ranges], rest) =
        input.split_first_chunk::<7>()?;
    let ranges = usize::from(ranges % 4) * 2;
    let (vnis, rest) = rest.split_at_checked(ranges)?;
    *input = rest;
    let end = |byte: u8| match byte {
        255 => u32::MAX,
        254 => 0xff_ffff,
        small => u32::from(small),
    };
    let vnis = vnis.chunks_exact(2).map(|ends| VniRange {
        first: end(ends[0]),
        last: end(ends[1]),
    });
    Some(PolicySpec {
        selector: Selector {
            local: prefix(kind & 1 == 0, seeds[0], *local),
            remote: prefix(kind & 2 == 0, seeds[1], *remote),
            geneve: [Geneve::Either, Geneve::Local, Geneve::Remote, Geneve::Both][usize::from(kind >> 2) % 4],
            vnis: vnis.collect(),
        },
        order: u32::from(order % 4),
        action: Action::Bypass,
    })
}

/// A packet of four bytes.
fn query(input: &[u8; 4]) -> Query {
    let [kind, local, remote, vni] = *input;
    let bytes = |address| match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    Query {
        local: bytes(address(kind & 1 == 0, local)),
        remote: bytes(address(kind & 2 == 0, remote)),
        sides: [Sides::Local, Sides::Remote, Sides::Both][usize::from(kind >> 3) % 3],
        vni: (kind & 4 == 0).then_some(match vni {
            255 => 0xff_ffff,
            small => u32::from(small),
        }),
    }
}

/// Whether a packet is one of the policy's.
fn matches(selector: &Selector, query: &Query) -> bool {
    let [local, remote] =
        [query.local, query.remote].map(|address| Ipv6Addr::from(address).to_canonical());
    let side = match selector.geneve {
        Geneve::Either => true,
        Geneve::Local => query.sides != Sides::Remote,
        Geneve::Remote => query.sides != Sides::Local,
        Geneve::Both => query.sides == Sides::Both,
    };
    let in_range = |vni| {
        selector
            .vnis
            .iter()
            .any(|range| (range.first..=range.last).contains(&vni))
    };
    side && local.is_ipv4() == remote.is_ipv4()
        && selector.local.contains(&local)
        && selector.remote.contains(&remote)
        && (selector.vnis.is_empty() || query.vni.is_some_and(in_range))
}

// The number of policies, the policies, and packets up to the end.
fuzz_target!(|input: &[u8]| {
    let Some((count, mut input)) = input.split_first() else {
        return;
    };
    let policies: Vec<_> = (0..count % 32).map_while(|_| policy(&mut input)).collect();
    let spd = Spd::new(&policies);
    for packet in input.as_chunks().0 {
        let query = query(packet);
        let first = (0..)
            .zip(&policies)
            .filter(|(_, policy)| matches(&policy.selector, &query))
            .min_by_key(|&(index, policy)| (policy.order, &policy.selector, index))
            .map(|(index, _)| index);
        assert_eq!(spd.lookup(&query), first, "{query:?}");
    }
});

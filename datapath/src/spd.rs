//! The SPD as workers look policies up in it (RFC 4301 §4.4.1): which policy counts for a packet.
//!
//! It is searched by tuples. Policies of the same prefix lengths make a tuple and share a hash table, whose keys
//! are addresses cut to these lengths. Tuples are tried in the order of their first policies, until none that
//! is left can come before what was found. So a lookup costs a hash lookup a tuple at most, and the number of
//! policies does not matter; with policies between hosts only, that is one.
//!
//! Of what one table finds, all policies have the same addresses: side and VNI remain. Those of any VNI are
//! decided when the table is built; for the others the VNIs are cut up there so that each piece has one policy.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::hash::BuildHasher;
use std::net::IpAddr;

use culvert_packet::headers::Address;
use culvert_proto::policy::{Geneve, PolicySpec, VniRange};
use hashbrown::{DefaultHashBuilder, HashMap, HashTable};

/// Which side's UDP port is Geneve's, 6081. A packet that has it on neither side is no Geneve and is not asked
/// about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sides {
    /// This host's.
    Local,
    /// The peer's.
    Remote,
    /// Both.
    Both,
}

/// What of a packet the SPD looks at.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// The address of this host: the source of what leaves, the destination of what comes.
    pub local: Address,
    /// The address of the peer.
    pub remote: Address,
    /// Where the port is 6081.
    pub sides: Sides,
    /// The VNI, if the packet has a Geneve header to read it from.
    pub vni: Option<u32>,
}

impl PartialEq for Query {
    #[inline]
    fn eq(&self, other: &Self) -> bool {
        difference(&self.local, &other.local) | difference(&self.remote, &other.remote) == 0
            && (self.sides, self.vni) == (other.sides, other.vni)
    }
}

/// Zero for the same addresses. Word by word, as a packet's headers were just written: sixteen bytes at once would have to
/// wait until these are in the cache.
#[inline]
fn difference(one: &Address, other: &Address) -> u64 {
    let words = one.as_chunks().0.iter().zip(other.as_chunks().0);
    words.fold(0, |difference, (one, other)| {
        difference | (u64::from_ne_bytes(*one) ^ u64::from_ne_bytes(*other))
    })
}

/// The policies, compiled. IPv4 and IPv6 stand apart, as `::/0` would have the IPv4-mapped addresses in it.
#[derive(Debug, Default)]
pub struct Spd {
    v4: Vec<Tuple>,
    v6: Vec<Tuple>,
}

impl Spd {
    /// Compiles policies in any order; the one at place `i` is found as `i`.
    #[must_use]
    pub fn new<'a>(policies: impl IntoIterator<Item = &'a PolicySpec>) -> Self {
        let mut sorted: Vec<(u32, &PolicySpec)> = (0..).zip(policies).collect();
        sorted.sort_by_key(|&(index, policy)| (policy.order, &policy.selector, index));
        let (mut v4, mut v6) = (Builder::default(), Builder::default());
        for (rank, (index, policy)) in (0..).zip(sorted) {
            let (local, remote) = (&policy.selector.local, &policy.selector.remote);
            let builder = match (local.addr(), remote.addr()) {
                (IpAddr::V4(_), IpAddr::V4(_)) => &mut v4,
                (IpAddr::V6(_), IpAddr::V6(_)) => &mut v6,
                // No packet has addresses of both versions.
                _ => continue,
            };
            let masks = Pair {
                local: mask(local.max_prefix_len(), local.prefix_len()),
                remote: mask(remote.max_prefix_len(), remote.prefix_len()),
            };
            let key = Pair::new(bytes(local.addr()), bytes(remote.addr())).cut(masks);
            builder.add(Ranked::new(rank, index), masks, key, policy);
        }
        Self {
            v4: v4.finish(),
            v6: v6.finish(),
        }
    }

    // RFC 4303 §3.3.1 [3.3.1-lookup]
    /// The policy that counts for a packet: of those that it matches, the one with the lowest order, and of
    /// these the one with the smallest selector.
    #[inline]
    #[must_use]
    pub fn lookup(&self, query: &Query) -> Option<u32> {
        let addresses = Pair::new(query.local, query.remote);
        let tuples = match (is_mapped(query.local), is_mapped(query.remote)) {
            (true, true) => &self.v4,
            (false, false) => &self.v6,
            _ => return None,
        };
        let mut best = Ranked::NONE;
        for tuple in tuples {
            if best < tuple.first {
                break;
            }
            if let Some(bucket) = tuple.get(addresses.cut(tuple.masks)) {
                best = best.min(bucket.find(query.sides, query.vni));
            }
        }
        best.index()
    }
}

/// A policy's rank among all of them, above its index; so the lesser is the one that counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Ranked(u64);

impl Ranked {
    /// No policy; greater than any. There are never 2^32 policies.
    const NONE: Self = Self(u64::MAX);

    fn new(rank: u32, index: u32) -> Self {
        Self(u64::from(rank) << 32 | u64::from(index))
    }

    #[expect(
        clippy::cast_possible_truncation,
        reason = "the lower half is the index"
    )]
    fn index(self) -> Option<u32> {
        (self != Self::NONE).then_some(self.0 as u32)
    }
}

/// Two addresses, or two masks for them: network order in memory, whatever numbers that makes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pair {
    local: u128,
    remote: u128,
}

impl Pair {
    fn new(local: Address, remote: Address) -> Self {
        Self {
            local: u128::from_ne_bytes(local),
            remote: u128::from_ne_bytes(remote),
        }
    }

    fn cut(self, masks: Self) -> Self {
        Self {
            local: self.local & masks.local,
            remote: self.remote & masks.remote,
        }
    }
}

/// The mask of a prefix as long as `length`, of addresses that have `bits` bits. Those of IPv4 are the last
/// of an [`Address`].
fn mask(bits: u8, length: u8) -> u128 {
    u128::MAX
        .checked_shl(u32::from(bits.saturating_sub(length)))
        .unwrap_or(0)
        .to_be()
}

fn bytes(address: IpAddr) -> Address {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Whether it is an IPv4 address.
#[inline]
fn is_mapped(address: Address) -> bool {
    address[..12] == culvert_packet::headers::mapped([0; 4])[..12]
}

/// The policies of one IP version and the same prefix lengths.
#[derive(Debug)]
struct Tuple {
    masks: Pair,
    /// The one of them that comes before the others.
    first: Ranked,
    hasher: DefaultHashBuilder,
    table: HashTable<Bucket>,
}

impl Tuple {
    fn new(masks: Pair, first: Ranked) -> Self {
        Self {
            masks,
            first,
            hasher: DefaultHashBuilder::default(),
            table: HashTable::new(),
        }
    }

    #[inline]
    fn get(&self, key: Pair) -> Option<&Bucket> {
        self.table
            .find(self.hasher.hash_one(key), |bucket| bucket.key == key)
    }

    /// The bucket of `key`, a new one if there is none.
    fn bucket(&mut self, key: Pair) -> &mut Bucket {
        let hash = |key: &Pair| self.hasher.hash_one(key);
        let same = |bucket: &Bucket| bucket.key == key;
        self.table
            .entry(hash(&key), same, |bucket| hash(&bucket.key))
            .or_insert_with(|| Bucket {
                key,
                any: [Ranked::NONE; 3],
                some: None,
            })
            .into_mut()
    }
}

/// Places of sides in arrays that have something for each. A packet with the port on both sides is looked up in all.
const LOCAL: usize = 0;
const REMOTE: usize = 1;
const BOTH: usize = 2;

/// The policies of the same prefixes. It fills a cache line, and a table's memory has it in one and not two:
/// that is why it holds its key, which is not so in a hash map.
#[derive(Debug)]
#[repr(align(64))]
struct Bucket {
    /// The prefixes' addresses.
    key: Pair,
    /// For any VNI, and for packets without one.
    any: [Ranked; 3],
    /// For some VNIs. Hardly any SPD has them, so that they are not in the way.
    some: Option<Box<[Vnis; 3]>>,
}

const _: () = assert!(size_of::<Bucket>() == 64);

impl Bucket {
    #[inline]
    fn find(&self, sides: Sides, vni: Option<u32>) -> Ranked {
        let of = |side: usize| match (&self.some, vni) {
            (Some(some), Some(vni)) => self.any[side].min(some[side].find(vni)),
            _ => self.any[side],
        };
        match sides {
            Sides::Local => of(LOCAL),
            Sides::Remote => of(REMOTE),
            Sides::Both => of(LOCAL).min(of(REMOTE)).min(of(BOTH)),
        }
    }
}

/// Ranges of VNIs that policies are for, as they come.
type Ranges = Vec<(VniRange, Ranked)>;

/// The VNIs in pieces: from each start up to the next one, it is that policy.
#[derive(Debug, Default)]
struct Vnis {
    /// Ascending. Apart from the policies, so that a search goes through little memory.
    starts: Vec<u32>,
    policies: Vec<Ranked>,
}

impl Vnis {
    /// Cuts ranges that may overlap into pieces, by a sweep over their ends.
    fn new(mut ranges: Ranges) -> Self {
        ranges.sort_unstable_by_key(|(range, _)| range.first);
        let ends = ranges
            .iter()
            .flat_map(|(range, _)| [range.first, range.last.saturating_add(1)]);
        let mut ends: Vec<u32> = ends.collect();
        ends.sort_unstable();
        ends.dedup();
        let mut ranges = ranges.into_iter().peekable();
        // Ranges that have begun, first the one that counts. Those that are over leave when they are first.
        let mut begun = BinaryHeap::new();
        let mut pieces = Self::default();
        for start in ends {
            while let Some((range, policy)) = ranges.next_if(|(range, _)| range.first == start) {
                begun.push(Reverse((policy, range.last)));
            }
            while begun.peek().is_some_and(|Reverse((_, last))| *last < start) {
                begun.pop();
            }
            let policy = begun.peek().map(|Reverse((policy, _))| *policy);
            pieces.push(start, policy.unwrap_or(Ranked::NONE));
        }
        pieces
    }

    fn push(&mut self, start: u32, policy: Ranked) {
        if self.policies.last() != Some(&policy) {
            self.starts.push(start);
            self.policies.push(policy);
        }
    }

    fn find(&self, vni: u32) -> Ranked {
        let pieces = self.starts.partition_point(|start| *start <= vni);
        let piece = self.policies[..pieces].last();
        piece.copied().unwrap_or(Ranked::NONE)
    }
}

/// The tuples of one IP version in the making.
#[derive(Default)]
struct Builder {
    tuples: Vec<Tuple>,
    /// Where the tuple of these masks is.
    places: HashMap<Pair, usize>,
    /// Ranges of VNIs in the bucket of a tuple, for each side.
    ranges: HashMap<(usize, Pair), [Ranges; 3]>,
}

impl Builder {
    /// Adds a policy that comes after all that are there. Thereby tuples come in the order of their first policies.
    fn add(&mut self, ranked: Ranked, masks: Pair, key: Pair, policy: &PolicySpec) {
        let place = *self.places.entry(masks).or_insert_with(|| {
            self.tuples.push(Tuple::new(masks, ranked));
            self.tuples.len() - 1
        });
        let bucket = self.tuples[place].bucket(key);
        let sides: &[usize] = match policy.selector.geneve {
            Geneve::Either => &[LOCAL, REMOTE],
            Geneve::Local => &[LOCAL],
            Geneve::Remote => &[REMOTE],
            Geneve::Both => &[BOTH],
        };
        for &side in sides {
            // Behind a policy for any VNI nothing counts.
            if bucket.any[side] != Ranked::NONE {
                continue;
            }
            if policy.selector.vnis.is_empty() {
                bucket.any[side] = ranked;
            } else {
                let ranges = &mut self.ranges.entry((place, key)).or_default()[side];
                ranges.extend(policy.selector.vnis.iter().map(|range| (*range, ranked)));
            }
        }
    }

    fn finish(mut self) -> Vec<Tuple> {
        for ((place, key), ranges) in self.ranges {
            self.tuples[place].bucket(key).some = Some(Box::new(ranges.map(Vnis::new)));
        }
        self.tuples
    }
}

#[cfg(test)]
mod tests;

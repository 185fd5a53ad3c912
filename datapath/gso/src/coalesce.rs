//! In: packets of a batch that follow each other in one inner flow are joined to one superpacket, by the rules of the
//! kernel's GRO (`geneve_gro_receive`, `inet_gro_receive`, `ipv6_gro_receive`, `tcp_gro_receive`,
//! `udp_gro_receive_segment` of Linux 6.18).
//!
//! [`Coalescer::coalesce`] looks at a batch and says which frames make a group. Nothing is copied: a group is written as
//! its vnet header, its first frame with changed headers ([`Coalescer::prepare`]), and the payload of the others
//! ([`Coalescer::rest`]). Nothing is kept for the next batch.
//!
//! **Order.** A flow is what has the same outer and inner addresses, VNI, protocol and ports.
//!
//! - Packets of one flow stay in their order, whether they are joined or not: one that cannot be joined ends its flow's
//!   group, and what comes after it is in another.
//! - A packet that belongs to no flow (no Geneve, no TCP or UDP in it, a fragment) passes none and is passed by none.
//! - Groups go out in the order of their first packets. So packets of *different* flows may pass each other.
//!
//! **Where it joins less than the kernel**: IPv6 extension headers; IPv4 identifications that stay the same, as the header
//! has no word for them (`SKB_GSO_TCP_FIXEDID`), but for those of the outer header with DF, which the kernel ignores, too;
//! TCP segments shorter than [`LEAST`].
//! And what it joins becomes again what it was, also TCP's urgent pointer without URG.

mod candidate;

use std::ops::Range;

use culvert_packet::headers::{TCP, UDP};

use self::candidate::{Candidate, Class};
use crate::fields::{Ip, TCP_CHECKSUM, TCP_FLAGS, UDP_CHECKSUM, flag, low, set_word, word};
use crate::segment::LEAST;
use crate::vnet::{Checksum, Gso, Header, Kind, Tunnel};

/// Groups that may still grow. More flows in a batch end the oldest.
const OPEN: usize = 32;

/// Longest superpacket, in bytes from its Ethernet header on.
const LONGEST: usize = 65535;

/// Most datagrams that are joined (`UDP_GRO_CNT_MAX`).
const MOST_DATAGRAMS: u16 = 64;

/// Whether checksums are computed before packets are joined, and lose them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksums {
    /// They are right, as who authenticated the packet had computed them. Nothing is computed, also not by the kernel.
    Trusted,
    /// They are computed, but those of packets that were authenticated; a packet with a wrong one goes on as it is.
    Verified,
}

/// A frame, and what is known of it.
pub trait Packet: AsRef<[u8]> {
    /// Whether somebody has authenticated it, who vouches for its checksums, too.
    fn authenticated(&self) -> bool;
}

/// A frame of which nothing is known.
impl Packet for Vec<u8> {
    fn authenticated(&self) -> bool {
        false
    }
}

/// What may be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// TCP is joined: the kernel takes UDP tunnels' superpackets ([`Layout::Tunnel`](crate::vnet::Layout::Tunnel)).
    pub tcp: bool,
    /// UDP datagrams are joined, too.
    pub udp: bool,
    /// And those in tunnels that have a checksum (`TUN_F_UDP_TUNNEL_GSO_CSUM`).
    pub tunnel_checksum: bool,
    /// Who has computed checksums.
    pub checksums: Checksums,
}

/// Joins the packets of a batch. It keeps its memory, and nothing else, for the next.
#[derive(Debug)]
pub struct Coalescer {
    settings: Settings,
    members: Vec<Member>,
    groups: Vec<Group>,
    /// Indices of groups that may still grow, the newest last.
    open: Vec<usize>,
}

/// What of a frame is joined to those before it, and the next frame of its group.
#[derive(Clone, Debug)]
struct Member {
    payload: Range<u16>,
    next: Option<usize>,
}

/// Frames that go to the kernel as one packet: one of them, at least.
#[derive(Clone, Debug)]
pub struct Group {
    first: usize,
    last: usize,
    count: u16,
    /// Length of the whole packet.
    length: usize,
    /// TCP flags of those that were joined.
    flags: u8,
    /// How the first frame is made. `None`: not known, so that nothing was joined to it.
    shape: Option<Candidate>,
}

impl Group {
    /// Index of its first frame.
    #[must_use]
    pub fn first(&self) -> usize {
        self.first
    }

    /// Number of its frames.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.count)
    }

    /// Length of the packet in bytes, without vnet header.
    #[expect(clippy::len_without_is_empty, reason = "no group is empty")]
    #[must_use]
    pub fn len(&self) -> usize {
        self.length
    }
}

impl Coalescer {
    /// One that allocates nothing for batches of up to `frames` frames.
    #[must_use]
    pub fn new(settings: Settings, frames: usize) -> Self {
        Self {
            settings,
            members: Vec::with_capacity(frames),
            groups: Vec::with_capacity(frames),
            open: Vec::with_capacity(OPEN),
        }
    }

    /// Joins what can be joined of `frames`, which came in this order, and returns the groups, to be sent in their order.
    pub fn coalesce<F: Packet>(&mut self, frames: &[F]) -> &[Group] {
        self.members.clear();
        self.groups.clear();
        self.open.clear();
        for (index, frame) in frames.iter().enumerate() {
            let bytes = frame.as_ref();
            self.members.push(Member {
                payload: 0..0,
                next: None,
            });
            let trusted = self.settings.checksums == Checksums::Trusted || frame.authenticated();
            match Candidate::of(bytes, &self.settings, trusted) {
                Class::NoFlow => {
                    self.open.clear();
                    self.start(index, bytes.len(), None);
                }
                Class::Flow(candidate) => self.take(frames, index, bytes, candidate),
            }
        }
        &self.groups
    }

    /// The groups of the last batch.
    #[must_use]
    pub fn groups(&self) -> &[Group] {
        &self.groups
    }

    /// The frames of a group after the first, in their order, and which part of each goes behind the first.
    pub fn rest(&self, group: &Group) -> impl Iterator<Item = (usize, Range<usize>)> + '_ {
        let next = |index: usize| self.members.get(index).and_then(|member| member.next);
        std::iter::successors(next(group.first), move |index| next(*index)).map(|index| {
            let Range { start, end } = self.members[index].payload;
            (index, usize::from(start)..usize::from(end))
        })
    }

    /// Changes the headers of the first frame of a group to those of the whole, and returns the vnet header to be written
    /// before it.
    pub fn prepare(&self, group: &Group, first: &mut [u8]) -> Header {
        match &group.shape {
            Some(shape) if first.len() == usize::from(shape.end) => prepare(group, shape, first),
            _ => Header {
                valid: true,
                ..Header::default()
            },
        }
    }

    /// A frame of a flow: joins it to its flow's group, or ends that.
    fn take<F: Packet>(&mut self, frames: &[F], index: usize, bytes: &[u8], candidate: Candidate) {
        let own = self.open.iter().position(|open| {
            let group = &self.groups[*open];
            group.shape.as_ref().is_some_and(|shape| {
                shape.same_flow(frames[group.first].as_ref(), &candidate, bytes)
            })
        });
        if let Some(place) = own {
            let open = self.open[place];
            let group = &mut self.groups[open];
            if group.takes(frames[group.first].as_ref(), &candidate, bytes) {
                let complete = group.append(index, &candidate);
                let member = &mut self.members[index];
                member.payload = candidate.payload..candidate.end;
                let last = std::mem::replace(&mut group.last, index);
                self.members[last].next = Some(index);
                if complete {
                    self.open.remove(place);
                }
                return;
            }
            self.open.remove(place);
        }
        let open = candidate.joins
            && candidate.flags & (flag::FIN | flag::PSH) == 0
            && (!candidate.tcp || usize::from(candidate.size()) >= LEAST);
        self.start(index, bytes.len(), Some(candidate));
        if open {
            if self.open.len() == OPEN {
                self.open.remove(0);
            }
            self.open.push(self.groups.len() - 1);
        }
    }

    fn start(&mut self, index: usize, length: usize, shape: Option<Candidate>) {
        self.groups.push(Group {
            first: index,
            last: index,
            count: 1,
            length,
            flags: 0,
            shape,
        });
    }
}

impl Group {
    /// Whether the frame `bytes` of the same flow may go behind those that are in the group, whose first is `first`.
    fn takes(&self, first: &[u8], candidate: &Candidate, bytes: &[u8]) -> bool {
        let Some(shape) = &self.shape else {
            return false;
        };
        let joined = self.length - usize::from(shape.payload);
        candidate.joins
            && candidate.size() <= shape.size()
            && self.length + usize::from(candidate.size()) <= LONGEST
            && (shape.tcp || self.count < MOST_DATAGRAMS)
            && shape.alike(first, candidate, bytes, self.count, joined)
    }

    /// Counts it in; says whether it must be the last.
    fn append(&mut self, index: usize, candidate: &Candidate) -> bool {
        let size = self.shape.as_ref().map_or(0, Candidate::size);
        debug_assert!(index > self.last);
        self.count += 1;
        self.length += usize::from(candidate.size());
        self.flags |= candidate.flags & (flag::FIN | flag::PSH);
        candidate.size() < size || self.flags != 0
    }
}

/// `inet_gro_complete`, `tcp4_gro_complete` and their like.
fn prepare(group: &Group, shape: &Candidate, first: &mut [u8]) -> Header {
    let joined = group.count > 1;
    if !joined && !shape.partial {
        return Header {
            valid: true,
            ..Header::default()
        };
    }
    let (outer, inner) = (shape.outer, shape.inner);
    let transport = inner.transport();
    let (protocol, field) = if shape.tcp {
        (TCP, TCP_CHECKSUM)
    } else {
        (UDP, UDP_CHECKSUM)
    };
    let mut gso = None;
    if joined {
        inner.set_end(first, group.length);
        if shape.tcp {
            first[transport + TCP_FLAGS] |= group.flags;
        } else {
            set_word(first, transport + 4, low(group.length - transport));
        }
        gso = Some(Gso {
            kind: shape.kind(),
            size: shape.size(),
            ecn: false,
            tunnel: Some(tunnel(outer, inner, group.length, first)),
        });
    }
    // What is to be completed has the sum of the pseudo header, not its complement.
    let pseudo = inner.pseudo(first, protocol, group.length - transport);
    set_word(first, transport + field, crate::checksum::fold(pseudo));
    Header {
        checksum: Some(Checksum {
            start: inner.transport,
            offset: low(field),
        }),
        valid: false,
        headers: shape.payload,
        gso,
    }
}

/// Makes the outer headers those of a packet of `length` bytes.
fn tunnel(outer: Ip, inner: Ip, length: usize, first: &mut [u8]) -> Tunnel {
    let at = outer.transport();
    outer.set_end(first, length);
    set_word(first, at + 4, low(length - at));
    let checksum = word(first, at + UDP_CHECKSUM) != 0;
    if checksum {
        let pseudo = outer.pseudo(first, UDP, length - at);
        set_word(first, at + UDP_CHECKSUM, crate::checksum::fold(pseudo));
    }
    Tunnel {
        v6: outer.version == culvert_packet::headers::Version::V6,
        checksum,
        outer_transport: outer.transport,
        inner_network: inner.at,
    }
}

impl Candidate {
    fn kind(&self) -> Kind {
        use culvert_packet::headers::Version;
        match (self.tcp, self.inner.version) {
            (false, _) => Kind::Udp,
            (true, Version::V4) => Kind::TcpV4,
            (true, Version::V6) => Kind::TcpV6,
        }
    }
}

//! What the SPD looks at in a packet of Geneve: which side's port it is, and the VNI.

use culvert_packet::headers::{Address, GENEVE_PORT, Packet};

use crate::spd::{Query, Sides};

/// UDP header.
const UDP: usize = 8;
/// Geneve's fixed header (RFC 8926 §3.4).
const GENEVE: usize = 8;

/// What tells packets of Geneve between the same addresses apart.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geneve {
    sides: Sides,
    vni: Option<u32>,
}

impl Geneve {
    /// Of the packet whose UDP header is at `udp` of `frame`; it comes from this host if it is `outbound`. `None` if it is
    /// no Geneve.
    #[inline]
    pub(crate) fn read(frame: &[u8], udp: usize, outbound: bool) -> Option<Self> {
        let header: [u8; UDP] = frame.read(udp)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let [from, to] = [word(0), word(2)].map(|port| port == GENEVE_PORT);
        let (ours, theirs) = if outbound { (from, to) } else { (to, from) };
        let sides = match (ours, theirs) {
            (true, true) => Sides::Both,
            (true, false) => Sides::Local,
            (false, true) => Sides::Remote,
            (false, false) => return None,
        };
        let vni = vni(frame, udp, usize::from(word(4)));
        Some(Self { sides, vni })
    }

    /// The query for a packet from the one address, which is this host's if it is `outbound`, to the other.
    #[inline]
    pub(crate) fn query(self, [source, destination]: [Address; 2], outbound: bool) -> Query {
        let (local, remote) = if outbound {
            (source, destination)
        } else {
            (destination, source)
        };
        Query {
            local,
            remote,
            sides: self.sides,
            vni: self.vni,
        }
    }
}

/// The VNI, if the datagram of `length` bytes has a Geneve header of version 0.
#[inline]
fn vni(frame: &[u8], udp: usize, length: usize) -> Option<u32> {
    if length < UDP + GENEVE {
        return None;
    }
    let [version, _, _, _, a, b, c, _]: [u8; GENEVE] = frame.read(udp + UDP)?;
    (version >> 6 == 0).then_some(u32::from_be_bytes([0, a, b, c]))
}

//! A batch of frames, joined, and held against what it was.

use culvert_gso::Coalescer;
use culvert_gso::coalesce::{Checksums, Settings};
use culvert_gso::vnet::Header;

use super::{cut, written};

pub const ANY_LENGTH: usize = 65535;

pub const EVERYTHING: Settings = Settings {
    tcp: true,
    udp: true,
    tunnel_checksum: true,
    checksums: Checksums::Trusted,
};

pub const VERIFIED: Settings = Settings {
    checksums: Checksums::Verified,
    ..EVERYTHING
};

/// The groups of a batch, as the indices of their frames.
pub fn groups(settings: Settings, frames: &[Vec<u8>]) -> Vec<Vec<usize>> {
    let mut coalescer = Coalescer::new(settings, frames.len());
    coalescer.coalesce(frames);
    coalescer
        .groups()
        .iter()
        .map(|group| {
            let rest = coalescer.rest(group).map(|(index, _)| index);
            let all: Vec<usize> = std::iter::once(group.first()).chain(rest).collect();
            assert_eq!(all.len(), group.count());
            all
        })
        .collect()
}

/// Without what the kernel's GRO does not keep: identification, and so the header checksum, of outer IPv4 with DF.
fn essence(frame: &[u8]) -> Vec<u8> {
    let mut bytes = frame.to_vec();
    if let Ok(headers) = culvert_packet::headers::walk(frame)
        && frame[headers.ip] >> 4 == 4
        && frame[headers.ip + 6] & 0x40 != 0
    {
        bytes[headers.ip + 4..headers.ip + 6].fill(0);
        bytes[headers.ip + 10..headers.ip + 12].fill(0);
    }
    bytes
}

/// What the frame's flow is known by: addresses, VNI, protocol, ports.
pub fn flow(frame: &[u8]) -> Option<Vec<u8>> {
    let whole = |bytes: &[u8]| {
        let headers = culvert_packet::headers::walk(bytes).ok()?;
        let whole = headers.fragment == culvert_packet::headers::Fragment::Whole;
        whole.then_some(headers)
    };
    let outer = whole(frame)?;
    let udp = frame.get(outer.transport..outer.transport + 16)?;
    if outer.protocol != 17 || udp[2..4] != 6081_u16.to_be_bytes() {
        return None;
    }
    if udp[8] & 0xc0 != 0 || udp[9] & 0x80 != 0 || udp[10..12] != [0x65, 0x58] {
        return None;
    }
    let ethernet = outer.transport + 16 + usize::from(udp[8] & 0x3f) * 4;
    let frame = frame.get(ethernet..)?;
    let inner = whole(frame)?;
    let least = match inner.protocol {
        6 => 20,
        17 => 8,
        _ => return None,
    };
    let transport = frame.get(inner.transport..inner.transport + least)?;
    Some(
        [
            &outer.source[..],
            &outer.destination,
            &udp[12..16],
            &inner.source,
            &inner.destination,
            &[inner.protocol],
            &transport[..4],
        ]
        .concat(),
    )
}

/// Cuts each group again: it must be what it was.
pub fn check(settings: Settings, frames: &[Vec<u8>]) {
    let mut coalescer = Coalescer::new(settings, frames.len());
    coalescer.coalesce(frames);
    let mut seen = vec![false; frames.len()];
    let mut before = None;
    for group in coalescer.groups() {
        assert!(
            before < Some(group.first()),
            "groups stand in the order of their first frames"
        );
        before = Some(group.first());
        let (header, bytes) = written(&coalescer, group, frames);
        assert_eq!(bytes.len(), group.len());
        assert!(bytes.len() <= ANY_LENGTH || group.count() == 1);
        assert_eq!(header.gso.is_some(), group.count() > 1);
        let rest = coalescer.rest(group).map(|(index, _)| index);
        let members: Vec<usize> = std::iter::once(group.first()).chain(rest).collect();
        assert!(members.is_sorted());
        for member in &members {
            assert!(!std::mem::replace(&mut seen[*member], true));
        }
        if header
            == (Header {
                valid: true,
                ..Header::default()
            })
        {
            assert_eq!(bytes, frames[group.first()]);
            continue;
        }
        let again = cut(&header, &bytes, ANY_LENGTH);
        assert_eq!(again.len(), members.len());
        for (again, member) in again.iter().zip(&members) {
            assert_eq!(essence(again), essence(&frames[*member]));
        }
    }
    assert!(seen.iter().all(|seen| *seen), "no frame is lost");
}

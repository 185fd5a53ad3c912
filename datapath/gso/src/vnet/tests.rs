use proptest::prelude::*;

use super::*;

const LAYOUTS: [Layout; 3] = [Layout::Basic, Layout::V1, Layout::Tunnel];

/// That of a Geneve superpacket, with 20 bytes of options.
const OF_A_TUNNEL: [u8; LONGEST] = [
    0x01, 0x21, 0x8a, 0x00, 0x78, 0x05, 0x68, 0x00, 0x10, 0x00, 0x00, 0x00, 0, 0, 0, 0, 0, 0, 0, 0,
    0x22, 0x00, 0x54, 0x00,
];

#[test]
fn a_tunnel_is_read() {
    let header = Header::parse(&OF_A_TUNNEL, Layout::Tunnel).unwrap();
    let tunnel = Tunnel {
        v6: false,
        checksum: false,
        outer_transport: 0x22,
        inner_network: 0x54,
    };
    assert_eq!(
        header,
        Header {
            checksum: Some(Checksum {
                start: 0x68,
                offset: 16
            }),
            valid: false,
            headers: 0x8a,
            gso: Some(Gso {
                kind: Kind::TcpV4,
                size: 1400,
                ecn: false,
                tunnel: Some(tunnel)
            }),
        }
    );
}

/// What each byte may be, and the refusal if it is something else.
#[test]
fn what_cannot_be_is_refused() {
    let with = |at: usize, value: u8, layout| {
        let mut bytes = OF_A_TUNNEL;
        bytes[at] = value;
        Header::parse(&bytes, layout)
    };
    for layout in LAYOUTS {
        assert_eq!(
            Header::parse(&OF_A_TUNNEL[..layout.size() - 1], layout),
            Err(Error::Short)
        );
        // UFO, nothing, and ECN of UDP or of no superpacket.
        for kind in [2, 3, 6, 0x10, 0x83, 0x85, 0x80] {
            assert_eq!(with(1, kind, layout), Err(Error::Kind), "{kind:#x}");
        }
    }
    assert_eq!(with(1, 0x61, Layout::Tunnel), Err(Error::Tunnel));
    assert_eq!(with(1, 0x20, Layout::Tunnel), Err(Error::Tunnel));
    assert_eq!(with(1, 0x21, Layout::V1), Err(Error::Tunnel));
    assert_eq!(with(0, 0, Layout::Tunnel), Err(Error::Tunnel));
    for size in [[0, 0], [0xff, 0xff]] {
        let mut bytes = OF_A_TUNNEL;
        bytes[4..6].copy_from_slice(&size);
        assert_eq!(Header::parse(&bytes, Layout::Tunnel), Err(Error::Size));
    }
}

proptest! {
    /// Whatever is taken is written again so that it is read as the same.
    #[test]
    fn what_is_read_is_written(
        start: [u8; 2],
        bytes in proptest::collection::vec(any::<u8>(), 0..30),
        layout in proptest::sample::select(&LAYOUTS),
    ) {
        let bytes = [&start.map(|byte| byte & 0xef)[..], &bytes].concat();
        if let Ok(header) = Header::parse(&bytes, layout) {
            let mut to = [0; LONGEST];
            prop_assert_eq!(header.write(&mut to, layout), Ok(layout.size()));
            prop_assert_eq!(Header::parse(&to, layout), Ok(header));
            prop_assert_eq!(header.write(&mut to[..layout.size() - 1], layout), Err(Error::Short));
        }
    }
}

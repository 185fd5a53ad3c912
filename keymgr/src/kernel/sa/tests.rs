use super::*;
use crate::charon::tests::sa as charons;
use crate::kernel::{Kernel, Progress, sa_request};
use crate::keys::fingerprint;
use culvert_bridge::Secret;
use culvert_proto::sa::{Cipher, StateRef, UdpEncapsulation};
use netlink_packet_core::Emitable;

fn spec(cipher: Cipher) -> SaSpec {
    SaSpec {
        id: SaId {
            direction: Direction::Out,
            spi: Spi::new(0x1001).unwrap(),
            destination: "192.0.2.2".parse().unwrap(),
        },
        source: "192.0.2.1".parse().unwrap(),
        cipher,
        keymat: Keymat::new(vec![0x5a; cipher.keymat_length()]),
        esn: true,
        replay_window: 64,
        encapsulation: Some(UdpEncapsulation {
            source_port: 4500,
            destination_port: 4501,
            keepalive: 0,
        }),
        tfc: 0,
        lifetime: Lifetime::default(),
        state: StateRef {
            offset: 0,
            words: 0,
        },
    }
}

#[test]
fn every_cipher_is_known_again() {
    for cipher in Cipher::ALL {
        let spec = spec(cipher);
        match KernelSa::of(&spec, 7) {
            Ok(sa) => assert_eq!(sa.fingerprint(), fingerprint(&spec), "{cipher}"),
            Err(text) => assert!(
                cipher.iv_length() == 0 && text.contains(cipher.name()),
                "{text}"
            ),
        }
    }
}

#[test]
fn what_charon_has_is_the_same_as_what_culvert_has() {
    let given = charons(0x1001, true, 7);
    let sa = KernelSa::of_charon(&given).unwrap();
    let ours = crate::charon::sa::accept(&given).ok().unwrap();
    assert_eq!(sa, KernelSa::of(&ours, given.reqid).unwrap());
}

#[test]
fn what_culvert_does_not_have_the_kernel_does() {
    let of = |encryption, integrity| {
        let sa = culvert_bridge::Sa {
            encryption,
            integrity,
            integrity_key: Secret::new(vec![1; 32]),
            mode: 2,
            ..charons(0x1001, false, 7)
        };
        KernelSa::of_charon(&sa).map(|sa| {
            assert!(sa.tunnel);
            sa.algorithm.to_string()
        })
    };
    for (encryption, integrity, name) in [
        (12, 2, "cbc(aes) hmac(sha1) 96"),
        (13, 12, "rfc3686(ctr(aes)) hmac(sha256) 128"),
        (3, 13, "cbc(des3_ede) hmac(sha384) 192"),
        (23, 14, "cbc(camellia) hmac(sha512) 256"),
        (11, 5, "ecb(cipher_null) xcbc(aes) 96"),
        (12, 8, "cbc(aes) cmac(aes) 96"),
        (14, 0, "rfc4309(ccm(aes)) 64"),
        (16, 0, "rfc4309(ccm(aes)) 128"),
        (20, 0, "rfc4106(gcm(aes)) 128"),
    ] {
        assert_eq!(of(encryption, integrity).unwrap(), name);
    }
    for (encryption, integrity, words) in [
        (12, 0, "without integrity"),
        (11, 0, "without integrity"),
        (20, 2, "another integrity"),
        (30, 0, "implicit IVs"),
        (99, 2, "encryption transform 99"),
        (12, 99, "integrity transform 99"),
    ] {
        let text = of(encryption, integrity).unwrap_err();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn what_is_not_served_says_so() {
    let good = || charons(0x1001, true, 7);
    for (sa, words) in [
        (
            culvert_bridge::Sa {
                protocol: 51,
                ..good()
            },
            "AH",
        ),
        (
            culvert_bridge::Sa {
                ipcomp: 2,
                ..good()
            },
            "IPComp",
        ),
        (culvert_bridge::Sa { mode: 3, ..good() }, "BEET"),
        (
            culvert_bridge::Sa {
                restriction: Some("a mark".to_owned()),
                ..good()
            },
            "a mark",
        ),
        (
            culvert_bridge::Sa {
                source: "[2001:db8::1]:0".parse().unwrap(),
                ..good()
            },
            "ends",
        ),
        (charons(3, true, 7), "reserved"),
    ] {
        let text = KernelSa::of_charon(&sa).unwrap_err();
        assert!(text.contains(words), "{text}");
    }
}

#[test]
fn no_limit_is_the_kernels_infinity() {
    let config = limits(&Lifetime {
        soft: Limits {
            packets: Some(5),
            ..Limits::NONE
        },
        hard: Limits {
            bytes: Some(9),
            seconds: Some(7),
            ..Limits::NONE
        },
    });
    assert_eq!((config.soft_packet_limit, config.hard_byte_limit), (5, 9));
    assert_eq!(
        (config.soft_byte_limit, config.hard_packet_limit),
        (u64::MAX, u64::MAX)
    );
    assert_eq!(config.hard_add_expires_seconds, 7);
    assert_eq!(config.soft_add_expires_seconds, 0);
}

/// The library's encoding, against linux/xfrm.h.
#[test]
fn the_request_is_laid_out_as_the_kernel_has_it() {
    let sa = KernelSa::of(&spec(Cipher::Aes128Gcm12), 7).unwrap();
    let progress = Progress::fresh(Direction::Out, 0);
    let request = sa_request(&sa, &progress);
    let mut bytes = vec![0; request.buffer_len()];
    request.emit(&mut bytes);
    // struct xfrm_id behind the selector, reqid, family, flags.
    assert_eq!(bytes[56..60], [192, 0, 2, 2]);
    assert_eq!(bytes[72..77], [0, 0, 0x10, 0x01, 50]);
    assert_eq!(bytes[80..84], [192, 0, 2, 1]);
    assert_eq!(bytes[208..212], 7_u32.to_ne_bytes());
    assert_eq!(bytes[212..217], [2, 0, 0, 0, 0x80]);
    // XFRMA_ALG_AEAD: name, bits of key and salt, bits of ICV, both.
    let aead = &bytes[224..];
    assert_eq!(aead[..4], [4 + 72 + 20, 0, 18, 0]);
    assert_eq!(&aead[4..22], b"rfc4106(gcm(aes))\0");
    assert_eq!(aead[68..76], [160, 0, 0, 0, 96, 0, 0, 0]);
    assert_eq!(aead[76..96], [0x5a; 20]);
    // XFRMA_REPLAY_ESN_VAL, XFRMA_LTIME_VAL, XFRMA_ENCAP.
    let replay = &aead[96..];
    assert_eq!(replay[..4], [4 + 28, 0, 23, 0]);
    let lifetime = &replay[32..];
    assert_eq!(lifetime[..4], [4 + 32, 0, 9, 0]);
    let encapsulation = &lifetime[36..];
    assert_eq!(encapsulation[..4], [4 + 24, 0, 4, 0]);
    assert_eq!(
        encapsulation[4..10],
        [2, 0, 0x11, 0x94, 0x11, 0x95],
        "ports in network byte order"
    );
    assert_eq!(encapsulation.len(), 28);
}

#[test]
fn keys_are_not_shown() {
    let sa = KernelSa::of(&spec(Cipher::Aes128Gcm16), 7).unwrap();
    let text = format!("{sa:?} {sa}");
    assert!(!text.contains("90") && !text.contains("5a"), "{text}");
}

/// Where there is no ESP, it is said; where there is, nothing is left behind.
#[test]
fn this_kernel_is_asked() {
    let Ok(mut kernel) = Kernel::open() else {
        return;
    };
    for ipv6 in [false, true] {
        match kernel.probe(ipv6) {
            Ok(()) => assert!(kernel.probe(ipv6).is_ok()),
            Err(text) => assert!(
                text.contains("no ESP: ") || text.contains("not permitted"),
                "{text}"
            ),
        }
    }
}

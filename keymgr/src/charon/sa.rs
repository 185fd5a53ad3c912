//! An SA as charon gives it, made one of ours, or refused with the reason.

use culvert_bridge::{Lifetimes, Sa};
use culvert_proto::sa::{
    Cipher, Direction, Keymat, Lifetime, Limits, REPLAY_WINDOW, SaId, SaSpec, Spi, StateRef,
    UdpEncapsulation,
};

use super::{NotServed, TRANSPORT};

/// The IP protocol.
const ESP: u8 = 50;

// RFC 4303 §3.4.3 [3.4.3-window-larger]: the size of the window is the receiver's own business.
/// The least replay window that an SA gets: charon asks for 32 where nobody says otherwise, which is less than what
/// the queues and cores on the way may exchange.
pub(crate) const LEAST_WINDOW: u32 = 1024;

/// Checks an SA. It has no state yet.
pub(crate) fn accept(sa: &Sa) -> Result<SaSpec, NotServed> {
    if sa.protocol != ESP {
        return Err(NotServed::new("AH is not served, only ESP is"));
    }
    if sa.mode != TRANSPORT {
        return Err(NotServed::new(
            "tunnel mode is not served: set transport mode (mode = transport, type=transport)",
        ));
    }
    if sa.ipcomp != 0 {
        return Err(NotServed::new(
            "IPComp is not served: leave compression out",
        ));
    }
    if let Some(restriction) = &sa.restriction {
        return Err(NotServed(format!("{restriction}: not served")));
    }
    let (source, destination) = (sa.source.ip(), sa.name.destination);
    if source.is_ipv4() != destination.is_ipv4() || source == destination {
        return Err(NotServed(format!(
            "{source} and {destination} are not the ends of an SA"
        )));
    }
    let spi = Spi::new(sa.name.spi).map_err(|error| NotServed(error.to_string()))?;
    let cipher = cipher(sa.encryption, sa.key.bytes().len())?;
    Ok(SaSpec {
        id: SaId {
            direction: if sa.inbound {
                Direction::In
            } else {
                Direction::Out
            },
            spi,
            destination,
        },
        source,
        cipher,
        keymat: Keymat::new(sa.key.bytes().to_vec()),
        // RFC 4303 §2.2.1 [2.2.1-negotiated]
        esn: sa.esn,
        replay_window: sa.replay_window.clamp(LEAST_WINDOW, *REPLAY_WINDOW.end()),
        encapsulation: encapsulation(sa.encapsulated, sa.source.port(), sa.destination_port),
        // RFC 4303 §2.7 [2.7-tfc-negotiated]: charon asks for it only where the peer takes it. Its word for "up to
        // the MTU" is the largest number.
        tfc: u16::try_from(sa.tfc).unwrap_or(u16::MAX),
        lifetime: lifetime(sa.lifetimes),
        state: StateRef {
            offset: 0,
            words: 0,
        },
    })
}

/// Ports of charon's addresses count only if there is encapsulation. Keepalives are charon's: it sends them
/// from the port that it has for itself.
pub(super) fn encapsulation(
    encapsulated: bool,
    source_port: u16,
    destination_port: u16,
) -> Option<UdpEncapsulation> {
    encapsulated.then_some(UdpEncapsulation {
        source_port,
        destination_port,
        keepalive: 0,
    })
}

/// Lifetimes; charon's 0 is none.
pub(crate) fn lifetime(lifetimes: Lifetimes) -> Lifetime {
    let limit = |value: u64| (value != 0).then_some(value);
    Lifetime {
        soft: Limits {
            seconds: limit(lifetimes.soft_seconds),
            bytes: limit(lifetimes.soft_bytes),
            packets: limit(lifetimes.soft_packets),
            ..Limits::NONE
        },
        hard: Limits {
            seconds: limit(lifetimes.hard_seconds),
            bytes: limit(lifetimes.hard_bytes),
            packets: limit(lifetimes.hard_packets),
            ..Limits::NONE
        },
    }
}

/// The cipher of an encryption transform (IANA, "Transform Type 1") with keying material of so many bytes.
fn cipher(transform: u16, length: usize) -> Result<Cipher, NotServed> {
    use Cipher as C;
    let ciphers: &[Cipher] = match transform {
        18 => &[C::Aes128Gcm8, C::Aes192Gcm8, C::Aes256Gcm8],
        19 => &[C::Aes128Gcm12, C::Aes192Gcm12, C::Aes256Gcm12],
        20 => &[C::Aes128Gcm16, C::Aes192Gcm16, C::Aes256Gcm16],
        21 => &[C::Aes128Gmac, C::Aes192Gmac, C::Aes256Gmac],
        28 => &[C::ChaCha20Poly1305],
        30 => &[C::Aes128Gcm16Iiv, C::Aes192Gcm16Iiv, C::Aes256Gcm16Iiv],
        31 => &[C::ChaCha20Poly1305Iiv],
        _ => {
            return Err(NotServed(format!(
                "{} is not served by Culvert, which has AEADs only: leave it to kernel IPsec, or propose \
                 aes256gcm16, aes128gcm16 or chacha20poly1305 (esp_proposals, esp=)",
                name(transform)
            )));
        }
    };
    let cipher = ciphers
        .iter()
        .find(|cipher| cipher.keymat_length() == length);
    cipher.copied().ok_or_else(|| {
        NotServed(format!(
            "{} with {length} bytes of keying material is not served",
            ciphers[0]
        ))
    })
}

/// What IANA calls a transform that is not served.
fn name(transform: u16) -> String {
    match transform {
        2 | 3 => "3DES or DES".to_owned(),
        11 => "ENCR_NULL".to_owned(),
        12 => "AES_CBC".to_owned(),
        13 => "AES_CTR".to_owned(),
        14..=16 => "AES_CCM".to_owned(),
        23..=27 => "Camellia".to_owned(),
        other => format!("encryption transform {other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::charon::tests::sa;

    #[test]
    fn what_charon_negotiates_is_taken_over() {
        // RFC 4303 [2.2.1-negotiated, 2.7-tfc-negotiated]
        let given = Sa {
            tfc: u32::MAX,
            encapsulated: true,
            lifetimes: Lifetimes {
                soft_seconds: 3,
                hard_packets: 9,
                ..Lifetimes::default()
            },
            ..sa(0x1001, true, 7)
        };
        let spec = accept(&given).unwrap();
        assert_eq!(spec.id.direction, Direction::In);
        assert_eq!(spec.cipher, Cipher::Aes256Gcm16);
        assert!(
            spec.esn
                && !accept(&Sa {
                    esn: false,
                    ..given
                })
                .unwrap()
                .esn
        );
        assert_eq!(spec.replay_window, 1024);
        assert_eq!(spec.tfc, u16::MAX);
        assert_eq!(spec.encapsulation.unwrap().source_port, 4500);
        assert_eq!(spec.lifetime.soft.seconds, Some(3));
        assert_eq!(spec.lifetime.hard.seconds, None);
        assert_eq!(spec.lifetime.hard.packets, Some(9));
    }

    #[test]
    fn what_is_not_served_says_so_and_what_is() {
        let refused = |sa: Sa| accept(&sa).unwrap_err().0;
        let good = || sa(0x1001, true, 7);
        for (given, words) in [
            (
                Sa {
                    protocol: 51,
                    ..good()
                },
                "AH",
            ),
            (Sa { mode: 2, ..good() }, "transport"),
            (
                Sa {
                    ipcomp: 2,
                    ..good()
                },
                "IPComp",
            ),
            (
                Sa {
                    encryption: 12,
                    ..good()
                },
                "AES_CBC is not served by Culvert",
            ),
            (
                Sa {
                    encryption: 28,
                    key: culvert_bridge::Secret::new(vec![1; 20]),
                    ..good()
                },
                "20 bytes",
            ),
            (
                Sa {
                    restriction: Some("mark 0x1".to_owned()),
                    ..good()
                },
                "mark 0x1",
            ),
            (
                Sa {
                    source: "[2001:db8::1]:0".parse().unwrap(),
                    ..good()
                },
                "ends",
            ),
            (sa(3, true, 7), "reserved"),
        ] {
            let text = refused(given);
            assert!(text.contains(words), "{text}");
        }
    }
}

//! One `[[sa]]` of the file, checked by itself.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use culvert_proto::sa::{
    Cipher, Direction, Lifetime, Limits, REPLAY_WINDOW, SaId, SaSpec, Spi, StateRef,
    UdpEncapsulation,
};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use toml::de::DeValue;
use zeroize::Zeroizing;

use crate::keys;

// RFC 4303 §3.4.3 [3.4.3-window-fast]
/// Replay window in packets where the file does not say: enough for the reordering of many cores.
const DEFAULT_WINDOW: u32 = 1024;

/// The port of ESP in UDP (RFC 3948), and that of Geneve.
const NAT_T: u16 = 4500;
const GENEVE: u16 = 6081;

/// Seconds between keepalives where the file does not say: what RFC 3948 §4 has.
const DEFAULT_KEEPALIVE: u16 = 20;

/// `[[sa]]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaEntry {
    direction: Direction,
    #[serde(deserialize_with = "spi")]
    spi: u32,
    #[serde(deserialize_with = "address")]
    source: IpAddr,
    #[serde(deserialize_with = "address")]
    destination: IpAddr,
    // RFC 4303 [1-integrity-only-offered, 2-version]: with `esn`, what ESP's version 2 does not have.
    cipher: String,
    key: Option<Zeroizing<String>>,
    key_file: Option<PathBuf>,
    #[serde(default = "yes")]
    esn: bool,
    #[serde(default = "default_window")]
    replay_window: u32,
    encapsulation: Option<Encapsulation>,
    // RFC 4303 §2.7 [2.7-tfc-controls]
    #[serde(default)]
    tfc: u16,
    #[serde(default)]
    soft: Limits,
    #[serde(default)]
    hard: Limits,
}

/// `encapsulation` as written.
#[derive(Clone, Copy, Deserialize)]
#[serde(deny_unknown_fields)]
struct Encapsulation {
    source_port: u16,
    destination_port: u16,
    #[serde(default = "default_keepalive")]
    keepalive: u16,
}

fn default_keepalive() -> u16 {
    DEFAULT_KEEPALIVE
}

fn address<'de, D: Deserializer<'de>>(from: D) -> Result<IpAddr, D::Error> {
    let text = String::deserialize(from)?;
    text.parse()
        .map_err(|_| D::Error::custom(format!("\"{text}\" is no IPv4 or IPv6 address")))
}

/// A number that may be an SPI; whether it is reserved is checked later.
#[derive(Deserialize)]
#[serde(transparent)]
struct Number(#[serde(deserialize_with = "spi")] u32);

fn spi<'de, D: Deserializer<'de>>(from: D) -> Result<u32, D::Error> {
    i64::deserialize(from)
        .ok()
        .and_then(|value| u32::try_from(value).ok())
        .ok_or_else(|| {
            D::Error::custom("an SPI is a number from 0x100 to 0xffffffff, without quotes")
        })
}

pub(crate) fn some_spi<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    spi(from).map(Some)
}

pub(crate) fn spis<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u32>, D::Error> {
    let numbers = Vec::<Number>::deserialize(from)?;
    Ok(numbers.into_iter().map(|Number(value)| value).collect())
}

fn yes() -> bool {
    true
}

fn default_window() -> u32 {
    DEFAULT_WINDOW
}

impl SaEntry {
    /// Whether the key stands in the file itself.
    pub(crate) fn has_inline_key(&self) -> bool {
        self.key.is_some()
    }

    /// Checks the entry; paths of key files count from `folder`.
    pub(crate) fn check(self, folder: &Path) -> Result<SaSpec, Vec<String>> {
        let name = format!("SA {:#x} {}", self.spi, self.direction);
        let mut problems = Vec::new();
        let mut wrong = |text: String| problems.push(format!("{name}: {text}"));

        let spi = Spi::new(self.spi)
            .map_err(|error| wrong(error.to_string()))
            .ok();
        addresses(
            "source",
            self.source,
            "destination",
            self.destination,
            &mut wrong,
        );
        if !REPLAY_WINDOW.contains(&self.replay_window) {
            wrong(format!(
                "replay_window {}: from {} to {} packets",
                self.replay_window,
                REPLAY_WINDOW.start(),
                REPLAY_WINDOW.end()
            ));
        }
        if let Some(ports) = self.encapsulation
            && (ports.source_port == 0 || ports.destination_port == 0)
        {
            wrong("encapsulation: port 0 is none; usually both are 4500".to_owned());
        }
        if let Some(ports) = self.encapsulation {
            let ports = [ports.source_port, ports.destination_port];
            if !ports.contains(&NAT_T) {
                wrong(
                    "encapsulation: one of the ports must be 4500, or nobody takes it for ESP"
                        .to_owned(),
                );
            }
            if ports.contains(&GENEVE) {
                wrong("encapsulation: port 6081 is Geneve's".to_owned());
            }
        }
        if self.tfc > 0 && self.direction == Direction::In {
            wrong("tfc: the padding is the sender's to make; set it on the outbound SA".to_owned());
        }
        lifetimes(&self.soft, &self.hard, &mut wrong);
        let cipher = Cipher::from_name(&self.cipher)
            .map_err(|error| wrong(error.to_string()))
            .ok();
        let keymat = match (&self.key, &self.key_file) {
            (Some(key), None) => keys::from_hex(key),
            (None, Some(file)) => keys::from_file(&folder.join(file)),
            _ => Err("give it either key or key_file".to_owned()),
        };
        let keymat = keymat.map_err(&mut wrong).ok();
        if let (Some(cipher), Some(keymat)) = (cipher, &keymat) {
            let got = keymat.bytes().len();
            let want = cipher.keymat_length();
            if got != want {
                wrong(format!(
                    "key of {got} bytes; {cipher} takes {want}: a key of {} and a salt of 4, {} hex digits",
                    cipher.key_length(),
                    2 * want
                ));
            }
        }
        match (spi, cipher, keymat) {
            (Some(spi), Some(cipher), Some(keymat)) if problems.is_empty() => Ok(SaSpec {
                id: SaId {
                    direction: self.direction,
                    spi,
                    destination: self.destination,
                },
                source: self.source,
                cipher,
                keymat,
                esn: self.esn,
                replay_window: self.replay_window,
                encapsulation: self.encapsulation.map(|written| UdpEncapsulation {
                    source_port: written.source_port,
                    destination_port: written.destination_port,
                    // Whoever only receives has nothing to keep open.
                    keepalive: match self.direction {
                        Direction::Out => written.keepalive,
                        Direction::In => 0,
                    },
                }),
                tfc: self.tfc,
                lifetime: Lifetime {
                    soft: self.soft,
                    hard: self.hard,
                },
                state: StateRef {
                    offset: 0,
                    words: 0,
                },
            }),
            _ => Err(problems),
        }
    }
}

/// A soft limit is one to act on before the hard one.
fn lifetimes(soft: &Limits, hard: &Limits, wrong: &mut impl FnMut(String)) {
    for (name, soft, hard) in [
        ("bytes", soft.bytes, hard.bytes),
        ("packets", soft.packets, hard.packets),
        ("seconds", soft.seconds, hard.seconds),
        ("seconds_in_use", soft.seconds_in_use, hard.seconds_in_use),
    ] {
        if soft == Some(0) || hard == Some(0) {
            wrong(format!(
                "a limit of 0 {name}: leave it out if there is to be none"
            ));
        }
        if let (Some(soft), Some(hard)) = (soft, hard)
            && soft >= hard
        {
            wrong(format!(
                "soft limit of {soft} {name} and hard limit of {hard}: the soft one must be the smaller"
            ));
        }
    }
}

fn addresses(
    from_name: &str,
    from: IpAddr,
    to_name: &str,
    to: IpAddr,
    wrong: &mut impl FnMut(String),
) {
    if from.is_ipv4() != to.is_ipv4() {
        wrong(format!(
            "{from_name} {from} and {to_name} {to} are of different IP versions; both must be IPv4 or both \
             IPv6"
        ));
    }
    for (name, address) in [(from_name, from), (to_name, to)] {
        let broadcast = matches!(address, IpAddr::V4(v4) if v4.is_broadcast());
        if address.is_multicast() || address.is_unspecified() || broadcast {
            wrong(format!("{name} {address} is no address of a host"));
        }
        if let IpAddr::V6(v6) = address
            && let Some(v4) = v6.to_ipv4_mapped()
        {
            wrong(format!(
                "{name} {address} is an IPv4 address in IPv6's clothes; write {v4}"
            ));
        }
    }
    if from == to {
        wrong(format!("{from_name} and {to_name} are the same address"));
    }
}

/// How problems name an SA that may be wrong in its form, and its SPI, if it has one.
pub(crate) fn sa_as_written(value: &DeValue<'_>) -> (String, Option<u32>) {
    let spi = value.get("spi").and_then(|spi| {
        let spi = spi.get_ref().as_integer()?;
        u32::from_str_radix(spi.as_str(), spi.radix()).ok()
    });
    let name = spi.map_or("SA".to_owned(), |spi| format!("SA {spi:#x}"));
    let direction = value
        .get("direction")
        .and_then(|value| value.get_ref().as_str());
    match direction {
        Some(direction @ ("in" | "out")) => (format!("{name} {direction}"), spi),
        _ => (name, spi),
    }
}

/// How problems name an SA.
pub(crate) fn sa_name(sa: &SaSpec) -> String {
    format!("SA {:#x} {}", sa.id.spi.get(), sa.id.direction)
}

//! One `[[sa]]` and one `[[policy]]` of the file, each checked by itself.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use culvert_proto::sa::{
    Cipher, Direction, PolicySpec, REPLAY_WINDOW, SaId, SaSpec, Spi, StateRef, UdpEncapsulation,
};
use serde::de::Error;
use serde::{Deserialize, Deserializer};
use toml::de::DeValue;
use zeroize::Zeroizing;

use crate::keys;

/// Replay window in packets where the file does not say: enough for the reordering of many cores.
const DEFAULT_WINDOW: u32 = 1024;

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
    cipher: String,
    key: Option<Zeroizing<String>>,
    key_file: Option<PathBuf>,
    #[serde(default = "yes")]
    esn: bool,
    #[serde(default = "default_window")]
    replay_window: u32,
    encapsulation: Option<UdpEncapsulation>,
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

fn some_spi<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u32>, D::Error> {
    spi(from).map(Some)
}

fn spis<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u32>, D::Error> {
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
        let cipher = Cipher::from_name(&self.cipher);
        if cipher.is_none() {
            wrong(format!(
                "cipher \"{}\" is not known; there are {}",
                self.cipher,
                Cipher::ALL.map(Cipher::name).join(", ")
            ));
        }
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
                encapsulation: self.encapsulation,
                state: StateRef {
                    offset: 0,
                    words: 0,
                },
            }),
            _ => Err(problems),
        }
    }
}

/// `[[policy]]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyEntry {
    #[serde(deserialize_with = "address")]
    local: IpAddr,
    #[serde(deserialize_with = "address")]
    remote: IpAddr,
    #[serde(default, deserialize_with = "some_spi")]
    out: Option<u32>,
    #[serde(default, deserialize_with = "spis")]
    r#in: Vec<u32>,
}

impl PolicyEntry {
    /// Checks the entry.
    pub(crate) fn check(self) -> Result<PolicySpec, Vec<String>> {
        let name = format!("policy {} to {}", self.local, self.remote);
        let mut problems = Vec::new();
        let mut wrong = |text: String| problems.push(format!("{name}: {text}"));
        addresses("local", self.local, "remote", self.remote, &mut wrong);
        let mut spi = |value| {
            Spi::new(value)
                .map_err(|error| wrong(error.to_string()))
                .ok()
        };
        let outbound = self.out.map(&mut spi);
        let inbound: Vec<_> = self.r#in.iter().map(|value| spi(*value)).collect();
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(PolicySpec {
            local: self.local,
            remote: self.remote,
            outbound: outbound.flatten(),
            inbound: inbound.into_iter().flatten().collect(),
        })
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

/// How problems name a policy that may be wrong in its form.
pub(crate) fn policy_as_written(value: &DeValue<'_>) -> String {
    let field = |name| {
        let value = value.get(name).and_then(|value| value.get_ref().as_str());
        value.unwrap_or("?").to_owned()
    };
    format!("policy {} to {}", field("local"), field("remote"))
}

/// How problems name an SA.
pub(crate) fn sa_name(sa: &SaSpec) -> String {
    format!("SA {:#x} {}", sa.id.spi.get(), sa.id.direction)
}

/// How problems name a policy.
pub(crate) fn policy_name(policy: &PolicySpec) -> String {
    format!("policy {} to {}", policy.local, policy.remote)
}

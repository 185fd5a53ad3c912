//! One `[[sa]]` and one `[[policy]]` of the file, each checked by itself.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use culvert_proto::sa::{
    Cipher, Direction, PolicySpec, REPLAY_WINDOW, SaId, SaSpec, Spi, StateRef, UdpEncapsulation,
};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::keys;

/// Replay window in packets where the file does not say: enough for the reordering of many cores.
const DEFAULT_WINDOW: u32 = 1024;

/// `[[sa]]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct SaEntry {
    direction: Direction,
    spi: u32,
    source: IpAddr,
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

        let spi = Spi::new(self.spi).map_err(|error| wrong(error.to_string())).ok();
        addresses("source", self.source, "destination", self.destination, &mut wrong);
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
                state: StateRef { offset: 0, words: 0 },
            }),
            _ => Err(problems),
        }
    }
}

/// `[[policy]]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyEntry {
    local: IpAddr,
    remote: IpAddr,
    out: Option<u32>,
    #[serde(default)]
    r#in: Vec<u32>,
}

impl PolicyEntry {
    /// Checks the entry.
    pub(crate) fn check(self) -> Result<PolicySpec, Vec<String>> {
        let name = format!("policy {} to {}", self.local, self.remote);
        let mut problems = Vec::new();
        let mut wrong = |text: String| problems.push(format!("{name}: {text}"));
        addresses("local", self.local, "remote", self.remote, &mut wrong);
        let mut spi = |value| Spi::new(value).map_err(|error| wrong(error.to_string())).ok();
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
    }
    if from == to {
        wrong(format!("{from_name} and {to_name} are the same address"));
    }
}

/// How problems name an SA.
pub(crate) fn sa_name(sa: &SaSpec) -> String {
    format!("SA {:#x} {}", sa.id.spi.get(), sa.id.direction)
}

/// How problems name a policy.
pub(crate) fn policy_name(policy: &PolicySpec) -> String {
    format!("policy {} to {}", policy.local, policy.remote)
}

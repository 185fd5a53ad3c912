//! One `[[policy]]` of the file, checked by itself. Which SAs its SPIs name, is seen with all entries together.

use std::net::IpAddr;

use culvert_proto::policy::{Geneve, Mode, Selector, VniRange, short};
use culvert_proto::sa::Spi;
use ipnet::IpNet;
use serde::Deserialize;
use serde::de::Error;
use toml::de::DeValue;

use crate::entry::{some_spi, spis};

/// `[[policy]]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PolicyEntry {
    #[serde(deserialize_with = "net")]
    local: IpNet,
    #[serde(deserialize_with = "net")]
    remote: IpNet,
    #[serde(default)]
    geneve_port: Geneve,
    #[serde(default)]
    vni: Vec<WrittenVni>,
    #[serde(default)]
    action: WrittenAction,
    #[serde(default, deserialize_with = "some_spi")]
    out: Option<u32>,
    #[serde(default, deserialize_with = "spis")]
    r#in: Vec<u32>,
    mode: Option<Mode>,
}

/// `action` as written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum WrittenAction {
    #[default]
    Protect,
    Bypass,
    Discard,
}

/// One of `vni` as written: a number, or a range as a text.
#[derive(Deserialize)]
#[serde(
    untagged,
    expecting = "VNIs are numbers from 0 to 16777215, or ranges as in \"100-199\""
)]
enum WrittenVni {
    Number(u32),
    Range(String),
}

/// An address or a prefix.
pub(crate) fn net<'de, D: serde::Deserializer<'de>>(from: D) -> Result<IpNet, D::Error> {
    let text = String::deserialize(from)?;
    let parsed = text
        .parse::<IpAddr>()
        .map(IpNet::from)
        .or_else(|_| text.parse::<IpNet>());
    parsed.map_err(|_| {
        D::Error::custom(format!(
            "\"{text}\" is no IPv4 or IPv6 address or prefix, as in 192.0.2.1 or 192.0.2.0/24"
        ))
    })
}

/// An entry that is good by itself.
#[derive(Debug)]
pub(crate) struct Policy {
    pub(crate) selector: Selector,
    pub(crate) action: WrittenAction,
    pub(crate) out: Option<Spi>,
    pub(crate) r#in: Vec<Spi>,
    pub(crate) mode: Option<Mode>,
}

impl PolicyEntry {
    /// Checks the entry.
    pub(crate) fn check(self) -> Result<Policy, Vec<String>> {
        let name = format!("policy {} to {}", short(&self.local), short(&self.remote));
        let mut problems = Vec::new();
        let mut wrong = |text: String| problems.push(format!("{name}: {text}"));
        self.nets(&mut wrong);
        let vnis = vnis(&self.vni, &mut wrong);
        let mut spi = |value| {
            Spi::new(value)
                .map_err(|error| wrong(error.to_string()))
                .ok()
        };
        let outbound = self.out.map(&mut spi);
        let inbound: Vec<_> = self.r#in.iter().map(|value| spi(*value)).collect();
        if self.action != WrittenAction::Protect && !(self.out.is_none() && self.r#in.is_empty()) {
            wrong("it does not protect, so it has no SAs; leave out and in away".to_owned());
        }
        if self.action != WrittenAction::Protect && self.mode.is_some() {
            wrong("it does not protect, so nobody serves it; leave mode away".to_owned());
        }
        let mut sorted = self.r#in.clone();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            wrong("an SA is named twice under in".to_owned());
        }
        if !problems.is_empty() {
            return Err(problems);
        }
        Ok(Policy {
            selector: Selector {
                local: self.local,
                remote: self.remote,
                geneve: self.geneve_port,
                vnis,
            },
            action: self.action,
            out: outbound.flatten(),
            r#in: inbound.into_iter().flatten().collect(),
            mode: self.mode,
        })
    }

    fn nets(&self, wrong: &mut impl FnMut(String)) {
        let (local, remote) = (self.local.addr(), self.remote.addr());
        if local.is_ipv4() != remote.is_ipv4() {
            wrong(format!(
                "local {local} and remote {remote} are of different IP versions; both must be IPv4 or both \
                 IPv6"
            ));
        }
        net_problems("local", &self.local, wrong);
        net_problems("remote", &self.remote, wrong);
        let host = self.local.prefix_len() == self.local.max_prefix_len();
        if host && self.local == self.remote {
            wrong("local and remote are the same address".to_owned());
        }
    }
}

/// What is wrong with an address or prefix that must be hosts', called `name` in the file.
pub(crate) fn net_problems(name: &str, net: &IpNet, wrong: &mut impl FnMut(String)) {
    let trunc = net.trunc();
    if trunc != *net {
        wrong(format!(
            "{name} {net} has bits set behind its prefix; write {trunc}"
        ));
    }
    let address = net.addr();
    let host = net.prefix_len() == net.max_prefix_len();
    if address.is_multicast() || (host && address.is_unspecified()) {
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

/// The ranges, ascending, those that touch joined.
fn vnis(written: &[WrittenVni], wrong: &mut impl FnMut(String)) -> Vec<VniRange> {
    let mut ranges = Vec::new();
    for vni in written {
        let text = match vni {
            WrittenVni::Number(number) => number.to_string(),
            WrittenVni::Range(text) => text.clone(),
        };
        match text.parse::<VniRange>() {
            Ok(range) => ranges.push(range),
            Err(error) => wrong(format!("vni: {error}")),
        }
    }
    ranges.sort_unstable();
    let mut joined: Vec<VniRange> = Vec::new();
    for range in ranges {
        match joined.last_mut() {
            Some(last) if range.first <= last.last.saturating_add(1) => {
                last.last = last.last.max(range.last);
            }
            _ => joined.push(range),
        }
    }
    joined
}

/// How problems name a policy that may be wrong in its form.
pub(crate) fn policy_as_written(value: &DeValue<'_>) -> String {
    let field = |name| {
        let value = value.get(name).and_then(|value| value.get_ref().as_str());
        value.unwrap_or("?").to_owned()
    };
    format!("policy {} to {}", field("local"), field("remote"))
}

//! Policies: the SPD as the key manager pushes it (RFC 4301 §4.4.1), for Geneve only.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::sa::SaId;

/// Virtual network identifiers of Geneve: 24 bits (RFC 8926 §3.3).
pub const VNI: RangeInclusive<u32> = 0..=0xff_ffff;

/// A range of VNIs, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct VniRange {
    /// The first.
    pub first: u32,
    /// The last.
    pub last: u32,
}

/// A text that is no range of VNIs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is no VNI and no range of VNIs; they are numbers from 0 to 16777215, as in \"100-199\""
)]
pub struct BadVniRange(String);

impl FromStr for VniRange {
    type Err = BadVniRange;

    fn from_str(text: &str) -> Result<Self, BadVniRange> {
        let number = |text: &str| text.trim().parse().ok();
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        match (number(first), number(last)) {
            (Some(first), Some(last)) if first <= last && VNI.contains(&last) => {
                Ok(Self { first, last })
            }
            _ => Err(BadVniRange(text.to_owned())),
        }
    }
}

impl fmt::Display for VniRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// Which side's UDP port must be Geneve's, 6081. A tunnel's packets have it as their destination port, so that
/// OVS and IKE make policies in pairs, one a direction.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Geneve {
    /// Either side's, or both.
    #[default]
    Either,
    /// This host's: what the peer sends to our tunnel.
    Local,
    /// The peer's: what we send to its tunnel.
    Remote,
    /// Both sides': hardly any tunnel, as the source port is made of the flow. IKE may negotiate it all the same.
    Both,
}

/// Which packets a policy is for. All of them are UDP with port 6081 on one side.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Selector {
    /// Addresses of this host. No host bits are set.
    pub local: IpNet,
    /// Addresses of the peers, of the same IP version. No host bits are set.
    pub remote: IpNet,
    /// Which side's port is 6081.
    pub geneve: Geneve,
    /// VNIs, ascending, apart from each other. None: every packet, also one that has no VNI.
    pub vnis: Vec<VniRange>,
}

impl Selector {
    /// Everything between two hosts.
    #[must_use]
    pub fn hosts(local: std::net::IpAddr, remote: std::net::IpAddr) -> Self {
        Self {
            local: local.into(),
            remote: remote.into(),
            geneve: Geneve::Either,
            vnis: Vec::new(),
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", short(&self.local), short(&self.remote))?;
        match self.geneve {
            Geneve::Either => {}
            Geneve::Local => f.write_str(" local port 6081")?,
            Geneve::Remote => f.write_str(" remote port 6081")?,
            Geneve::Both => f.write_str(" both ports 6081")?,
        }
        for (number, range) in self.vnis.iter().enumerate() {
            write!(f, "{}{range}", if number == 0 { " vni " } else { "," })?;
        }
        Ok(())
    }
}

/// A prefix as people write it: a host's without its length.
#[must_use]
pub fn short(net: &IpNet) -> String {
    if net.prefix_len() == net.max_prefix_len() {
        net.addr().to_string()
    } else {
        net.to_string()
    }
}

/// What is done with the packets of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Sealed on the way out, and opened under one of these SAs on the way in.
    Protect {
        /// SA that outbound packets are sealed under; `None`: they are dropped as `no_sa`.
        outbound: Option<SaId>,
        /// SAs that inbound packets may come under.
        inbound: Vec<SaId>,
    },
    /// Left in clear, both ways.
    Bypass,
    /// Dropped, both ways.
    Discard,
}

impl Action {
    /// The name in configurations and reports.
    #[must_use]
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Protect { .. } => "protect",
            Self::Bypass => "bypass",
            Self::Discard => "discard",
        }
    }
}

/// Who may serve a policy that protects.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Culvert, and the kernel's IPsec whenever Culvert cannot.
    #[default]
    PreferCulvert,
    /// The kernel's IPsec alone.
    KernelOnly,
    /// Culvert alone: whenever it cannot, packets are dropped.
    CulvertOnly,
}

impl Mode {
    /// The name in configurations and reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::PreferCulvert => "prefer-culvert",
            Self::KernelOnly => "kernel-only",
            Self::CulvertOnly => "culvert-only",
        }
    }
}

/// Who serves a policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Place {
    /// Culvert's workers.
    Culvert,
    /// The kernel's IPsec.
    Kernel,
    /// Nobody: packets are dropped.
    Nobody,
}

impl Place {
    /// The name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Culvert => "culvert",
            Self::Kernel => "kernel",
            Self::Nobody => "nobody",
        }
    }
}

/// One policy. Of those whose selectors a packet matches, the one with the lowest order counts; of these, the
/// one with the smaller selector.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicySpec {
    /// Which packets. Names the policy: no two have the same.
    pub selector: Selector,
    /// Place among the policies.
    pub order: u32,
    /// What is done with them.
    pub action: Action,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_read_and_written() {
        for text in ["0", "5", "100-199", "0-16777215"] {
            assert_eq!(text.parse::<VniRange>().unwrap().to_string(), text);
        }
        for text in ["", "-", "5-", "9-3", "16777216", "1-2-3", "x", "-1"] {
            assert!(text.parse::<VniRange>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_selector_reads_as_people_write_it() {
        let selector = Selector {
            local: "192.0.2.1/32".parse().unwrap(),
            remote: "198.51.100.0/24".parse().unwrap(),
            geneve: Geneve::Remote,
            vnis: vec!["7".parse().unwrap(), "10-19".parse().unwrap()],
        };
        assert_eq!(
            selector.to_string(),
            "192.0.2.1 to 198.51.100.0/24 remote port 6081 vni 7,10-19"
        );
    }
}

//! `[fallback]` of the file: who may serve what when Culvert cannot.

use std::time::Duration;

use culvert_proto::policy::{Mode, short};
use ipnet::IpNet;
use serde::Deserialize;
use toml::de::DeValue;

use crate::policy_entry::{net, net_problems};

/// Milliseconds without a heartbeat after which the datapath counts as hung: where the file does not say, and what it
/// may say. Below, a worker that the scheduler lets wait would count as hung; above, nobody gains anything.
const HUNG_AFTER: i64 = 100;
const HUNG_AFTER_MAY_BE: std::ops::RangeInclusive<i64> = 50..=60_000;

/// Who serves what when Culvert cannot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// For every policy that has no mode of its own and no peer below.
    pub mode: Mode,
    /// Time without a heartbeat after which the datapath counts as hung.
    pub hung_after: Duration,
    /// For policies whose remote is within one of these; no two are the same.
    pub peers: Vec<(IpNet, Mode)>,
}

impl Default for Fallback {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            hung_after: Duration::from_millis(HUNG_AFTER.unsigned_abs()),
            peers: Vec::new(),
        }
    }
}

impl Fallback {
    /// The mode of a policy with that remote that has none of its own: that of the longest peer that contains all of
    /// the remote.
    #[must_use]
    pub fn mode_for(&self, remote: &IpNet) -> Mode {
        let peers = self.peers.iter();
        let longest = peers
            .filter(|(peer, _)| peer.contains(remote))
            .max_by_key(|(peer, _)| peer.prefix_len());
        longest.map_or(self.mode, |(_, mode)| *mode)
    }
}

/// `[fallback]` as written, without its peers.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct FallbackEntry {
    #[serde(default)]
    mode: Mode,
    #[serde(default = "hung_after")]
    hung_after: i64,
}

const fn hung_after() -> i64 {
    HUNG_AFTER
}

impl FallbackEntry {
    /// Checks the entry.
    pub(crate) fn check(self) -> Result<Fallback, Vec<String>> {
        if !HUNG_AFTER_MAY_BE.contains(&self.hung_after) {
            return Err(vec![format!(
                "fallback: hung_after is {}; it is a time in milliseconds, from {} to {}",
                self.hung_after,
                HUNG_AFTER_MAY_BE.start(),
                HUNG_AFTER_MAY_BE.end()
            )]);
        }
        Ok(Fallback {
            mode: self.mode,
            hung_after: Duration::from_millis(self.hung_after.unsigned_abs()),
            peers: Vec::new(),
        })
    }
}

/// `[[fallback.peer]]` as written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct PeerEntry {
    #[serde(deserialize_with = "net")]
    remote: IpNet,
    mode: Mode,
}

impl PeerEntry {
    /// Checks the entry.
    pub(crate) fn check(self) -> Result<(IpNet, Mode), Vec<String>> {
        let name = format!("fallback.peer {}", short(&self.remote));
        let mut problems = Vec::new();
        net_problems("remote", &self.remote, &mut |text: String| {
            problems.push(format!("{name}: {text}"));
        });
        if problems.is_empty() {
            Ok((self.remote, self.mode))
        } else {
            Err(problems)
        }
    }
}

/// How problems name a peer that may be wrong in its form.
pub(crate) fn peer_as_written(value: &DeValue<'_>) -> String {
    let remote = value
        .get("remote")
        .and_then(|value| value.get_ref().as_str());
    format!("fallback.peer {}", remote.unwrap_or("?"))
}

//! By whom policies may be served, where nothing else is said.

use std::time::Duration;

use culvert_proto::policy::Mode;
use ipnet::IpNet;

/// `[fallback]` of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fallback {
    /// For every policy that has no mode of its own.
    pub mode: Mode,
    /// How long the datapath's heart may be silent before it counts as hung.
    pub hung_after: Duration,
    /// Modes by peer; the longest prefix that contains the policy's peers counts.
    pub peers: Vec<(IpNet, Mode)>,
}

impl Default for Fallback {
    fn default() -> Self {
        Self {
            mode: Mode::default(),
            hung_after: Duration::from_millis(100),
            peers: Vec::new(),
        }
    }
}

impl Fallback {
    /// The mode of a policy with these peers.
    #[must_use]
    pub fn mode_for(&self, remote: &IpNet) -> Mode {
        let fitting = self.peers.iter().filter(|(net, _)| net.contains(remote));
        let longest = fitting.max_by_key(|(net, _)| net.prefix_len());
        longest.map_or(self.mode, |(_, mode)| *mode)
    }
}

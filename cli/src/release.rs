//! `culvert release`.

use std::path::Path;

use culvert_proto::policy::short;
use ipnet::IpNet;
use serde::Serialize;

use crate::{ask, print, print_json};

#[derive(clap::Args)]
#[command(override_usage = "culvert release [OPTIONS] <PEER|--all>")]
pub(crate) struct Arguments {
    /// The peer, or prefix of peers, as "culvert status" names it
    #[arg(value_name = "PEER", required_unless_present = "all", value_parser = peer)]
    peer: Option<IpNet>,
    /// All that are blocked so
    #[arg(long, conflicts_with = "peer")]
    all: bool,
    /// For programs: one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// A host's address is a prefix of full length.
fn peer(text: &str) -> Result<IpNet, String> {
    let host = text.parse::<std::net::IpAddr>().map(IpNet::from);
    host.or_else(|_| text.parse())
        .map_err(|_| "not an address or prefix, as in 192.0.2.2 or 192.0.2.0/24".to_owned())
}

/// What came of it. `--json` prints it as it is.
#[derive(Debug, Serialize)]
struct Report {
    released: Vec<IpNet>,
}

pub(crate) fn run(arguments: &Arguments, run: &Path) -> anyhow::Result<bool> {
    let released = ask::release(run, arguments.peer)?;
    let report = Report { released };
    if arguments.json {
        print_json(&report)?;
    } else {
        for net in &report.released {
            print(&format!(
                "released: Geneve with {} goes in clear\n",
                short(net)
            ))?;
        }
        if let (Some(peer), []) = (&arguments.peer, &report.released[..]) {
            anyhow::bail!(
                "{} is not held; \"culvert status\" names those that are",
                short(peer)
            );
        }
    }
    Ok(!report.released.is_empty() || arguments.all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_is_an_address_or_a_prefix() {
        assert_eq!(peer("192.0.2.2").unwrap().to_string(), "192.0.2.2/32");
        assert_eq!(peer("2001:db8::/64").unwrap().prefix_len(), 64);
        assert!(peer("eth0").is_err());
    }
}

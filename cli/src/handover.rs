//! `culvert drain` and `culvert resume`: to the kernel's IPsec and back.

use std::path::Path;

use culvert_proto::policy::Place;
use culvert_proto::status::{KeymgrStatus, TunnelStatus};
use serde::Serialize;

use crate::table::Table;
use crate::{ask, print_report};

/// Tunnels that a screen takes.
const ROWS: usize = 12;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For programs: one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// Which way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the kernel.
    Drain,
    /// Back.
    Resume,
}

/// What came of it. `--json` prints it as it is.
#[derive(Debug, Serialize)]
struct Report {
    /// Whether everything is handed over now, or still; null if nobody knows.
    drained: Option<bool>,
    /// What is with whom now.
    tunnels: Vec<TunnelStatus>,
    problems: Vec<String>,
}

impl Report {
    fn ask(way: Way, run: &Path) -> Self {
        let answer = match way {
            Way::Drain => ask::drain(run),
            Way::Resume => ask::resume(run),
        };
        let mut problems = Vec::new();
        problems.extend(answer.err().map(|trouble| trouble.to_string()));
        let refused = !problems.is_empty();
        match ask::keymgr_status(run) {
            Ok(status) => Self::new(status, problems),
            Err(trouble) => {
                // Said once is enough.
                if !refused {
                    problems.push(trouble.to_string());
                }
                Self {
                    drained: None,
                    tunnels: Vec::new(),
                    problems,
                }
            }
        }
    }

    fn new(status: KeymgrStatus, problems: Vec<String>) -> Self {
        Self {
            drained: Some(status.drained),
            tunnels: status.tunnels,
            problems,
        }
    }

    /// What is with whom.
    fn text(&self) -> String {
        let count = |place| {
            let there = |tunnel: &&TunnelStatus| tunnel.place == place;
            self.tunnels.iter().filter(there).count()
        };
        let mut text = match self.drained {
            None => return String::new(),
            Some(true) => "drained, until \"culvert resume\"".to_owned(),
            Some(false) => "not drained".to_owned(),
        };
        for (place, with) in [
            (Place::Culvert, "Culvert"),
            (Place::Kernel, "the kernel"),
            (Place::Nobody, "nobody"),
        ] {
            match count(place) {
                0 => {}
                1 => text += &format!("; 1 tunnel with {with}"),
                count => text += &format!("; {count} tunnels with {with}"),
            }
        }
        if self.tunnels.is_empty() {
            text += "; there are no tunnels";
        }
        let mut table = Table::new(&["GENEVE BETWEEN", "NOW WITH", "WHY"]);
        // What is dropped first, so that it is on the screen.
        let mut sorted: Vec<&TunnelStatus> = self.tunnels.iter().collect();
        sorted.sort_by_key(|tunnel| tunnel.place != Place::Nobody);
        for tunnel in sorted.iter().take(ROWS) {
            let with = match tunnel.place {
                Place::Nobody => "nobody (dropping)",
                place => place.name(),
            };
            table.row([
                tunnel.selector.to_string(),
                with.to_owned(),
                tunnel.why.clone().unwrap_or_default(),
            ]);
        }
        text += "\n";
        text += &table.text();
        if sorted.len() > ROWS {
            text += &format!(
                "and {} more; \"culvert status --all\" shows them\n",
                sorted.len() - ROWS
            );
        }
        text
    }
}

pub(crate) fn run(way: Way, arguments: &Arguments, run: &Path) -> anyhow::Result<bool> {
    let report = Report::ask(way, run);
    print_report(&report, arguments.json, &report.text(), &report.problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::tests::keymgr;
    use culvert_proto::policy::{Mode, Selector};

    fn tunnel(host: u8, place: Place, why: Option<&str>) -> TunnelStatus {
        TunnelStatus {
            selector: Selector::hosts([192, 0, 2, 1].into(), [192, 0, 2, host].into()),
            source: "file".to_owned(),
            ike_peer: None,
            reqid: None,
            trap: false,
            mode: Mode::default(),
            place,
            why: why.map(str::to_owned),
        }
    }

    #[test]
    fn who_has_what_is_said_with_what_is_dropped_first() {
        let mut status = keymgr();
        status.drained = true;
        status.tunnels = (2..30)
            .map(|host| tunnel(host, Place::Kernel, Some("drained")))
            .collect();
        status
            .tunnels
            .push(tunnel(99, Place::Nobody, Some("the mode is culvert-only")));
        let text = Report::new(status, Vec::new()).text();
        for wanted in [
            "drained, until \"culvert resume\"; 28 tunnels with the kernel; 1 tunnel with nobody\n",
            "192.0.2.1 to 192.0.2.99  nobody (dropping)  the mode is culvert-only",
            "and 17 more",
        ] {
            assert!(text.contains(wanted), "{wanted}:\n{text}");
        }
        let text = Report::new(keymgr(), Vec::new()).text();
        assert_eq!(text, "not drained; there are no tunnels\n");
    }

    #[test]
    fn without_a_key_manager_nothing_is_handed_over() {
        let run = tempfile::tempdir().unwrap();
        for way in [Way::Drain, Way::Resume] {
            let report = Report::ask(way, run.path());
            assert!(report.drained.is_none() && report.text().is_empty());
            assert_eq!(report.problems.len(), 1);
            assert!(report.problems[0].contains("culvert-keymgr is not running"));
        }
    }
}

//! `culvert status`: both daemons on one screen. [`tunnels`] joins what they say of each policy, [`problems`] judges,
//! [`view`] lays out.

mod problems;
mod tunnels;
mod view;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use culvert_proto::status::{DatapathStatus, KeymgrStatus};
use serde::Serialize;

use crate::ask::{self, Trouble};
use crate::{print, print_json};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For programs: one JSON object on stdout
    #[arg(long)]
    json: bool,
    /// Show every policy and SA, also when they are more than a screen takes, and what the kernel protects beside Geneve
    #[arg(long)]
    all: bool,
    /// Show it again every so many seconds
    #[arg(
        long,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "1",
        value_parser = clap::value_parser!(u64).range(1..=3600),
        conflicts_with = "json"
    )]
    watch: Option<u64>,
}

/// What `--json` prints.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Report {
    datapath: Option<DatapathStatus>,
    keymgr: Option<KeymgrStatus>,
    /// What is not well, and what to do; empty: all is.
    problems: Vec<String>,
    /// What is well, but not as it is meant to be: tunnels that the kernel has taken over. They are protected, so that the
    /// exit code is that of a good state; whatever keeps the datapath from serving is a problem of its own.
    notices: Vec<String>,
    /// What people see in the place of a daemon's time: `down` if it is known to be.
    #[serde(skip)]
    absence: [&'static str; 2],
}

impl Report {
    fn ask(run: &Path) -> Self {
        Self::new(ask::datapath_status(run), ask::keymgr_status(run))
    }

    fn new(
        datapath: Result<DatapathStatus, Trouble>,
        keymgr: Result<KeymgrStatus, Trouble>,
    ) -> Self {
        let troubles = [datapath.as_ref().err(), keymgr.as_ref().err()];
        let mut problems: Vec<String> =
            troubles.iter().flatten().map(ToString::to_string).collect();
        if let Ok(keymgr) = &keymgr {
            problems.extend(problems::of_keymgr(keymgr, datapath.is_ok()));
        }
        let tunnels = tunnels::join(datapath.as_ref().ok(), keymgr.as_ref().ok());
        problems.extend(problems::of_tunnels(&tunnels, datapath.as_ref().ok()));
        let drained = keymgr.as_ref().is_ok_and(|keymgr| keymgr.drained);
        let notices = problems::fallen_back(&tunnels, drained);
        Self {
            absence: [absence(&datapath), absence(&keymgr)],
            datapath: datapath.ok(),
            keymgr: keymgr.ok(),
            problems,
            notices,
        }
    }
}

fn absence<T>(answer: &Result<T, Trouble>) -> &'static str {
    match answer {
        Err(Trouble::Down { .. }) => "down",
        _ => "?",
    }
}

pub(crate) fn run(arguments: &Arguments, run: &Path) -> anyhow::Result<bool> {
    let Some(seconds) = arguments.watch else {
        let report = Report::ask(run);
        if arguments.json {
            print_json(&report)?;
        } else {
            print(&view::text(&report, arguments.all))?;
        }
        return Ok(report.problems.is_empty());
    };
    // Clears the screen, if it is one.
    let before = if io::stdout().is_terminal() {
        "\x1b[H\x1b[2J"
    } else {
        ""
    };
    loop {
        let text = view::text(&Report::ask(run), arguments.all);
        print(&format!("{before}{text}\n"))?;
        std::thread::sleep(Duration::from_secs(seconds));
    }
}

#[cfg(test)]
pub(crate) mod tests;

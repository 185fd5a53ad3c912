//! `culvert status`: both daemons on one screen.

mod view;

use std::io::{self, IsTerminal};
use std::path::Path;
use std::time::Duration;

use culvert_proto::sa::Action;
use culvert_proto::status::{DatapathStatus, KeymgrStatus, PolicyStatus, SaStatus};
use serde::Serialize;

use crate::ask::{self, Trouble};
use crate::{print, print_json};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For programs: one JSON object on stdout
    #[arg(long)]
    json: bool,
    /// Show every policy and SA, also when they are more than a screen takes
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
        let mut problems = Vec::new();
        if let Err(trouble) = &datapath {
            problems.push(trouble.to_string());
        }
        match &keymgr {
            Err(trouble) => problems.push(trouble.to_string()),
            Ok(keymgr) => {
                if datapath.is_ok() && !keymgr.datapath_in_sync {
                    problems.push(format!(
                        "the datapath does not have what is wanted: {}",
                        keymgr
                            .datapath_problem
                            .as_deref()
                            .unwrap_or("it is being pushed")
                    ));
                }
                if let Some(text) = &keymgr.refused {
                    problems.push(format!(
                        "not taken over from {}; mend this and run \"culvert reload\":\n{text}",
                        keymgr.source
                    ));
                }
            }
        }
        if let Ok(datapath) = &datapath {
            problems.extend(datapath.policies.iter().filter_map(unprotected));
            problems.extend(datapath.sas.iter().filter_map(running_out));
        }
        Self {
            absence: [absence(&datapath), absence(&keymgr)],
            datapath: datapath.ok(),
            keymgr: keymgr.ok(),
            problems,
        }
    }
}

fn absence<T>(answer: &Result<T, Trouble>) -> &'static str {
    match answer {
        Err(Trouble::Down { .. }) => "down",
        _ => "?",
    }
}

fn is_protected(policy: &PolicyStatus) -> bool {
    !policy.protected_by.starts_with("none")
}

fn unprotected(policy: &PolicyStatus) -> Option<String> {
    if is_protected(policy) {
        return None;
    }
    let Action::Protect { outbound, inbound } = &policy.action else {
        return None;
    };
    let lacking = match (outbound, inbound.is_empty()) {
        (None, true) => "it names no SA",
        (None, false) => "it names no outbound SA (out)",
        (Some(_), true) => "it names no inbound SA (in)",
        (Some(_), false) => "its SA has reached the end of its life",
    };
    Some(format!(
        "Geneve from {} is blocked: {lacking}",
        policy.selector
    ))
}

// RFC 4303 §3.3.3 [3.3.3-in-anticipation]
/// A static key is never rekeyed by itself.
fn running_out(sa: &SaStatus) -> Option<String> {
    let what = match sa.state.as_str() {
        "expired" => "has reached the end of its life and is stopped",
        "expiring" => "has reached its soft lifetime and will stop",
        _ => return None,
    };
    Some(format!(
        "SA {} {} {what}: give it a new key on both hosts",
        sa.spi, sa.direction
    ))
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
mod tests;

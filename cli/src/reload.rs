//! `culvert reload`.

use std::path::Path;

use culvert_proto::message::Changes;
use serde::Serialize;

use crate::{ask, print_report};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For programs: one JSON object on stdout
    #[arg(long)]
    json: bool,
}

/// What came of it. `--json` prints it as it is.
#[derive(Debug, Serialize)]
struct Report {
    /// What changed; null if nothing was loaded.
    reloaded: Option<Changes>,
    /// Whether the datapath has all of it.
    datapath_in_sync: bool,
    /// Whether the kernel has it in the datapath's place.
    by_kernel: bool,
    problems: Vec<String>,
}

impl Report {
    fn ask(run: &Path) -> Self {
        let mut problems = Vec::new();
        let reloaded = ask::reload(run)
            .map_err(|trouble| problems.push(trouble.to_string()))
            .ok();
        // What is wanted and what runs are two things: a reload is good when they are one.
        let (mut datapath_in_sync, mut by_kernel) = (false, false);
        if reloaded.is_some() {
            match ask::keymgr_status(run) {
                Ok(status) => {
                    datapath_in_sync = status.datapath_in_sync;
                    by_kernel = !datapath_in_sync && status.kernel_problem.is_none();
                    if !datapath_in_sync && !by_kernel {
                        problems.push(format!(
                            "loaded, but the datapath does not have it yet: {}",
                            status
                                .datapath_problem
                                .as_deref()
                                .unwrap_or("it takes long")
                        ));
                    }
                }
                Err(trouble) => problems.push(trouble.to_string()),
            }
        }
        Self {
            reloaded,
            datapath_in_sync,
            by_kernel,
            problems,
        }
    }

    fn text(&self) -> String {
        let Some(changes) = &self.reloaded else {
            return String::new();
        };
        let text = summary(changes);
        if self.datapath_in_sync {
            format!("reloaded: {text}; the datapath has it\n")
        } else if self.by_kernel {
            format!("reloaded: {text}; the kernel has it, as the datapath does not serve\n")
        } else {
            format!("reloaded: {text}\n")
        }
    }
}

/// What changed, in words.
pub(crate) fn summary(changes: &Changes) -> String {
    let mut parts = Vec::new();
    for (count, what) in [
        (changes.sas_added, "SA added"),
        (changes.sas_changed, "SA changed"),
        (changes.sas_removed, "SA removed"),
        (changes.policies_added, "policy added"),
        (changes.policies_changed, "policy changed"),
        (changes.policies_removed, "policy removed"),
    ] {
        match count {
            0 => {}
            1 => parts.push(format!("1 {what}")),
            _ => parts.push(format!(
                "{count} {}",
                what.replace("SA", "SAs").replace("policy", "policies")
            )),
        }
    }
    if parts.is_empty() {
        "nothing changed".to_owned()
    } else {
        parts.join(", ")
    }
}

pub(crate) fn run(arguments: &Arguments, run: &Path) -> anyhow::Result<bool> {
    let report = Report::ask(run);
    print_report(&report, arguments.json, &report.text(), &report.problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_put_in_words() {
        assert_eq!(summary(&Changes::default()), "nothing changed");
        let changes = Changes {
            sas_added: 2,
            policies_removed: 1,
            ..Changes::default()
        };
        assert_eq!(summary(&changes), "2 SAs added, 1 policy removed");
    }

    #[test]
    fn without_a_key_manager_nothing_is_reloaded() {
        let run = tempfile::tempdir().unwrap();
        let report = Report::ask(run.path());
        assert!(report.reloaded.is_none() && report.text().is_empty());
        assert!(report.problems[0].contains("culvert-keymgr is not running"));
    }
}

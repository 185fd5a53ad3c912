//! `culvert doctor`: what this machine lacks for Culvert, each with the command that mends it.
//!
//! [`probe`] and [`links`] ask the kernel; [`kernel`], [`host`] and [`interface`] judge what it says, and can be
//! tested without it.

mod host;
mod interface;
mod kernel;
mod links;
mod probe;

use std::fmt::Write;
use std::path::{Path, PathBuf};

use culvert_proto::status::DatapathStatus;
use serde::{Deserialize, Serialize};

use crate::{ask, print, print_json};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// For programs: one JSON object on stdout
    #[arg(long)]
    json: bool,
    /// The underlay NIC; unless given, the one that the datapath uses or is set to use
    #[arg(long, value_name = "IFACE")]
    wire: Option<String>,
    /// Settings of culvert-datapath, which name the NIC
    #[arg(
        long,
        value_name = "FILE",
        default_value = "/etc/culvert/datapath.toml"
    )]
    settings: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// As it should be.
    Ok,
    /// Culvert works, but not as well as it could, or not for long.
    Warn,
    /// Culvert does not work.
    Fail,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "fail",
        }
    }
}

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    level: Level,
    found: String,
    /// The command that mends it, or what to do.
    mend: Option<String>,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            level: Level::Ok,
            found: found.into(),
            mend: None,
        }
    }

    fn warn(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            mend: Some(mend.into()),
            ..Self::ok(check, found)
        }
    }

    fn fail(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            level: Level::Fail,
            ..Self::warn(check, found, mend)
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report {
    checks: Vec<Finding>,
    fail: usize,
    warn: usize,
}

impl Report {
    fn new(checks: Vec<Finding>) -> Self {
        let count = |level| {
            checks
                .iter()
                .filter(|finding| finding.level == level)
                .count()
        };
        Self {
            fail: count(Level::Fail),
            warn: count(Level::Warn),
            checks,
        }
    }

    fn text(&self) -> String {
        let width = self.checks.iter().map(|finding| finding.check.len()).max();
        let width = width.unwrap_or(0);
        let mut text = String::new();
        // Writing to a string does not fail.
        for finding in &self.checks {
            let (level, check) = (finding.level.name(), finding.check);
            let _ = writeln!(text, "{level:<4}  {check:<width$}  {}", finding.found);
            if let Some(mend) = &finding.mend {
                let _ = writeln!(text, "      {:<width$}  -> {mend}", "");
            }
        }
        let _ = match (self.fail, self.warn) {
            (0, 0) => writeln!(text, "\nThis machine has what Culvert needs."),
            (0, warn) => writeln!(text, "\nCulvert runs here; {warn} could be better."),
            (fail, warn) => writeln!(text, "\n{fail} must be mended, {warn} could be better."),
        };
        text
    }
}

pub(crate) fn run(arguments: &Arguments, run: &Path) -> anyhow::Result<bool> {
    let report = Report::new(examine(arguments, run));
    if arguments.json {
        print_json(&report)?;
    } else {
        print(&report.text())?;
    }
    Ok(report.fail == 0)
}

fn examine(arguments: &Arguments, run: &Path) -> Vec<Finding> {
    let datapath = ask::datapath_status(run);
    let keymgr = ask::keymgr_status(run);
    let interfaces = interfaces(arguments, datapath.as_ref().ok());

    let mut findings = kernel::examine();
    findings.extend(host::examine());
    match &interfaces.wire {
        Some(wire) => findings.extend(interface::examine(wire, &interfaces.host_port)),
        None => findings.push(Finding::warn(
            "NIC",
            "nobody says which: not checked",
            "culvert doctor --wire IFACE",
        )),
    }
    findings.extend(host::daemons(&datapath, &keymgr));
    findings
}

struct Interfaces {
    wire: Option<String>,
    host_port: String,
}

/// What the checks need of the datapath's settings; it checks them itself.
#[derive(Default, Deserialize)]
struct Settings {
    wire: Option<String>,
    host_interface: Option<String>,
}

/// Which interfaces: what is asked for, what runs, what is set, in this order.
fn interfaces(arguments: &Arguments, datapath: Option<&DatapathStatus>) -> Interfaces {
    let running = |role: &str| {
        let port = datapath?.ports.iter().find(|port| port.role == role)?;
        Some(port.interface.clone())
    };
    let settings: Settings = std::fs::read_to_string(&arguments.settings)
        .ok()
        .and_then(|text| toml::from_str(&text).ok())
        .unwrap_or_default();
    Interfaces {
        wire: arguments
            .wire
            .clone()
            .or_else(|| running("wire"))
            .or(settings.wire),
        host_port: running("host")
            .or(settings.host_interface)
            .unwrap_or_else(|| "cvhost0".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_counts_and_shows_what_mends() {
        let report = Report::new(vec![
            Finding::ok("a", "good"),
            Finding::warn("long name", "slow", "sysctl x=1"),
            Finding::fail("b", "bad", "ip link set"),
        ]);
        assert_eq!((report.fail, report.warn), (1, 1));
        let text = report.text();
        assert!(
            text.contains("warn  long name  slow\n") && text.contains("-> sysctl x=1"),
            "{text}"
        );
        assert!(
            text.contains("1 must be mended, 1 could be better"),
            "{text}"
        );
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(json["checks"][2]["level"], "fail");
        assert!(json["checks"][0]["mend"].is_null());
    }

    #[test]
    fn the_nic_comes_from_the_settings_unless_given() {
        let directory = tempfile::tempdir().unwrap();
        let settings = directory.path().join("datapath.toml");
        std::fs::write(&settings, "wire = 'eth7'\nworkers = 1\n").unwrap();
        let mut arguments = Arguments {
            json: false,
            wire: None,
            settings,
        };
        let found = interfaces(&arguments, None);
        assert_eq!(
            (found.wire.as_deref(), &found.host_port[..]),
            (Some("eth7"), "cvhost0")
        );
        arguments.wire = Some("eth8".to_owned());
        assert_eq!(interfaces(&arguments, None).wire.as_deref(), Some("eth8"));
    }
}

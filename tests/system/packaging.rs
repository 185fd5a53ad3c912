//! How Culvert comes to a machine: the installation, and the units of systemd.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use culvert_tests::lab::{Lab, Plan};
use culvert_tests::netns::run;
use culvert_tests::{load, systemd};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[(
    "what_the_units_allow_is_enough",
    what_the_units_allow_is_enough,
)];

pub(crate) const ANALYZE: &[(&str, crate::Test)] = &[(
    "units_are_right_and_leave_little_open",
    units_are_right_and_leave_little_open,
)];

/// Exposure of each unit by `systemd-analyze security`, in tenths: what systemd 252 comes to.
const EXPOSURE: [(&str, u32); 2] = [("culvert-datapath", 27), ("culvert-keymgr", 15)];

/// What is installed, beside the units.
const BUILT: [&str; 5] = [
    "culvert-datapath",
    "culvert-keymgr",
    "culvert",
    "culvert-bench",
    "libstrongswan_kernel_culvert.so",
];

/// Why there is no systemd to judge the units, if so. Fetches it.
pub(crate) fn systemd_missing() -> Option<String> {
    systemd::find().err()?.lacking()
}

/// `./dev install` or `uninstall` below `folder`, of programs that only stand in for those that are built.
fn script(command: &str, folder: &Path) -> Command {
    let mut script = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../dev"));
    script
        .arg(command)
        .env("DESTDIR", folder.join("root"))
        .env("PREFIX", "/opt/culvert")
        .env("CULVERT_BUILT", folder.join("built"));
    script
}

/// As `./dev install` puts them: complete, without a word of complaint, and no more open than they have to be.
fn units_are_right_and_leave_little_open() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let folder = folder.path();
    let root = folder.join("root");
    std::fs::create_dir(folder.join("built"))?;
    for name in BUILT {
        std::fs::write(folder.join("built").join(name), name)?;
    }
    run(&mut script("install", folder))?;
    let units = root.join("opt/culvert/lib/systemd/system");
    let systemd = systemd::find()?;
    for (name, most) in EXPOSURE {
        let program = format!("/opt/culvert/sbin/{name}");
        let unit = units.join(format!("{name}.service"));
        let text = std::fs::read_to_string(&unit)?;
        ensure!(text.contains(&format!("ExecStart={program}\n")), "{text}");
        let installed = root.join(&program[1..]);
        ensure!(std::fs::read_to_string(&installed)? == name);
        // It looks for the program, which is where it would be if it was installed for good.
        std::fs::write(
            &unit,
            text.replace(&program, &installed.display().to_string()),
        )?;

        let analyze = || systemd::analyze(&systemd, &units);
        let mut verify = analyze();
        let output = verify
            .args(["verify", "--man=no"])
            .arg(&unit)
            .output()
            .context("systemd-analyze")?;
        let complaints = String::from_utf8_lossy(&output.stderr);
        // The machine's own units are none of ours.
        let ours = complaints.lines().find(|line| line.contains("culvert"));
        ensure!(output.status.success() && ours.is_none(), "{complaints}");
        run(analyze()
            .args(["security", "--no-pager", "--offline=yes"])
            .arg(format!("--threshold={most}"))
            .arg(&unit))?;
    }
    run(&mut script("uninstall", folder))?;
    let left = run(Command::new("find").arg(&root).args(["-type", "f"]))?;
    ensure!(left.is_empty(), "left: {left}");
    Ok(())
}

/// The capabilities of the units, under this machine's kernel and its guards against Spectre: from start to traffic, and
/// when they take over what was left.
fn what_the_units_allow_is_enough() -> Result<()> {
    let mut lab = Lab::new(Plan {
        confined: true,
        ..Plan::default()
    })?;
    lab.start_culvert()?;
    ensure!(load::ping(&lab, 10)?.received == 10);
    lab.kill_datapath(0)?;
    lab.start_datapath(0)?;
    lab.wait_for_protection(0)?;
    ensure!(load::ping(&lab, 10)?.received == 10);
    Ok(())
}

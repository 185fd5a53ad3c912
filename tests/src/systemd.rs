//! systemd, which starts the daemons on real hosts: this machine's, or Debian's unpacked in the cache where there is none.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use anyhow::{Context, Result};

use crate::hypervisor::fetch;
use crate::netns::Unprepared;

/// The folder of an unpacked systemd, if it is not to be this machine's. [`find`] is told by it inside the guest, too.
pub const VARIABLE: &str = "CULVERT_SYSTEMD";

/// systemd itself, below the folder.
pub const PROGRAM: &str = "usr/lib/systemd/systemd";

/// Where Culvert's units are, for [`unit`].
fn units() -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "..", "packaging", "systemd"]
        .iter()
        .collect()
}

/// The unit of one of Culvert's daemons, as it is packaged.
///
/// # Errors
/// It cannot be read.
pub fn unit(daemon: &str) -> Result<String> {
    let path = units().join(format!("{daemon}.service"));
    std::fs::read_to_string(&path).with_context(|| path.display().to_string())
}

/// The folder that has systemd: `/`, or one that is like it.
///
/// # Errors
/// It is not to be had; the text says why.
pub fn find() -> Result<PathBuf, Unprepared> {
    static FOLDER: OnceLock<Result<PathBuf, Unprepared>> = OnceLock::new();
    let find = || match std::env::var_os(VARIABLE) {
        Some(folder) => Ok(folder.into()),
        None if Path::new("/").join(PROGRAM).exists() => Ok("/".into()),
        // There is no network to fetch it by.
        None if std::env::var_os("CULVERT_GUEST").is_some() => Err(Unprepared::lacks(
            "there is no systemd, nor could it be fetched",
        )),
        None => fetch(Some("--systemd")),
    };
    FOLDER.get_or_init(find).clone()
}

/// `systemd-analyze` of the systemd in `folder`, for units that are in `units`.
#[must_use]
pub fn analyze(folder: &Path, units: &Path) -> Command {
    let mut command = Command::new(folder.join("usr/bin/systemd-analyze"));
    let system = folder.join("usr/lib/systemd/system");
    command.env(
        "SYSTEMD_UNIT_PATH",
        format!("{}:{}", units.display(), system.display()),
    );
    if folder != Path::new("/") {
        let libraries = folder.join("usr/lib/x86_64-linux-gnu");
        let own = libraries.join("systemd");
        let both = format!("{}:{}", libraries.display(), own.display());
        command.env("LD_LIBRARY_PATH", both);
    }
    command
}

//! A run in the guest: a stock kernel with ESP on an emulated CPU, whose clock advances a nanosecond an instruction.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail, ensure};

use super::{Event, Stop};

/// The script that starts it, in a checkout.
const RUN: &str = "tests/guest/run";
/// Seconds after which a guest is hung for sure.
const LIMIT: &str = "14400";
/// What a line that is an event begins with.
const MARK: char = '@';

/// Tells an event to who has started the guest.
pub fn report(event: &Event) {
    if let Ok(json) = serde_json::to_string(event) {
        println!("{MARK}{json}");
    }
}

/// Runs this program in the guest with `arguments`, and tells its events.
///
/// # Errors
/// There can be no guest here, it failed, or was interrupted.
pub fn measure(arguments: &[String], stop: &Stop, tell: &mut dyn FnMut(Event)) -> Result<()> {
    ensure!(
        Path::new(RUN).exists(),
        "there is no {RUN}: --lab needs the source tree, and is run in it, by ./dev bench"
    );
    let mut guest = Command::new(RUN)
        .arg(std::env::current_exe()?)
        .args(arguments)
        .env("CULVERT_GUEST_COUNT", "1")
        .env("CULVERT_GUEST_LIMIT", LIMIT)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context(RUN)?;
    let output = guest.stdout.take().context("no output")?;
    for line in BufReader::new(output).lines() {
        let line = line?;
        match line.strip_prefix(MARK) {
            Some(json) => tell(serde_json::from_str(json).context("an event")?),
            None => eprintln!("guest: {line}"),
        }
    }
    let status = guest.wait()?;
    stop.check()?;
    if !status.success() {
        bail!("{RUN}: {status}");
    }
    Ok(())
}

//! A run in the guest: a stock kernel with ESP on an emulated CPU, whose clock advances a nanosecond an instruction.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Event, Stop};

/// The script that starts it, in a checkout.
const RUN: &str = "tests/guest/run";
/// Seconds after which a guest is hung for sure.
const LIMIT: &str = "14400";
/// How soon it is seen that somebody wants us to end.
const LOOK: Duration = Duration::from_millis(100);
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
    let pid = Pid::from_raw(guest.id().cast_signed());
    let ended = AtomicBool::new(false);
    let heard = std::thread::scope(|scope| {
        // Whoever reads lines does not see that somebody wants us to end.
        scope.spawn(|| {
            while !ended.load(Ordering::Relaxed) {
                if stop.is_set() {
                    let _ = kill(pid, Signal::SIGTERM);
                    break;
                }
                std::thread::sleep(LOOK);
            }
        });
        let heard = hear(output, tell);
        ended.store(true, Ordering::Relaxed);
        heard
    });
    let status = guest.wait()?;
    stop.check()?;
    heard?;
    if !status.success() {
        bail!("{RUN}: {status}");
    }
    Ok(())
}

fn hear(output: ChildStdout, tell: &mut dyn FnMut(Event)) -> Result<()> {
    for line in BufReader::new(output).lines() {
        let line = line?;
        match line.strip_prefix(MARK) {
            Some(json) => tell(serde_json::from_str(json).context("an event")?),
            None => eprintln!("guest: {line}"),
        }
    }
    Ok(())
}

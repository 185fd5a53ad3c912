//! `culvert down`: everything is taken away, on purpose.
//!
//! The order: look, say what it means, be told to go on; only then end the key manager, which would hand over to the
//! kernel if it saw the datapath end; then the datapath; then what the key manager left, and last the guard on the
//! NIC, which drops what the workers would have sealed until then. What fails on the way stops all. Both daemons end with exit status
//! 0, so that what restarts only failures does not start them again.

mod found;

use std::fmt::Write;
use std::io::{self, BufRead, IsTerminal};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use culvert_proto::channel::{Lock, LockError};
use culvert_proto::{DATAPATH_SOCKET, KEYMGR_SOCKET};
use serde::Serialize;

use self::found::Found;
use crate::ask::{self, DATAPATH, KEYMGR, Trouble};
use crate::{print, print_json};

/// How long a daemon may take to end.
const PATIENCE: Duration = Duration::from_secs(5);

/// Tunnels that are named before it is asked.
const ROWS: usize = 12;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Do not ask
    #[arg(long)]
    yes: bool,
    /// Settings of culvert-datapath, which name what it has to take away; if none are named,
    /// /etc/culvert/datapath.toml, which may be missing where there is no datapath
    #[arg(long, value_name = "FILE")]
    datapath_config: Option<PathBuf>,
    /// For programs: one JSON object on stdout
    #[arg(long, requires = "yes")]
    json: bool,
}

/// What came of it. `--json` prints it as it is.
#[derive(Debug, Default, Serialize)]
struct Report {
    /// Geneve that was protected or blocked, and is in clear now.
    in_clear: Vec<String>,
    /// What was done, in that order; empty: there was nothing to do.
    done: Vec<String>,
    /// What was not.
    problems: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments, run: &Path) -> Result<bool> {
    ensure!(nix::unistd::geteuid().is_root(), "needs root");
    let found = Found::look(arguments.datapath_config.as_deref(), run)?;
    if found.is_nothing() {
        if arguments.json {
            print_json(&Report::default())?;
        } else {
            print("there is nothing of Culvert to take away\n")?;
        }
        return Ok(true);
    }
    if !arguments.json {
        print(&warning(&found))?;
    }
    if !arguments.yes && !agreed()? {
        print("nothing was changed\n")?;
        return Ok(false);
    }
    let mut report = Report::default();
    let result = take_down(&found, run, |step| {
        if !arguments.json {
            print(&format!("{step}\n"))?;
        }
        report.done.push(step);
        Ok(())
    });
    match result {
        Ok(()) => report.in_clear = found.tunnels(),
        Err(error) => report.problems.push(format!("{error:#}")),
    }
    if arguments.json {
        print_json(&report)?;
    } else if report.problems.is_empty() {
        print("done: Geneve leaves in clear, until both daemons are started again\n")?;
    }
    if let ([problem], false) = (&report.problems[..], arguments.json) {
        bail!("{problem}\nit stopped there; once that is mended, run \"culvert down\" again");
    }
    Ok(report.problems.is_empty())
}

/// What it means.
fn warning(found: &Found) -> String {
    let tunnels = found.tunnels();
    let mut text = "This takes Culvert away: ".to_owned();
    text += &found.parts().join(", ");
    text += ".\n";
    if tunnels.is_empty() {
        text += if found.answers() {
            "No Geneve is protected or blocked now.\n"
        } else {
            "No daemon runs to say which Geneve is protected or blocked now; all that is will leave in clear.\n"
        };
    } else {
        text += "This Geneve is protected or blocked now, and will leave IN CLEAR:\n";
    }
    // Writing to a string does not fail.
    for tunnel in tunnels.iter().take(ROWS) {
        let _ = writeln!(text, "  {tunnel}");
    }
    if tunnels.len() > ROWS {
        let _ = writeln!(
            text,
            "  and {} more; \"culvert status --all\" shows them",
            tunnels.len() - ROWS
        );
    }
    text += "It stays so until culvert-keymgr and culvert-datapath are started again. Peers that still protect it drop what \
             comes in clear.\n";
    if found.has_charon() {
        text += "strongSwan's connections are not taken down.\n";
    }
    text
}

/// Whether whoever is at the terminal agrees.
fn agreed() -> Result<bool> {
    let stdin = io::stdin();
    ensure!(
        stdin.is_terminal(),
        "nothing was changed: there is no terminal to ask on; to go on without being asked, run \"culvert down --yes\""
    );
    print("Go on? [y/N] ")?;
    let mut answer = String::new();
    stdin.lock().read_line(&mut answer)?;
    Ok(is_yes(&answer))
}

fn is_yes(answer: &str) -> bool {
    matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes")
}

/// All steps, each told when it is done.
fn take_down(
    found: &Found,
    run: &Path,
    mut done: impl FnMut(String) -> io::Result<()>,
) -> Result<()> {
    if found.keymgr.is_some() {
        end(KEYMGR, run, ask::end_keymgr)?;
        done(format!("{KEYMGR} has ended"))?;
    }
    if found.datapath.is_some() {
        end(DATAPATH, run, ask::end_datapath)?;
        done(format!("{DATAPATH} has ended"))?;
    }
    remove(Command::new(beside(KEYMGR)).arg("--run-dir").arg(run))
        .with_context(|| format!("{KEYMGR} --remove"))?;
    done("what the key manager had left is removed".to_owned())?;
    if found.is_guarded() {
        remove(
            Command::new(beside(DATAPATH))
                .arg("--config")
                .arg(&found.settings)
                .arg("--run-dir")
                .arg(run),
        )
        .with_context(|| format!("{DATAPATH} --remove"))?;
        done("the eBPF programs and the host port are removed".to_owned())?;
    }
    Ok(())
}

/// Tells a daemon to end, and waits until it has.
fn end(program: &str, run: &Path, tell: fn(&Path) -> Result<(), Trouble>) -> Result<()> {
    match tell(run) {
        // It has ended by itself meanwhile.
        Ok(()) | Err(Trouble::Down { .. }) => {}
        Err(trouble) => bail!("{trouble}"),
    }
    let socket = run.join(if program == KEYMGR {
        KEYMGR_SOCKET
    } else {
        DATAPATH_SOCKET
    });
    let begun = Instant::now();
    while !has_ended(program, run, &socket)? {
        ensure!(
            begun.elapsed() < PATIENCE,
            "{program} was told to end, and still runs after {} s, or something has started it again: stop its service, as \
             in \"systemctl stop {program}\"",
            PATIENCE.as_secs()
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Whether nobody listens and nobody has the lock, which is held until the very end of a process.
fn has_ended(program: &str, run: &Path, socket: &Path) -> Result<bool> {
    match Lock::take(run, program) {
        // Its socket is asked last, as it would wonder in its log who has nothing to say.
        Ok(_) => Ok(UnixStream::connect(socket).is_err()),
        Err(LockError::Held { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// The program beside this one, or the one in PATH.
fn beside(program: &str) -> PathBuf {
    let own = std::env::current_exe().ok();
    own.and_then(|own| Some(own.parent()?.join(program)))
        .filter(|path| path.is_file())
        .unwrap_or_else(|| program.into())
}

/// Lets a daemon's program remove what it has left.
fn remove(command: &mut Command) -> Result<()> {
    let output = command
        .arg("--remove")
        .stdin(Stdio::null())
        .output()
        .with_context(|| {
            let program = command.get_program().display();
            format!("cannot run {program}; install it beside culvert, or in the PATH")
        })?;
    ensure!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}

#[cfg(test)]
mod tests;

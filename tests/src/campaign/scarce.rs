//! What there is no more of: room for the list of used keys, descriptors.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use culvert_proto::channel::Channel;
use culvert_proto::message::{DatapathReply, DatapathRequest, KeymgrReply, KeymgrRequest};
use culvert_proto::{DATAPATH_SOCKET, KEYMGR_SOCKET};
use nix::unistd::Pid;

use crate::lab::{Lab, Side};
use crate::netns::{run, wait_for};

/// The file system gives memory by pages.
const PAGE: usize = 4096;

/// Bytes that two keys take in the list of used keys.
const ENTRY: usize = 67;

/// The state directory of a side's key manager.
pub(super) fn state_directory(lab: &Lab, side: usize) -> PathBuf {
    lab.sides[side].folder.join("state")
}

/// Gives the key manager of a side, which does not run yet, a small file system for its state. It goes with the lab.
///
/// # Errors
/// It cannot be mounted.
pub fn mount_state(lab: &Lab, side: usize) -> Result<()> {
    let folder = state_directory(lab, side);
    fs::create_dir_all(&folder)?;
    nix::mount::mount(
        Some("tmpfs"),
        &folder,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        Some("size=1m,mode=700"),
    )
    .with_context(|| format!("tmpfs on {}", folder.display()))
}

/// A file system that is full.
pub(super) struct Disk {
    filling: PathBuf,
}

impl Disk {
    /// Fills it, so that what is written to the list of used keys is cut off somewhere, as `random` says.
    pub(super) fn fill(folder: &Path, random: usize) -> Result<Self> {
        let list = folder.join("used-keys");
        let length = usize::try_from(fs::metadata(&list)?.len())?;
        // Empty lines, which the key manager passes over, as the list could go on to the end of its page.
        let lines = (2 * PAGE - length % PAGE - random % ENTRY) % PAGE;
        let mut list = File::options().append(true).open(list)?;
        list.write_all(&b"\n".repeat(lines))?;
        let filling = folder.join("filling");
        let mut file = File::create(&filling)?;
        let full = loop {
            if let Err(error) = file.write_all(&[0; PAGE]) {
                break error;
            }
        };
        ensure!(full.kind() == ErrorKind::StorageFull, "filling: {full}");
        Ok(Self { filling })
    }

    pub(super) fn free(self) -> Result<()> {
        Ok(fs::remove_file(self.filling)?)
    }
}

/// A daemon that has no descriptor for one more connection.
#[derive(Debug)]
pub struct Descriptors {
    pid: Pid,
    datapath: bool,
    limits: String,
    held: Vec<UnixStream>,
}

impl Descriptors {
    /// Lowers the limit to what it has open, and connects until it does not answer: the datapath, or the key manager.
    ///
    /// # Errors
    /// It still answers.
    pub fn exhaust(pid: Pid, side: &Side, datapath: bool) -> Result<Self> {
        const CONNECTIONS: usize = 64;
        ask(side, datapath, Duration::from_secs(5)).context("before it lacks anything")?;
        // The kernel gives the lowest number that is free, and none from the limit on: two are left.
        let taken = open(pid)?;
        let mut free = (0..).filter(|number| !taken.contains(number));
        let limit = free.nth(2).context("a free number")?;
        let mut this = Self {
            pid,
            datapath,
            limits: limits(pid)?,
            held: Vec::new(),
        };
        let before = complaints(side, datapath);
        // The hard limit stays.
        prlimit(pid, &format!("{limit}:"))?;
        while this.held.len() < CONNECTIONS {
            this.held.push(UnixStream::connect(socket(side, datapath))?);
            // It may only be busy: that it does not answer is not enough. Its descriptors say nothing for sure, as a
            // thread that waits for connections has a number already.
            let said = || complaints(side, datapath) > before;
            let noticed = wait_for("it to notice", Duration::from_millis(100), said);
            if noticed.is_ok() && ask(side, datapath, Duration::from_millis(300)).is_err() {
                return Ok(this);
            }
        }
        this.restore()?;
        bail!("it still answers with {CONNECTIONS} connections");
    }

    fn restore(&self) -> Result<()> {
        prlimit(self.pid, &self.limits)
    }

    /// Gives them back: it answers again.
    ///
    /// # Errors
    /// It does not within `limit`.
    pub fn give_back(self, side: &Side, limit: Duration) -> Result<()> {
        self.restore()?;
        drop(self.held);
        wait_for(
            "an answer of a daemon that has descriptors again",
            limit,
            || ask(side, self.datapath, Duration::from_secs(1)).is_ok(),
        )
    }
}

/// How often a daemon has said that it cannot take a connection.
fn complaints(side: &Side, datapath: bool) -> usize {
    let log = ["keymgr.log", "datapath.log"][usize::from(datapath)];
    let text = fs::read_to_string(side.folder.join(log)).unwrap_or_default();
    text.matches("control socket: Too many open files").count()
}

/// The descriptors that a process has.
fn open(pid: Pid) -> Result<HashSet<u64>> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd"))?;
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    Ok(numbers.collect())
}

/// Soft and hard limit, as prlimit(1) has them.
fn limits(pid: Pid) -> Result<String> {
    let text = fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Max open files"));
    let mut words = line.context("no limit of open files")?.split_whitespace();
    let (soft, hard) = (words.next().context("soft")?, words.next().context("hard")?);
    Ok(format!("{soft}:{hard}"))
}

fn prlimit(pid: Pid, limits: &str) -> Result<()> {
    let pid = pid.to_string();
    let nofile = format!("--nofile={limits}");
    run(Command::new("prlimit").args(["--pid", &pid, &nofile])).map(drop)
}

fn socket(side: &Side, datapath: bool) -> PathBuf {
    let name = if datapath {
        DATAPATH_SOCKET
    } else {
        KEYMGR_SOCKET
    };
    side.folder.join(name)
}

/// Asks a daemon for its status, and has not much patience.
fn ask(side: &Side, datapath: bool, patience: Duration) -> Result<()> {
    let stream = UnixStream::connect(socket(side, datapath))?;
    let same = stream.try_clone()?;
    let mut channel = Channel::new(stream)?;
    same.set_read_timeout(Some(patience))?;
    if datapath {
        channel.greet::<DatapathRequest, DatapathReply>("culvert-tests")?;
        channel.send(&DatapathRequest::Status)?;
        let answer = channel.answer::<DatapathReply>()?;
        ensure!(matches!(answer, DatapathReply::Status(_)), "{answer:?}");
    } else {
        channel.greet::<KeymgrRequest, KeymgrReply>("culvert-tests")?;
        channel.send(&KeymgrRequest::Status)?;
        let answer = channel.answer::<KeymgrReply>()?;
        ensure!(matches!(answer, KeymgrReply::Status(_)), "{answer:?}");
    }
    Ok(())
}

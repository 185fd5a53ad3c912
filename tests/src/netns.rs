//! Namespaces, processes in them, and cleaning up: also after a lab that was killed.
//!
//! Everything that a lab makes is named after its process id, and its folder under [`ROOT`] says so. Whoever
//! comes next removes what belongs to a process that is gone, unless it was to be kept.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where labs have their folders.
pub const ROOT: &str = "/run/culvert-lab";

/// A file in a lab's folder that says it outlives its process.
const KEEP: &str = "keep";

/// Processes of a lab, one a line: process id and start time.
const PROCESSES: &str = "processes";

/// Runs a program to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, or fails; the text has what it said.
pub fn run(command: &mut Command) -> Result<String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    ensure!(
        output.status.success(),
        "{} {:?}: {}{}",
        command.get_program().display(),
        command.get_args().collect::<Vec<_>>(),
        String::from_utf8_lossy(&output.stderr),
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Why a script could not prepare what it prepares.
#[derive(Clone, Debug)]
pub struct Unprepared {
    why: String,
    lacking: bool,
}

impl Unprepared {
    /// The machine lacks something.
    #[must_use]
    pub fn lacks(why: &str) -> Self {
        Self {
            why: why.to_owned(),
            lacking: true,
        }
    }

    /// What this machine lacks, if that is it. Else the script is wrong, which is no reason to skip anything.
    #[must_use]
    pub fn lacking(&self) -> Option<String> {
        self.lacking.then(|| self.why.clone())
    }
}

impl std::fmt::Display for Unprepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.why)
    }
}

impl std::error::Error for Unprepared {}

/// Runs a script of the tests' that prepares something, and returns what it prints.
///
/// # Errors
/// It does not.
pub fn prepare(script: &Path, arguments: &[&str]) -> Result<String, Unprepared> {
    /// Its exit status for what the machine lacks.
    const UNAVAILABLE: i32 = 69;
    let failed = |why: String| Unprepared {
        why: format!("{}: {why}", script.display()),
        lacking: false,
    };
    let output = Command::new(script)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| failed(error.to_string()))?;
    let text = String::from_utf8_lossy(&output.stderr);
    match output.status.code() {
        Some(0) => Ok(String::from_utf8_lossy(&output.stdout)
            .trim_end()
            .to_owned()),
        Some(UNAVAILABLE) => Err(Unprepared {
            why: text
                .trim_end()
                .lines()
                .last()
                .unwrap_or_default()
                .to_owned(),
            lacking: true,
        }),
        _ => Err(failed(format!("{}, {text}", output.status))),
    }
}

/// Runs `ip` with the words of `arguments`.
///
/// # Errors
/// It fails.
pub fn ip(arguments: &str) -> Result<String> {
    run(Command::new("ip").args(arguments.split_whitespace()))
}

/// A network namespace that this lab has made.
#[derive(Clone, Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn new(name: String) -> Result<Self> {
        ip(&format!("netns add {name}"))?;
        let this = Self { name };
        this.ip("link set lo up")?;
        Ok(this)
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` in it.
    ///
    /// # Errors
    /// It fails.
    pub fn ip(&self, arguments: &str) -> Result<String> {
        ip(&format!("-n {} {arguments}", self.name))
    }

    /// Sets a sysctl of its network.
    ///
    /// # Errors
    /// It cannot be set.
    pub fn sysctl(&self, name: &str, value: &str) -> Result<()> {
        run(self
            .command("sysctl")
            .args(["-qw", &format!("{name}={value}")]))
        .map(drop)
    }

    /// A program to be run in it. Only the network is another: `ip netns exec` would also hide the bpffs.
    #[must_use]
    #[expect(unsafe_code, reason = "entering the namespace between fork and exec")]
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new(program);
        let path = self.path();
        // SAFETY: between fork and exec only the async-signal-safe open and setns are called, on a path that
        // was made before.
        unsafe {
            command.pre_exec(move || {
                setns(File::open(&path)?.as_fd(), CloneFlags::CLONE_NEWNET)?;
                Ok(())
            });
        }
        command
    }

    /// Runs `work` on a thread in it.
    ///
    /// # Errors
    /// The namespace cannot be entered, or `work` fails.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let namespace = File::open(self.path())?;
                setns(namespace.as_fd(), CloneFlags::CLONE_NEWNET)?;
                work()
            });
            match thread.join() {
                Ok(result) => result,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })
    }

    fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }
}

/// Folder and names of one lab, removed with everything in it when this is dropped.
#[derive(Debug)]
pub struct Home {
    id: String,
    keep: bool,
}

impl Home {
    /// A home for a lab of this process; `keep` leaves it when the process ends.
    ///
    /// # Errors
    /// Not root, or the folder cannot be made.
    pub fn new(keep: bool) -> Result<Self> {
        use std::sync::atomic::{AtomicU32, Ordering};
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        ensure!(
            nix::unistd::geteuid().is_root(),
            "the lab needs root, for namespaces and eBPF: try sudo"
        );
        sweep(false)?;
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let id = format!("cv{}x{number}", std::process::id());
        let home = Self { id, keep };
        fs::create_dir_all(home.path())?;
        // Whole or not there: somebody else who sweeps just now must not take it for that of nobody.
        let owner = home.path().join("owner");
        let whole = owner.with_extension("new");
        let line = process_line(std::process::id()).context("own process")?;
        fs::write(&whole, line)?;
        fs::rename(whole, owner)?;
        if keep {
            fs::write(home.path().join(KEEP), "")?;
        }
        Ok(home)
    }

    /// The folder.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new(ROOT).join(&self.id)
    }

    /// A name that is this lab's alone.
    #[must_use]
    pub fn name(&self, part: &str) -> String {
        format!("{}{part}", self.id)
    }

    /// Starts a process of the lab, with its output in `log`. It ends with the lab, whatever ends that.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&self, mut command: Command, log: &Path) -> Result<Child> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdout(output.try_clone()?);
        self.spawn_to(command, output)
    }

    /// As [`Home::spawn`], but what it writes to its standard output is for us.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn_piped(&self, mut command: Command, log: &Path) -> Result<Child> {
        let output = File::options().create(true).append(true).open(log)?;
        command.stdout(Stdio::piped());
        self.spawn_to(command, output)
    }

    #[expect(
        unsafe_code,
        reason = "tying the process to this one between fork and exec"
    )]
    fn spawn_to(&self, mut command: Command, errors: File) -> Result<Child> {
        command.stdin(Stdio::null()).stderr(errors);
        if !self.keep {
            // SAFETY: prctl is async-signal-safe.
            unsafe {
                command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
            }
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", command.get_program().display()))?;
        let line = process_line(child.id()).unwrap_or_default();
        let mut list = File::options()
            .create(true)
            .append(true)
            .open(self.path().join(PROCESSES))?;
        std::io::Write::write_all(&mut list, format!("{line}\n").as_bytes())?;
        Ok(child)
    }

    /// Whether it outlives its process.
    #[must_use]
    pub fn kept(&self) -> bool {
        self.keep
    }

    /// Removes everything now.
    pub fn remove(&self) {
        remove(&self.path());
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if !self.keep {
            self.remove();
        }
    }
}

/// Removes what labs have left whose process is gone; with `kept`, also what was to be kept. Returns their number.
///
/// # Errors
/// The folder of labs cannot be read.
pub fn sweep(kept: bool) -> Result<usize> {
    let Ok(entries) = fs::read_dir(ROOT) else {
        return Ok(0);
    };
    let mut count = 0;
    for entry in entries {
        let path = entry?.path();
        // A folder that is just being made has no owner yet.
        let Ok(owner) = fs::read_to_string(path.join("owner")) else {
            continue;
        };
        if alive(&owner).is_none() && (kept || !path.join(KEEP).exists()) {
            remove(&path);
            count += 1;
        }
    }
    Ok(count)
}

/// Removes the labs of this process, from whatever thread, as when it is interrupted.
pub fn remove_own() {
    let own = format!("cv{}x", std::process::id());
    for entry in fs::read_dir(ROOT).into_iter().flatten().flatten() {
        if entry.file_name().to_string_lossy().starts_with(&own) {
            remove(&entry.path());
        }
    }
}

/// Removes a lab: processes, namespaces with all that is in them, mounts, folder. What is gone already is as good.
fn remove(path: &Path) {
    let processes = fs::read_to_string(path.join(PROCESSES)).unwrap_or_default();
    let id = path.file_name().unwrap_or_default().to_string_lossy();
    let namespaces: Vec<String> = fs::read_dir("/run/netns")
        .into_iter()
        .flatten()
        .flatten()
        .map(|namespace| namespace.file_name().to_string_lossy().into_owned())
        .filter(|name| {
            name.strip_prefix(&*id)
                .is_some_and(|rest| rest.starts_with('-'))
        })
        .collect();
    // Those that were spawned for the lab, and whatever else runs in its namespaces, such as an iperf3 whose
    // lab was killed.
    let mut pids: Vec<Pid> = processes.lines().filter_map(alive).collect();
    pids.extend(namespaces.iter().flat_map(|name| pids_in(name)));
    for pid in &pids {
        let _ = kill(*pid, Signal::SIGKILL);
    }
    let gone = Instant::now() + Duration::from_secs(2);
    while pids.iter().any(|pid| running(*pid)) && Instant::now() < gone {
        std::thread::sleep(Duration::from_millis(10));
    }
    for name in namespaces {
        let _ = ip(&format!("netns del {name}"));
    }
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    for mount in mounts.lines().filter_map(|line| line.split(' ').nth(1)) {
        if Path::new(mount).starts_with(path) {
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
    let _ = fs::remove_dir_all(path);
}

/// A line that names a process for ever: ids come again, start times do not.
fn process_line(pid: u32) -> Option<String> {
    Some(format!("{pid} {}", start_time(pid)?))
}

fn start_time(pid: u32) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is a name in brackets that may hold anything.
    let (_, rest) = stat.rsplit_once(") ")?;
    rest.split(' ').nth(19).map(str::to_owned)
}

/// The process of a line, if it is still that one.
fn alive(line: &str) -> Option<Pid> {
    let (pid, start) = line.trim().split_once(' ')?;
    let pid: u32 = pid.parse().ok()?;
    (start_time(pid)? == start).then(|| Pid::from_raw(pid.cast_signed()))
}

/// The processes in a namespace; threads of other processes that have entered it are none.
fn pids_in(namespace: &str) -> Vec<Pid> {
    let list = ip(&format!("netns pids {namespace}")).unwrap_or_default();
    let own = Pid::this();
    list.split_whitespace()
        .filter_map(|pid| pid.parse().ok())
        .map(Pid::from_raw)
        .filter(|pid| *pid != own)
        .collect()
}

/// Whether a process still runs, and is not only waiting to be reaped.
pub(crate) fn running(pid: Pid) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

/// Waits until `done` says so.
///
/// # Errors
/// It does not within `limit`.
pub fn wait_for(what: &str, limit: Duration, mut done: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + limit;
    while !done() {
        if Instant::now() > end {
            bail!("waited {} s in vain for {what}", limit.as_secs());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

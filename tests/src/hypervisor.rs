//! What a hypervisor has for itself beside its network: its own `/usr`, `/etc`, `/var` and `/run`, so that daemons that
//! know one place only for their files run on both, unmodified and not installed.
//!
//! `/usr` is this machine's below what `tests/parts/fetch` has fetched, read-only. `/etc` and `/var` are so too to
//! begin with, but what is written there is this hypervisor's alone, and gone with it. `/run` is empty but for the lab's
//! folder of this side, at the same path as outside. All else is the machine's.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, OnceLock};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use crate::lab::{Lab, program};
use crate::netns::{Namespace, Unprepared, prepare};

/// Where the mounts of a hypervisor are made, in its folder. Outside, this is an empty folder.
const STAGE: &str = "world";

/// Where charon looks for plugins.
const PLUGINS: &str = "lib/ipsec/plugins";

/// The plugin, as cargo names it and as charon does.
const PLUGIN: [&str; 2] = [
    "libstrongswan_kernel_culvert.so",
    "libstrongswan-kernel-culvert.so",
];

/// One hypervisor's files.
#[derive(Clone, Debug)]
pub struct World {
    namespace: Namespace,
    folder: PathBuf,
    /// The mount namespace, which lives as long as this or a process in it.
    mounts: Arc<File>,
    plugin: bool,
    /// Held, not used.
    _warden: Option<Arc<Warden>>,
}

impl World {
    /// That of a side of the lab, with the packages in the folder `parts`, and with Culvert's plugin for charon if it
    /// is given.
    ///
    /// # Errors
    /// The kernel refuses a mount.
    pub fn new(lab: &Lab, number: usize, parts: &Path, plugin: Option<&Path>) -> Result<Self> {
        let side = &lab.sides[number];
        let stage = side.folder.join(STAGE);
        fs::create_dir_all(&stage)?;
        let layers = Layers {
            stage: &stage,
            parts,
            plugin,
        };
        let mounts = on_a_thread(|| layers.mount(&side.folder))
            .context("mounts of a hypervisor: needs overlayfs")?;
        let warden = (!lab.home.kept()).then(|| Warden::new(&side.namespace));
        Ok(Self {
            namespace: side.namespace.clone(),
            folder: side.folder.clone(),
            mounts: Arc::new(mounts),
            plugin: plugin.is_some(),
            _warden: warden.transpose()?.map(Arc::new),
        })
    }

    /// The folder that is the same inside and outside.
    #[must_use]
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Whether charon has Culvert's plugin here.
    #[must_use]
    pub fn has_plugin(&self) -> bool {
        self.plugin
    }

    /// A program to be run in it, in its network too.
    #[must_use]
    #[expect(unsafe_code, reason = "entering the namespace between fork and exec")]
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.namespace.command(program);
        command.env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command.env("LC_ALL", "C").env_remove("NOTIFY_SOCKET");
        let mounts = Arc::clone(&self.mounts);
        // SAFETY: between fork and exec only the async-signal-safe setns is called, on a descriptor that is open.
        unsafe {
            command.pre_exec(move || Ok(setns(mounts.as_fd(), CloneFlags::CLONE_NEWNS)?));
        }
        command
    }

    /// Runs `work`, which sees its files and not this machine's.
    ///
    /// # Errors
    /// It cannot be entered, or `work` fails.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        on_a_thread(|| {
            // A thread can go elsewhere if it has a root and a working directory of its own.
            unshare(CloneFlags::CLONE_FS)?;
            setns(self.mounts.as_fd(), CloneFlags::CLONE_NEWNS)?;
            work()
        })
    }

    /// Writes a file in it, for root alone, and makes the folders above.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let write = || -> Result<()> {
            if let Some(folder) = Path::new(path).parent() {
                fs::create_dir_all(folder)?;
            }
            let mut options = File::options();
            options.write(true).create(true).truncate(true).mode(0o600);
            Ok(options.open(path)?.write_all(text.as_bytes())?)
        };
        self.within(|| write().with_context(|| path.to_owned()))
    }

    /// Reads a file in it.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn read(&self, path: &str) -> Result<String> {
        self.within(|| fs::read_to_string(path).with_context(|| path.to_owned()))
    }
}

/// What the mounts are made of.
struct Layers<'a> {
    stage: &'a Path,
    parts: &'a Path,
    plugin: Option<&'a Path>,
}

impl Layers<'_> {
    /// Gives the calling thread a mount namespace with all of it, which is returned.
    fn mount(&self, folder: &Path) -> Result<File> {
        unshare(CloneFlags::CLONE_NEWNS)?;
        // Nothing of it gets out.
        attach(
            None,
            Path::new("/"),
            None,
            MsFlags::MS_REC | MsFlags::MS_PRIVATE,
            "",
        )?;
        // A layer that is written to cannot be on every filesystem, but can on this.
        attach(
            Some("tmpfs"),
            self.stage,
            Some("tmpfs"),
            MsFlags::empty(),
            "mode=755",
        )?;
        let plugins = self.stage.join("usr").join(PLUGINS);
        fs::create_dir_all(&plugins)?;
        if let Some(plugin) = self.plugin {
            fs::copy(plugin, plugins.join(PLUGIN[1]))?;
        }
        self.overlay("usr", &self.stage.join("usr"), "")?;
        for part in ["etc", "var"] {
            let own = ["upper", "work"].map(|name| self.stage.join(part).join(name));
            for path in &own {
                fs::create_dir_all(path)?;
            }
            let [upper, work] = own.map(|path| path.display().to_string());
            let writable = format!(",upperdir={upper},workdir={work}");
            self.overlay(part, &self.parts.join(part), &writable)?;
        }
        self.run(folder)?;
        Ok(File::open("/proc/thread-self/ns/mnt")?)
    }

    /// Lays `top`, if it is there, and the same part of the packages over this machine's.
    fn overlay(&self, part: &str, top: &Path, more: &str) -> Result<()> {
        let place = Path::new("/").join(part);
        let mut layers = vec![top.to_owned(), self.parts.join(part)];
        layers.dedup();
        layers.retain(|layer| layer.exists());
        layers.push(place.clone());
        let layers: Vec<_> = layers
            .iter()
            .map(|layer| layer.display().to_string())
            .collect();
        let options = format!("lowerdir={}{more}", layers.join(":"));
        attach(
            Some("overlay"),
            &place,
            Some("overlay"),
            MsFlags::empty(),
            &options,
        )
    }

    fn run(&self, folder: &Path) -> Result<()> {
        let run = self.stage.join("run");
        // As what is at its place is hidden in the end.
        let inside = run.join(folder.strip_prefix("/run").context("a lab is in /run")?);
        fs::create_dir_all(&run)?;
        attach(
            Some("tmpfs"),
            &run,
            Some("tmpfs"),
            MsFlags::empty(),
            "mode=755",
        )?;
        fs::create_dir_all(&inside)?;
        fs::create_dir_all(run.join("lock"))?;
        let source = folder.display().to_string();
        attach(Some(&source), &inside, None, MsFlags::MS_BIND, "")?;
        let run = run.display().to_string();
        attach(
            Some(&run),
            Path::new("/run"),
            None,
            MsFlags::MS_BIND | MsFlags::MS_REC,
            "",
        )
    }
}

fn attach(
    source: Option<&str>,
    target: &Path,
    kind: Option<&str>,
    flags: MsFlags,
    data: &str,
) -> Result<()> {
    mount(source, target, kind, flags, Some(data))
        .with_context(|| format!("mounting {} {data}", target.display()))
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    std::thread::scope(|scope| match scope.spawn(work).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Ends what runs in a namespace when the lab's process is gone, even if it was killed: daemons start others, which are
/// not tied to the lab as what it starts itself.
#[derive(Debug)]
struct Warden(Child);

impl Warden {
    fn new(namespace: &Namespace) -> Result<Self> {
        // Its input ends with whoever holds the other end, which is nobody but this process.
        const SCRIPT: &str = "trap '' INT TERM HUP; read -r _; \
            for pid in $(ip netns pids \"$0\"); do kill -KILL \"$pid\"; done";
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, namespace.name()])
            .stdin(Stdio::piped());
        Ok(Self(command.spawn().context("sh")?))
    }
}

impl Drop for Warden {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Culvert's plugin for charon, beside the programs of this workspace.
///
/// # Errors
/// It is not built.
pub fn plugin() -> Result<PathBuf> {
    program(PLUGIN[0])
}

/// The folder of the packages that were fetched already: [`parts`] is told by it inside the guest.
pub const PARTS_VARIABLE: &str = "CULVERT_PARTS";

/// The folder of the packages, fetched if they are not there.
///
/// # Errors
/// They are not to be had; the text says why.
pub fn parts() -> Result<PathBuf, Unprepared> {
    static PARTS: OnceLock<Result<PathBuf, Unprepared>> = OnceLock::new();
    let find = || match std::env::var_os(PARTS_VARIABLE) {
        Some(folder) => Ok(folder.into()),
        // There is no network to fetch them by.
        None if std::env::var_os("CULVERT_GUEST").is_some() => {
            Err(Unprepared::lacks("strongSwan could not be fetched"))
        }
        None => fetch(None),
    };
    PARTS.get_or_init(find).clone()
}

/// Fetches the packages; of another suite of Debian, strongSwan's alone.
///
/// # Errors
/// They are not to be had; the text says why.
pub fn fetch(suite: Option<&str>) -> Result<PathBuf, Unprepared> {
    let script: PathBuf = [env!("CARGO_MANIFEST_DIR"), "parts", "fetch"]
        .iter()
        .collect();
    let arguments: Vec<&str> = suite.into_iter().collect();
    prepare(&script, &arguments).map(PathBuf::from)
}

//! Running: owns the state region and the sockets, starts the threads, reloads on SIGHUP.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_proto::channel::{Listener, Lock, make_directory};
use culvert_proto::{DATAPATH_SOCKET, KEYMGR_SOCKET};
use culvert_state::Region;
use log::{debug, info, warn};
use nix::sys::prctl::set_dumpable;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use crate::charon::Charon;
use crate::charon::listen::Bridge;
use crate::config::{self, Config};
use crate::events;
use crate::kernel;
use crate::leftovers;
use crate::manager::Manager;
use crate::notify::{self, Reporter};
use crate::push::Steward;
use crate::shared::Shared;
use crate::stand_in::StandIn;
use crate::state::State;

/// Name and release, as greetings and reports have it.
pub const PROGRAM: &str = concat!("culvert-keymgr ", env!("CARGO_PKG_VERSION"));

/// File name of the SA state region in the run directory.
pub(crate) const REGION: &str = "sa-state";

/// How often it is noted which SAs are used, and what is overdue.
const TICK: Duration = Duration::from_millis(250);

/// How long the service manager waits, to hear that we are ready, for a datapath that is not there.
const PATIENCE: Duration = Duration::from_secs(2);

/// Where things are.
#[derive(Clone, Debug)]
pub struct Paths {
    /// The file of SAs and policies.
    pub config: PathBuf,
    /// Whether it may be missing: nobody has named it, and keys may come from elsewhere.
    pub config_may_be_missing: bool,
    /// Sockets, lock, SA state region.
    pub run: PathBuf,
    /// What must survive a reboot.
    pub state: PathBuf,
    /// The socket of strongSwan's plugin.
    pub bridge: PathBuf,
    /// Where the datapath pins its eBPF maps.
    pub pins: PathBuf,
}

/// Checks the file without using it.
///
/// # Errors
/// What is wrong with it.
pub fn check(path: &Path) -> Result<Config> {
    Ok(config::load(path)?)
}

/// Runs the key manager until SIGTERM or SIGINT. The datapath goes on with what it has.
///
/// # Errors
/// What could not be set up, with what to do about it.
pub fn run(paths: Paths) -> Result<()> {
    // Keys must not get into a core dump. A limit of its size is none for dumps that go into a pipe.
    set_dumpable(false)?;
    for directory in [&paths.run, &paths.state] {
        make_directory(directory).with_context(|| format!("cannot use {}", directory.display()))?;
    }
    let _lock = Lock::take(&paths.run, "culvert-keymgr")?;
    let mut signals = Signals::new([SIGTERM, SIGINT, SIGHUP])?;

    let region = paths.run.join(REGION);
    let (region, lost) =
        Region::open_or_create(&region).with_context(|| region.display().to_string())?;
    if let Some(why) = lost {
        warn!("SA state region begun anew: {why}");
    }
    let for_push = Region::from_fd(region.as_fd().try_clone_to_owned()?)?;
    let shared = Arc::new(Shared::new()?);
    let for_kernel = Region::from_fd(region.as_fd().try_clone_to_owned()?)?;
    let stand_in = StandIn::new(for_kernel, &paths.pins, |key| {
        leftovers::state_of(&region, key)
    });
    let stand_in = Arc::new(Mutex::new(stand_in));
    let state = State::new(region, &paths.state)?;
    let mut charon = Charon::open(&paths.run).context("peers to be held")?;
    charon.kernel = lock(&stand_in).ready();
    match &charon.kernel {
        Ok(()) => info!("kernel IPsec stands behind the datapath"),
        Err(why) => warn!("kernel IPsec cannot stand in for the datapath: {why}"),
    }
    let [datapath, control] = [DATAPATH_SOCKET, KEYMGR_SOCKET].map(|socket| paths.run.join(socket));
    let bridge = Bridge::bind(&paths.bridge)
        .with_context(|| format!("strongSwan's socket {}", paths.bridge.display()))?;
    let bridge_path = paths.bridge.clone();
    let steward = Steward::new(
        Arc::clone(&shared),
        for_push,
        Arc::clone(&stand_in),
        datapath.clone(),
    );
    let manager = Arc::new(Manager::new(paths, shared, state, charon, stand_in)?);
    manager.load_at_start()?;

    spawn("push", move || steward.run())?;
    let hearing = Arc::clone(&manager);
    spawn("kernel", move || hear_kernel(&hearing))?;
    let listening = Arc::clone(&manager);
    spawn("events", move || events::run(&listening, &datapath))?;
    let ticking = Arc::clone(&manager);
    spawn("tick", move || {
        let mut reporter = Reporter::new();
        loop {
            std::thread::sleep(TICK);
            // Does not come back if a lock hangs; then nobody hears that we are alive.
            ticking.tick();
            reporter.report(|| ticking.summary());
        }
    })?;
    let served = Arc::clone(&manager);
    spawn("bridge", move || bridge.serve(&served))?;
    let listener = Listener::bind(&control).context("control socket")?;
    let served = Arc::clone(&manager);
    spawn("accept", move || serve(&listener, &served))?;
    info!("ready");
    let starting = Arc::clone(&manager);
    spawn("ready", move || {
        // Who is started after us, as Open vSwitch, is to find held back what has to be.
        starting.settle_first(PATIENCE);
        notify::ready();
    })?;

    for signal in signals.forever() {
        if signal != SIGHUP {
            notify::stopping();
            info!("signal {signal}: ending; the datapath goes on with what it has");
            break;
        }
        // Said in the log, and in the status.
        let _ = manager.load();
    }
    // A clean end leaves no socket behind.
    for socket in [control, bridge_path] {
        let _ = std::fs::remove_file(socket);
    }
    Ok(())
}

/// Hears the kernel for ever. One without XFRM has nothing to tell.
fn hear_kernel(manager: &Manager) {
    loop {
        let Err(error) = kernel::listen(|event| manager.hear_kernel(event));
        debug!("events of the kernel: {error}");
        std::thread::sleep(Duration::from_secs(10));
    }
}

/// Removes on purpose what [`run`] leaves; see [`leftovers`] for what stays all the same.
///
/// # Errors
/// The key manager is running, or something could not be removed.
pub fn remove(paths: &Paths) -> Result<()> {
    make_directory(&paths.run).with_context(|| format!("cannot use {}", paths.run.display()))?;
    let _lock = Lock::take(&paths.run, "culvert-keymgr").context("stop it first")?;
    leftovers::remove(&paths.run)
}

/// Connections of the control socket at once. One at a time is not enough, as a reload may wait; more than a few
/// are people's scripts gone wild.
const CONNECTIONS: usize = 16;

fn serve(listener: &Listener, manager: &Arc<Manager>) {
    let open = Arc::new(());
    loop {
        let ticket = Arc::clone(&open);
        match listener.accept() {
            Ok(_) if Arc::strong_count(&open) > CONNECTIONS + 1 => {
                warn!("control socket: too many connections");
            }
            Ok(channel) => {
                let manager = Arc::clone(manager);
                let spawned = spawn("control", move || {
                    let _ticket = ticket;
                    if let Err(error) = manager.converse(channel) {
                        warn!("control connection ended: {error}");
                    }
                });
                if let Err(error) = spawned {
                    warn!("control socket: {error:#}");
                }
            }
            Err(error) => {
                warn!("control socket: {error}");
                // A lack of descriptors does not pass by asking again at once.
                std::thread::sleep(Duration::from_millis(50));
            }
        }
    }
}

fn lock(stand_in: &Mutex<StandIn>) -> MutexGuard<'_, StandIn> {
    stand_in.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread that nobody waits for: it ends with the process.
pub(crate) fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<()> {
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(work)
        .map(drop)
        .with_context(|| format!("no thread {name}"))
}

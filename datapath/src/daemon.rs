//! Putting the parts together: interfaces, steering, sockets, workers, control socket.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_proto::DATAPATH_SOCKET;
use culvert_proto::channel::{Listener, Lock, make_directory};
use culvert_proto::event::Event;
use log::{error, info, warn};
use nix::net::if_::if_nametoindex;
use nix::sys::prctl::set_dumpable;
use sd_notify::NotifyState;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::{Handle as SignalsHandle, Signals};

use crate::control::{self, Control};
use crate::heartbeat;
use crate::host_port::{self, HostPort};
use crate::lengths::Buffers;
use crate::monitor;
use crate::nic::Nic;
use crate::parts::{Wanted, describe, open_ports};
use crate::port::host::HostPort as HostQueue;
use crate::port::xsk::XskPort;
use crate::settings::Settings;
use crate::steer::{Steering, SteeringConfig};
use crate::tables::Database;
use crate::watchdog;
use crate::worker::{Handle, Mtu, Worker};

/// The MTU of a wire that takes IPv6's least MTU, 1280 bytes (RFC 8200 §5), sealed and in UDP.
const LEAST_MTU_V6: usize = 1280 + 48;

/// How long an end in order waits for the key manager to take over.
const LEAVING: Duration = Duration::from_secs(1);

/// Runs the datapath until SIGTERM or SIGINT. What it attached stays attached, and drops what it must
/// protect, until the next start or [`remove`].
///
/// # Errors
/// What could not be set up, with what to do about it.
pub fn run(settings: &Settings, run_directory: &Path) -> Result<()> {
    // Keys must not get into a core dump. A limit of its size is none for dumps that go into a pipe.
    set_dumpable(false)?;
    make_directory(run_directory)
        .with_context(|| format!("run directory {}", run_directory.display()))?;
    let _lock = Lock::take(run_directory, "culvert-datapath")?;
    // Before any thread is there, so that no thread takes the default action.
    let mut signals = Signals::new([SIGTERM, SIGINT])?;

    let wire = Nic::query(&settings.wire)
        .context("set `wire` to the NIC that the tunnels' addresses are on")?;
    let cores = cores(settings)?;
    let workers = worker_count(settings, &wire, cores.len());
    let inner = settings.host_inner();
    let (kind, why) = host_port::choose(settings.host_port)?;
    let outer = &settings.host_interface;
    let buffers = Buffers::for_mtu(wire.mtu)?;
    if let Some(limit) = buffers.limit(&wire.name, wire.mtu) {
        warn!("{limit}");
    }
    let host_mtu = buffers.longest();
    let host_port = host_port::ensure(kind, outer, &inner, &wire.name, workers, host_mtu)
        .with_context(|| format!("host port {outer}"))?;
    let host_kind = format!("{}: {why}", host_port.kind());
    info!("host port {outer}: {host_kind}");
    let is_tap = matches!(host_port, HostPort::Tap(_));
    let steered = (!is_tap).then(|| inner.clone());
    let mut steering = Steering::attach(&steering_config(settings, steered, buffers))?;

    let wanted = Wanted {
        workers,
        buffers,
        busy_poll: settings.busy_poll,
    };
    let (mode, parts) = open_ports(&wire, &inner, host_port, wanted)?;
    let host = Nic::query(outer)?;
    let ports = describe(&wire, &host, &host_kind, &steering, mode);
    let mtu = Mtu {
        wire: wire.mtu as usize,
        host: host.mtu as usize,
    };
    if mtu.wire < LEAST_MTU_V6 {
        warn!(
            "{} has MTU {}: IPv6 needs at least {LEAST_MTU_V6}, as sealed packets of 1280 bytes do not fit",
            wire.name, wire.mtu
        );
    }
    for port in &ports {
        info!(
            "{} port {}: XDP {}, AF_XDP {}, {} queues, MTU {}",
            port.role, port.interface, port.xdp, port.af_xdp, port.queues, port.mtu
        );
    }

    let mut handles = Vec::new();
    let mut threads = Vec::new();
    for (number, (part, core)) in parts.into_iter().zip(&cores).enumerate() {
        part.register(&mut steering, u32::try_from(number)?)?;
        let (worker, handle) = Worker::new(part.wire, part.host, mtu, part.pool)?;
        threads.push(start(worker, number, *core, signals.handle())?);
        handles.push((u32::try_from(core.id).ok(), handle));
    }

    let aead = settings.aead()?;
    for (cipher, backend) in aead.names() {
        info!("{cipher} by {backend}");
    }
    let mut control = Control::new(Database::new(aead), ports, handles, steering);
    if is_tap {
        control.watch_tap(outer)?;
    }
    let control = Arc::new(Mutex::new(control));
    let listener =
        Listener::bind(&run_directory.join(DATAPATH_SOCKET)).context("control socket")?;
    info!("{workers} workers, {buffers}; ready");
    // Nobody waits for this thread: it ends with the process, and its socket file is removed at the next start.
    let served = Arc::clone(&control);
    let vital = Vital(signals.handle());
    std::thread::Builder::new()
        .name("accept".to_owned())
        .spawn(move || {
            let _vital = vital;
            control::serve(&listener, &served);
        })?;

    let (watched_sas, journal, heart, pulses) = {
        let control = control::lock(&control);
        let pulses: Vec<_> = control.workers().map(Handle::pulse).collect();
        (control.watch(), control.journal(), control.heart(), pulses)
    };
    let told = Arc::clone(&journal);
    let vital = Vital(signals.handle());
    std::thread::Builder::new()
        .name("monitor".to_owned())
        .spawn(move || {
            let _vital = vital;
            monitor::run(&watched_sas, &told);
        })?;
    let vital = Vital(signals.handle());
    let beating = pulses.clone();
    std::thread::Builder::new()
        .name("heartbeat".to_owned())
        .spawn(move || {
            let _vital = vital;
            heartbeat::run(&heart, &beating);
        })?;

    let watched = [settings.wire.clone(), settings.host_interface.clone()]
        .into_iter()
        .map(|name| Ok((name.clone(), if_nametoindex(name.as_str())?)))
        .collect::<Result<Vec<_>>>()?;
    let vital = Vital(signals.handle());
    std::thread::Builder::new()
        .name("watch".to_owned())
        .spawn(move || {
            let _vital = vital;
            watch(&watched);
            error!("an interface was removed, or made again: start again to guard it");
        })?;

    let pinged = Arc::clone(&control);
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(move || {
            let patience = watchdog::interval().unwrap_or_default() / 2;
            watchdog::run(|| {
                heartbeat::alive(&pulses, patience) && watchdog::is_free(&pinged, patience)
            });
        })?;
    let line = format!("{workers} workers on {}, {}", settings.wire, mode.name());
    watchdog::tell(&[NotifyState::Ready, NotifyState::Status(&line)]);

    let signal = signals.forever().next();
    watchdog::tell(&[NotifyState::Stopping]);
    match signal {
        Some(signal) => {
            info!(
                "signal {signal}: ending; what is protected stays blocked, unless somebody takes over"
            );
            journal.add(Event::Leaving);
            // Whoever has the lock may be the key manager.
            let is_left = || control.try_lock().is_ok_and(|control| control.is_left());
            wait(is_left, &mut signals, LEAVING);
        }
        None => error!("ending, as something that is needed is gone; see above"),
    }
    let control = control::lock(&control);
    control.workers().for_each(Handle::stop);
    for thread in threads {
        // What it died of, the panic itself has said.
        let _ = thread.join();
    }
    // An end in order leaves no socket behind.
    let _ = std::fs::remove_file(run_directory.join(DATAPATH_SOCKET));
    ensure!(
        signal.is_some(),
        "ended because an interface or a thread is gone"
    );
    Ok(())
}

/// Waits until `done`, but not for longer than `most`, nor when another signal comes or something that is needed is gone.
fn wait(done: impl Fn() -> bool, signals: &mut Signals, most: Duration) {
    let until = Instant::now() + most;
    while !done()
        && Instant::now() < until
        && signals.pending().next().is_none()
        && !signals.handle().is_closed()
    {
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Returns when an interface is not the one any more that the programs and sockets are attached to: it was removed,
/// or made again under its name, and with it went all that guards it.
fn watch(interfaces: &[(String, u32)]) {
    let there = |(name, index): &(String, u32)| match if_nametoindex(name.as_str()) {
        Ok(now) => now == *index,
        // Asking takes a socket: without one to be had, it is not known, and no reason to end.
        Err(error) => error != nix::Error::ENODEV,
    };
    while interfaces.iter().all(there) {
        std::thread::sleep(Duration::from_millis(500));
    }
}

/// Held by a thread that the process cannot do without: however the thread ends, the process ends too, and
/// whoever started it can start it again.
struct Vital(SignalsHandle);

impl Drop for Vital {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Removes on purpose what [`run`] leaves: eBPF programs, their maps, the host port. From then on, Geneve
/// leaves in clear.
///
/// # Errors
/// The datapath is running, or something could not be removed.
pub fn remove(settings: &Settings, run_directory: &Path) -> Result<()> {
    make_directory(run_directory)?;
    let _lock = Lock::take(run_directory, "culvert-datapath").context("stop it first")?;
    Steering::remove(&steering_config(settings, None, Buffers::One))?;
    host_port::remove(&settings.host_interface)
}

fn steering_config(
    settings: &Settings,
    host_inner: Option<String>,
    buffers: Buffers,
) -> SteeringConfig {
    SteeringConfig {
        wire: settings.wire.clone(),
        host_outer: settings.host_interface.clone(),
        host_inner,
        pins: settings.pins.clone(),
        xdp: settings.xdp,
        buffers,
    }
}

/// The cores that workers may be bound to.
fn cores(settings: &Settings) -> Result<Vec<core_affinity::CoreId>> {
    let all = core_affinity::get_core_ids().context("no list of cores to be had")?;
    let Some(wanted) = &settings.cores else {
        return Ok(all);
    };
    for id in wanted {
        ensure!(
            all.iter().any(|core| core.id == *id),
            "cores: this process may not use core {id}"
        );
    }
    Ok(wanted
        .iter()
        .map(|&id| core_affinity::CoreId { id })
        .collect())
}

/// One worker a queue, but no more than cores: the queues are shared out.
fn worker_count(settings: &Settings, wire: &Nic, cores: usize) -> u32 {
    let most = u32::try_from(cores).unwrap_or(u32::MAX);
    let wanted = settings.workers.unwrap_or(wire.queues);
    let count = wanted.min(most).min(wire.queues).max(1);
    if settings.workers.is_some_and(|workers| workers != count) {
        warn!(
            "{count} workers instead of {wanted}: {} has {} queues, and there are {cores} cores",
            wire.name, wire.queues
        );
    }
    count
}

fn start(
    mut worker: Worker<XskPort, HostQueue>,
    number: usize,
    core: core_affinity::CoreId,
    signals: SignalsHandle,
) -> Result<std::thread::JoinHandle<()>> {
    let vital = Vital(signals);
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || {
            let _vital = vital;
            if !core_affinity::set_for_current(core) {
                warn!("worker {number} could not be bound to core {}", core.id);
            }
            worker.run();
        })
        .context("no thread for a worker")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_waits_for_the_key_manager_but_not_for_ever() {
        use signal_hook::consts::{SIGUSR1, SIGUSR2};
        let took = |done: bool, signals: &mut Signals, most: u64| {
            let begun = Instant::now();
            wait(|| done, signals, Duration::from_millis(most));
            begun.elapsed()
        };
        let mut signals = Signals::new([SIGUSR1]).unwrap();
        let (short, long) = (Duration::from_secs(5), 20_000);
        assert!(took(true, &mut signals, long) < short);
        assert!(took(false, &mut signals, 30) >= Duration::from_millis(30));
        signal_hook::low_level::raise(SIGUSR1).unwrap();
        assert!(took(false, &mut signals, long) < short);
        let mut signals = Signals::new([SIGUSR2]).unwrap();
        signals.handle().close();
        assert!(took(false, &mut signals, long) < short);
    }

    #[test]
    fn a_thread_that_dies_ends_the_process() {
        let mut signals = Signals::new([SIGTERM]).unwrap();
        let vital = Vital(signals.handle());
        let thread = std::thread::spawn(move || {
            let _vital = vital;
            std::panic::resume_unwind(Box::new(()));
        });
        assert_eq!(signals.forever().next(), None);
        thread.join().unwrap_err();
    }
}

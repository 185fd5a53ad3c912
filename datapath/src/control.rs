//! The control socket: the key manager fills SAD and SPD through it, and anyone who is root may ask for the
//! state of things.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use culvert_packet::reason::DropReason;
use culvert_proto::channel::{Channel, ChannelError, Listener};
use culvert_proto::message::{DatapathReply, DatapathRequest, Update};
use culvert_proto::sa::{Action, Direction, SaSpec, StateRef};
use culvert_proto::status::{DatapathStatus, PolicyStatus, PortStatus, SaStatus, WorkerStatus};
use culvert_state::layout::{both, inbound, outbound};
use culvert_state::{Region, Words, handover};
use log::{info, warn};
use signal_hook::consts::SIGTERM;

use crate::guard::Guarded;
use crate::heartbeat::Heart;
use crate::host_port;
use crate::monitor::{Journal, Watch, WatchList};
use crate::steer::Steering;
use crate::tables::{Compiled, Database, Installed};
use crate::worker::{Handle, now};

/// Connections that are served at once: the key manager's and a few people looking.
const MAX_CONNECTIONS: usize = 16;
/// Records that a transaction of several messages may come to.
const MAX_RECORDS: usize = 1 << 20;
/// How long an answer waits for events.
const PATIENCE: Duration = Duration::from_secs(1);

/// Name and release, as greetings and reports have it.
pub const PROGRAM: &str = concat!("culvert-datapath ", env!("CARGO_PKG_VERSION"));

/// What the control socket governs.
pub struct Control {
    started: Instant,
    ports: Vec<PortStatus>,
    workers: Vec<(Option<u32>, Handle)>,
    steering: Steering,
    database: Database,
    watch: Arc<Watch>,
    journal: Arc<Journal>,
    region: Option<Arc<Region>>,
    heart: Arc<Heart>,
    /// One more than there are connections that have sent an update: those of a key manager.
    managers: Arc<()>,
    /// Whether the tables are the key manager's, and not yet those of an empty start.
    filled: bool,
    /// The TAP, if the host port is one, and what was not taken of it before.
    tap: Option<(String, u64)>,
}

impl Control {
    /// Governs `workers`, each with the core it is bound to. The tables are empty: until the key manager
    /// has filled them, what steering sends to the workers is dropped.
    #[must_use]
    pub fn new(
        database: Database,
        ports: Vec<PortStatus>,
        workers: Vec<(Option<u32>, Handle)>,
        steering: Steering,
    ) -> Self {
        Self {
            started: Instant::now(),
            ports,
            workers,
            steering,
            database,
            watch: Arc::default(),
            journal: Arc::default(),
            region: None,
            heart: Arc::default(),
            managers: Arc::default(),
            filled: false,
            tap: None,
        }
    }

    /// Counts as drops what the stack has for the TAP `name` from now on, and finds no room for in its queues.
    ///
    /// # Errors
    /// The kernel does not say how much that is.
    pub fn watch_tap(&mut self, name: &str) -> anyhow::Result<()> {
        self.tap = Some((name.to_owned(), host_port::not_taken(name)?));
        Ok(())
    }

    /// The workers' handles.
    pub fn workers(&self) -> impl Iterator<Item = &Handle> {
        self.workers.iter().map(|(_, handle)| handle)
    }

    /// The SAs that the monitor looks at.
    #[must_use]
    pub fn watch(&self) -> Arc<Watch> {
        Arc::clone(&self.watch)
    }

    /// Where events go.
    #[must_use]
    pub fn journal(&self) -> Arc<Journal> {
        Arc::clone(&self.journal)
    }

    /// Where the heartbeat goes.
    #[must_use]
    pub fn heart(&self) -> Arc<Heart> {
        Arc::clone(&self.heart)
    }

    /// Whether there is nothing that somebody could still take over: no key manager listens, or all SAs are fenced.
    #[must_use]
    pub fn is_left(&self) -> bool {
        let mut states = self.database.sas().filter_map(|(_, sa)| sa.state());
        Arc::strong_count(&self.managers) == 1 || states.all(handover::is_fenced)
    }

    /// Applies a transaction, whole or not at all.
    fn apply(&mut self, update: Update) -> Result<(), String> {
        if !self.filled && !update.reset {
            return Err("the first update must be a reset: this datapath has just started".into());
        }
        let region = self.region.clone();
        let words = |state: StateRef| -> Result<Words, String> {
            let region = region
                .as_ref()
                .ok_or("no SA state region was handed over")?;
            region
                .words(state.offset, state.words)
                .map_err(|error| error.to_string())
        };
        let next = self
            .database
            .updated(update, words)
            .map_err(|error| error.to_string())?;
        // Before the workers have it, so that the first packet that finds no SA is seen.
        let watched = WatchList::of(&next);
        self.switch(&next).map_err(|error| {
            // Back to what was. After a start there was nothing, but steering still protects what the datapath
            // before this one protected: that stays.
            if self.filled
                && let Err(again) = self.switch(&self.database.clone())
            {
                warn!("steering could not be set back either: {again:#}");
            }
            format!("steering maps: {error:#}")
        })?;
        self.watch.set(watched);
        self.database = next;
        self.filled = true;
        Ok(())
    }

    /// Turns workers and steering to `next`. Whom to protect grows first and shrinks last, so that at no moment
    /// plaintext passes that neither the old nor the new policies would let pass.
    fn switch(&mut self, next: &Database) -> anyhow::Result<()> {
        let guarded = Guarded::of(next.policies());
        self.steering
            .set_guarded(&Guarded::of(self.database.policies()).union(&guarded))?;
        let tables = Arc::new(next.snapshot());
        for worker in self.workers() {
            worker.publish(Arc::clone(&tables));
        }
        self.steering.set_spis(&next.spis())?;
        self.steering.set_guarded(&guarded)
    }

    fn status(&self) -> DatapathStatus {
        DatapathStatus {
            program: PROGRAM.to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            aead: self.database.choice().names(),
            cpu_features: cpu_features(),
            ports: self.ports.clone(),
            workers: self.worker_status(),
            sas: self.sa_status(),
            policies: self.policy_status(),
            drops: self.drops(),
        }
    }

    fn worker_status(&self) -> Vec<WorkerStatus> {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (0..)
            .zip(&self.workers)
            .map(|(id, (core, handle))| {
                let counters = handle.counters();
                WorkerStatus {
                    id,
                    core: *core,
                    cpu_seconds: std::time::Duration::from_nanos(read(&counters.cpu)).as_secs_f64(),
                    from_host: read(&counters.from_host),
                    from_wire: read(&counters.from_wire),
                    sealed: read(&counters.sealed),
                    opened: read(&counters.opened),
                    bypassed: read(&counters.bypassed),
                    sleeps: read(&counters.sleeps),
                }
            })
            .collect()
    }

    fn sa_status(&self) -> Vec<SaStatus> {
        let mut sas: Vec<_> = self
            .database
            .sas()
            .map(|(spec, compiled)| sa_status(spec, compiled))
            .collect();
        sas.sort_by_key(|sa| (sa.direction, sa.destination, sa.spi));
        sas
    }

    fn policy_status(&self) -> Vec<PolicyStatus> {
        let mut policies: Vec<_> = self
            .database
            .installed()
            .map(
                |Installed {
                     spec: policy,
                     blocked,
                 }| PolicyStatus {
                    blocked: blocked.load(Ordering::Relaxed),
                    selector: policy.selector.clone(),
                    order: policy.order,
                    protected_by: match &policy.action {
                        Action::Protect {
                            outbound: Some(outbound),
                            inbound,
                        } if self.database.is_alive(outbound)
                            && inbound.iter().any(|sa| self.database.is_alive(sa)) =>
                        {
                            "culvert"
                        }
                        Action::Protect { .. } => "none (dropping)",
                        Action::Bypass => "nobody (bypass)",
                        Action::Discard => "nobody (discard)",
                    }
                    .to_owned(),
                    action: policy.action.clone(),
                },
            )
            .collect();
        policies.sort_by(|a, b| (a.order, &a.selector).cmp(&(b.order, &b.selector)));
        policies
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let steering = self.steering.drops().unwrap_or_else(|error| {
            warn!("counters of the eBPF programs: {error:#}");
            [0; DropReason::COUNT]
        });
        let not_taken = self.tap.as_ref().and_then(|(name, before)| {
            let now = host_port::not_taken(name);
            now.inspect_err(|error| warn!("drops of {name}: {error:#}"))
                .ok()?
                .checked_sub(*before)
        });
        DropReason::ALL
            .iter()
            .map(|reason| {
                let by_kernel = match reason {
                    DropReason::RxOverflow => not_taken.unwrap_or_default(),
                    _ => 0,
                };
                let workers: u64 = self
                    .workers()
                    .map(|worker| worker.counters().dropped(*reason))
                    .sum();
                let all = steering[reason.index()] + by_kernel + workers;
                (reason.name().to_owned(), all)
            })
            .collect()
    }
}

/// The report of one SA.
fn sa_status(spec: &SaSpec, compiled: &Compiled) -> SaStatus {
    let state = compiled.state();
    let read = |at: usize| state.map_or(0, |state| state[at].load(Ordering::Relaxed));
    let inbound = spec.id.direction == Direction::In;
    let only_inbound = |at: usize| if inbound { read(at) } else { 0 };
    let now = now();
    let since = |at: usize| match read(at) {
        0 => None,
        start => Some(now.saturating_sub(start) / 1000),
    };
    let sequence = match compiled {
        Compiled::Outbound(sa) => sa.leased(),
        Compiled::Inbound(sa) => sa.highest(),
        Compiled::Unused => 0,
    };
    const { assert!(outbound::LEASED == inbound::HIGHEST) };
    SaStatus {
        direction: spec.id.direction,
        spi: spec.id.spi,
        source: spec.source,
        destination: spec.id.destination,
        cipher: spec.cipher,
        esn: spec.esn,
        encapsulation: spec.encapsulation,
        packets: read(both::PACKETS),
        bytes: read(both::BYTES),
        sequence,
        replay_window: if inbound { spec.replay_window } else { 0 },
        replayed: only_inbound(inbound::REPLAYED),
        late: only_inbound(inbound::LATE),
        failed: only_inbound(inbound::FAILED),
        lost: only_inbound(inbound::HIGHEST).saturating_sub(only_inbound(inbound::AUTHENTICATED)),
        lifetime: spec.lifetime,
        age_seconds: since(both::ADDED).unwrap_or(0),
        use_seconds: since(both::FIRST_USE),
        state: match read(both::STATE) {
            both::ALIVE => "alive",
            both::EXPIRING => "expiring",
            _ => "expired",
        }
        .to_owned(),
    }
}

/// What the ciphers' implementations choose by.
fn cpu_features() -> Vec<String> {
    macro_rules! detected {
        ($detect:ident: $($feature:tt)*) => {
            [$(($feature, std::arch::$detect!($feature)),)*]
        };
    }
    #[cfg(target_arch = "x86_64")]
    let features = detected!(is_x86_feature_detected:
        "aes" "pclmulqdq" "avx2" "vaes" "vpclmulqdq" "avx512f");
    #[cfg(target_arch = "aarch64")]
    let features = detected!(is_aarch64_feature_detected: "neon" "aes" "pmull" "sha3");
    features
        .into_iter()
        .filter(|(_, detected)| *detected)
        .map(|(feature, _)| feature.to_owned())
        .collect()
}

/// Serves the socket for ever, a thread a connection.
pub fn serve(listener: &Listener, control: &Arc<Mutex<Control>>) {
    let open = Arc::new(());
    loop {
        let channel = match listener.accept() {
            Ok(channel) => channel,
            Err(error) => {
                warn!("control socket: {error}");
                // A lack of descriptors does not pass by asking again at once.
                std::thread::sleep(std::time::Duration::from_millis(50));
                continue;
            }
        };
        let ticket = Arc::clone(&open);
        if Arc::strong_count(&ticket) > MAX_CONNECTIONS + 1 {
            warn!("control socket: more than {MAX_CONNECTIONS} connections, one refused");
            continue;
        }
        let control = Arc::clone(control);
        let thread = std::thread::Builder::new().name("control".to_owned());
        let spawned = thread.spawn(move || {
            let _ticket = ticket;
            if let Err(error) = converse(channel, &control) {
                warn!("control connection ended: {error}");
            }
        });
        if let Err(error) = spawned {
            warn!("control socket: no thread: {error}");
        }
    }
}

/// One connection, until it closes.
fn converse(mut channel: Channel, control: &Mutex<Control>) -> Result<(), ChannelError> {
    channel.greeted::<DatapathRequest, DatapathReply>(PROGRAM)?;
    let mut pending: Option<Update> = None;
    let mut manager = None;
    while let Some(request) = channel.receive()? {
        if let DatapathRequest::Events(after) = request {
            let journal = lock(control).journal();
            channel.send(&DatapathReply::Events(journal.after(after, PATIENCE)))?;
            continue;
        }
        let mut control = lock(control);
        let reply = match request {
            DatapathRequest::End => {
                drop(control);
                channel.send(&DatapathReply::Done)?;
                signal_hook::low_level::raise(SIGTERM)?;
                continue;
            }
            DatapathRequest::Hello(_) | DatapathRequest::Events(_) => {
                return Err(ChannelError::Unexpected);
            }
            DatapathRequest::Region => match channel.take_descriptor().map(Region::from_fd) {
                Some(Ok(region)) => {
                    let region = Arc::new(region);
                    control.heart.set(Arc::clone(&region));
                    control.region = Some(region);
                    DatapathReply::Done
                }
                Some(Err(error)) => DatapathReply::Refused(error.to_string()),
                None => DatapathReply::Refused("no file descriptor came with it".into()),
            },
            DatapathRequest::Update(update) => {
                manager.get_or_insert_with(|| Arc::clone(&control.managers));
                match gather(&mut pending, update) {
                    Err(problem) => DatapathReply::Refused(problem),
                    Ok(None) => DatapathReply::Done,
                    Ok(Some(update)) => {
                        let sizes = (update.add_sas.len(), update.add_policies.len());
                        match control.apply(update) {
                            Ok(()) => {
                                info!("applied {} SAs and {} policies", sizes.0, sizes.1);
                                DatapathReply::Done
                            }
                            Err(problem) => {
                                warn!("update refused: {problem}");
                                DatapathReply::Refused(problem)
                            }
                        }
                    }
                }
            }
            DatapathRequest::Status => DatapathReply::Status(Box::new(control.status())),
        };
        drop(control);
        channel.send(&reply)?;
    }
    Ok(())
}

/// A panic elsewhere leaves the tables whole: they are replaced, never changed.
pub fn lock(control: &Mutex<Control>) -> MutexGuard<'_, Control> {
    control.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Joins the messages of a transaction; gives it when it is complete.
fn gather(pending: &mut Option<Update>, update: Update) -> Result<Option<Update>, String> {
    let mut whole = match pending.take() {
        None => update,
        Some(mut whole) => {
            whole.more = update.more;
            whole.reset |= update.reset;
            whole.remove_sas.extend(update.remove_sas);
            whole.remove_policies.extend(update.remove_policies);
            whole.add_sas.extend(update.add_sas);
            whole.add_policies.extend(update.add_policies);
            whole
        }
    };
    if whole.add_sas.len().max(whole.add_policies.len()) > MAX_RECORDS {
        return Err(format!(
            "more than {MAX_RECORDS} records in one transaction"
        ));
    }
    if !whole.more {
        return Ok(Some(whole));
    }
    whole.more = false;
    *pending = Some(whole);
    Ok(None)
}

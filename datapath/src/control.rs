//! The control socket: the key manager fills SAD and SPD through it, and anyone who is root may ask for the
//! state of things.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use culvert_packet::reason::DropReason;
use culvert_proto::channel::{Channel, ChannelError, Listener};
use culvert_proto::message::{DatapathReply, DatapathRequest, Update};
use culvert_proto::sa::{Direction, StateRef};
use culvert_proto::status::{DatapathStatus, PolicyStatus, PortStatus, SaStatus, WorkerStatus};
use culvert_state::{Region, Words};
use log::{info, warn};

use crate::steer::Steering;
use crate::tables::Database;
use crate::worker::Handle;

/// Connections that are served at once: the key manager's and a few people looking.
const MAX_CONNECTIONS: usize = 16;
/// Records that a transaction of several messages may come to.
const MAX_RECORDS: usize = 1 << 20;

/// Name and release, as greetings and reports have it.
pub const PROGRAM: &str = concat!("culvert-datapath ", env!("CARGO_PKG_VERSION"));

/// What the control socket governs.
pub struct Control {
    started: Instant,
    aead: &'static str,
    ports: Vec<PortStatus>,
    workers: Vec<(Option<u32>, Handle)>,
    steering: Steering,
    database: Database,
    region: Option<Arc<Region>>,
    /// Whether the tables are the key manager's, and not yet those of an empty start.
    filled: bool,
}

impl Control {
    /// Governs `workers`, each with the core it is bound to. The tables are empty: until the key manager
    /// has filled them, what steering sends to the workers is dropped.
    #[must_use]
    pub fn new(
        database: Database,
        aead: &'static str,
        ports: Vec<PortStatus>,
        workers: Vec<(Option<u32>, Handle)>,
        steering: Steering,
    ) -> Self {
        Self {
            started: Instant::now(),
            aead,
            ports,
            workers,
            steering,
            database,
            region: None,
            filled: false,
        }
    }

    /// The workers' handles.
    pub fn workers(&self) -> impl Iterator<Item = &Handle> {
        self.workers.iter().map(|(_, handle)| handle)
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
        self.database = next;
        self.filled = true;
        Ok(())
    }

    /// Turns workers and steering to `next`. Whom to protect grows first and shrinks last, so that at no moment
    /// plaintext passes that neither the old nor the new policies would let pass.
    fn switch(&mut self, next: &Database) -> anyhow::Result<()> {
        let peers = next.peers();
        self.steering
            .set_peers(&self.database.peers().union(&peers).copied().collect())?;
        let tables = Arc::new(next.snapshot());
        for worker in self.workers() {
            worker.publish(Arc::clone(&tables));
        }
        self.steering.set_spis(&next.spis())?;
        self.steering.set_peers(&peers)
    }

    fn status(&self) -> DatapathStatus {
        DatapathStatus {
            program: PROGRAM.to_owned(),
            pid: std::process::id(),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            aead: self.aead.to_owned(),
            ports: self.ports.clone(),
            workers: self.worker_status(),
            sas: self.sa_status(),
            policies: self.policy_status(),
            drops: self.drops(),
        }
    }

    fn worker_status(&self) -> Vec<WorkerStatus> {
        use std::sync::atomic::{AtomicU64, Ordering};
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
                    sleeps: read(&counters.sleeps),
                }
            })
            .collect()
    }

    fn sa_status(&self) -> Vec<SaStatus> {
        let mut sas: Vec<_> = self
            .database
            .report()
            .map(|(spec, (packets, bytes), sequence)| SaStatus {
                direction: spec.id.direction,
                spi: spec.id.spi,
                source: spec.source,
                destination: spec.id.destination,
                cipher: spec.cipher,
                esn: spec.esn,
                encapsulation: spec.encapsulation,
                packets,
                bytes,
                sequence,
                replay_window: match spec.id.direction {
                    Direction::In => spec.replay_window,
                    Direction::Out => 0,
                },
            })
            .collect();
        sas.sort_by_key(|sa| (sa.direction, sa.destination, sa.spi));
        sas
    }

    fn policy_status(&self) -> Vec<PolicyStatus> {
        let mut policies: Vec<_> = self
            .database
            .policies()
            .map(|policy| PolicyStatus {
                local: policy.local,
                remote: policy.remote,
                outbound: policy.outbound,
                inbound: policy.inbound.clone(),
                protected_by: if policy.outbound.is_some() && !policy.inbound.is_empty() {
                    "culvert".to_owned()
                } else {
                    "none (dropping)".to_owned()
                },
            })
            .collect();
        policies.sort_by_key(|policy| (policy.local, policy.remote));
        policies
    }

    fn drops(&self) -> BTreeMap<String, u64> {
        let steering = self.steering.drops().unwrap_or_else(|error| {
            warn!("counters of the eBPF programs: {error:#}");
            [0; DropReason::COUNT]
        });
        DropReason::ALL
            .iter()
            .map(|reason| {
                let workers: u64 = self
                    .workers()
                    .map(|worker| worker.counters().dropped(*reason))
                    .sum();
                (reason.name().to_owned(), steering[reason.index()] + workers)
            })
            .collect()
    }
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
    while let Some(request) = channel.receive()? {
        // A panic elsewhere leaves the tables whole: they are replaced, never changed.
        let mut control = control.lock().unwrap_or_else(PoisonError::into_inner);
        let reply = match request {
            DatapathRequest::Hello(_) => return Err(ChannelError::Unexpected),
            DatapathRequest::Region => match channel.take_descriptor().map(Region::from_fd) {
                Some(Ok(region)) => {
                    control.region = Some(Arc::new(region));
                    DatapathReply::Done
                }
                Some(Err(error)) => DatapathReply::Refused(error.to_string()),
                None => DatapathReply::Refused("no file descriptor came with it".into()),
            },
            DatapathRequest::Update(update) => match gather(&mut pending, update) {
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
            },
            DatapathRequest::Status => DatapathReply::Status(Box::new(control.status())),
        };
        drop(control);
        channel.send(&reply)?;
    }
    Ok(())
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

//! Keeping everything served: by the datapath while it is there, well and wanted, else by the kernel.

use std::os::fd::AsFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use culvert_proto::channel::{Channel, ChannelError, PATIENCE};
use culvert_proto::message::{DatapathReply, DatapathRequest};
use culvert_state::Region;
use log::{Level, info, log, warn};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::kill;
use nix::unistd::Pid;

use crate::daemon::PROGRAM;
use crate::place::{Division, Ready, divide};
use crate::shared::Shared;
use crate::stand_in::StandIn;
use crate::state::now;
use crate::wanted::{Wanted, split};

/// Records a message: an SA is some 150 bytes, so this stays far below the limit.
const RECORDS: usize = 10_000;
/// First and longest pause between attempts to reach the datapath.
const PAUSE: [Duration; 2] = [Duration::from_millis(20), Duration::from_millis(100)];
/// How long a datapath may take to greet, where the kernel could do its work meanwhile.
const GREETING: Duration = Duration::from_millis(300);
/// How often it is looked whether the datapath's heart beats.
const LOOK: Duration = Duration::from_millis(20);
/// How long a datapath may take for its first beat.
const FIRST_BEAT: Duration = Duration::from_secs(2);

/// What ends a connection to the datapath.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error(transparent)]
    Channel(#[from] ChannelError),
    #[error("the datapath refused: {0}")]
    Refused(String),
    #[error("the datapath hangs: no heartbeat for {0} ms")]
    Hung(u64),
    #[error("{0}")]
    LeftAlone(&'static str),
}

/// Sees to it that what is wanted is served.
pub(crate) struct Steward {
    shared: Arc<Shared>,
    region: Region,
    stand_in: Arc<Mutex<StandIn>>,
    socket: PathBuf,
    /// The process of a datapath that hung, and the last beat of its heart.
    hung: Option<(i32, u64)>,
    last_problem: String,
}

fn usable(ready: &Result<(), String>) -> Ready<'_> {
    match ready {
        Ok(()) => Ok(()),
        Err(why) => Err(why),
    }
}

/// A connection, and what is known of the heart at its end.
struct Connection {
    channel: Channel,
    process: i32,
    began: Instant,
    /// What its last beat was when the connection began.
    beat: u64,
    /// Whether it is held to account for its heartbeat.
    judged: bool,
}

impl Steward {
    pub(crate) fn new(
        shared: Arc<Shared>,
        region: Region,
        stand_in: Arc<Mutex<StandIn>>,
        socket: PathBuf,
    ) -> Self {
        Self {
            shared,
            region,
            stand_in,
            socket,
            hung: None,
            last_problem: String::new(),
        }
    }

    fn kernel(&self) -> MutexGuard<'_, StandIn> {
        self.stand_in.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves for ever.
    pub(crate) fn run(mut self) {
        let mut pause = PAUSE[0];
        loop {
            match self.connect() {
                Ok(mut connection) => {
                    let Err(ended) = self.serve(&mut connection, &mut pause);
                    let began = Instant::now();
                    if let Ended::Hung(_) = ended {
                        self.hung = Some((connection.process, self.region.last_beat()));
                    }
                    // The connection is still open: a datapath that ends in order waits for that to change.
                    self.stand_in(&ended, began);
                }
                Err(ended) => self.stand_in(&ended, Instant::now()),
            }
            self.shared.wait_for_change(pause);
            pause = (pause * 2).min(PAUSE[1]);
        }
    }

    /// Has the kernel serve what it can.
    fn stand_in(&mut self, ended: &Ended, began: Instant) {
        let why = ended.to_string();
        // Said once, not at every attempt.
        if why != self.last_problem {
            warn!("datapath: {why}");
            self.last_problem.clone_from(&why);
        }
        let (generation, goal) = self.shared.goal();
        let mut kernel = self.kernel();
        kernel.look_again();
        let ready = kernel.ready();
        let division = divide(&goal, Err(&why), usable(&ready));
        let moved = kernel.take_over(&division.kernel);
        kernel.give_back(&division.kernel, &Wanted::default());
        kernel.tell(&self.shared, division.places, moved, Vec::new(), began);
        drop(kernel);
        self.shared.stood_in(generation, &why, usable(&ready));
    }

    fn connect(&mut self) -> Result<Connection, Ended> {
        if self.shared.is_drained() {
            return Err(Ended::LeftAlone("drained"));
        }
        if let Some((process, beat)) = self.hung {
            let gone = kill(Pid::from_raw(process), None) == Err(Errno::ESRCH);
            if !gone && self.region.last_beat() == beat {
                return Err(Ended::Hung(now().saturating_sub(beat)));
            }
            self.hung = None;
        }
        let channel = Channel::connect(&self.socket, "culvert-datapath")?;
        let judged = self.kernel().ready().is_ok();
        if judged {
            channel.set_patience(GREETING)?;
        }
        let process = channel.peer_process()?;
        if let Some(why) = self.shared.left_alone(process) {
            return Err(Ended::LeftAlone(why));
        }
        let mut channel = channel;
        channel.greet::<DatapathRequest, DatapathReply>(PROGRAM)?;
        channel.set_patience(PATIENCE)?;
        Ok(Connection {
            channel,
            process,
            began: Instant::now(),
            beat: self.region.last_beat(),
            judged,
        })
    }

    /// Serves by the datapath for as long as that goes well.
    fn serve(
        &mut self,
        connection: &mut Connection,
        pause: &mut Duration,
    ) -> Result<std::convert::Infallible, Ended> {
        connection
            .channel
            .send_with(&DatapathRequest::Region, self.region.as_fd())?;
        self.done(connection)?;
        let mut pushed = Wanted::default();
        let mut reset = true;
        loop {
            if let Some(why) = self.shared.left_alone(connection.process) {
                return Err(Ended::LeftAlone(why));
            }
            let (generation, goal) = self.shared.goal();
            let began = Instant::now();
            let ready = self.kernel().ready();
            let division = divide(&goal, Ok(()), usable(&ready));
            // First, so that what goes there is never nowhere for longer than it takes.
            let moved = self.kernel().take_over(&division.kernel);
            self.push(connection, &mut pushed, &division.datapath, reset)?;
            self.take_back(&division, moved, reset, began);
            reset = false;
            *pause = PAUSE[0];
            self.last_problem.clear();
            self.shared.in_sync(generation);
            self.wait(connection, generation)?;
        }
    }

    /// The datapath has what is its own: the kernel lets go of that.
    fn take_back(&self, division: &Division, moved: usize, reset: bool, began: Instant) {
        let mut kernel = self.kernel();
        let returned = kernel.give_back(&division.kernel, &division.datapath);
        if reset {
            kernel.recover(&division.datapath);
        }
        kernel.tell(
            &self.shared,
            division.places.clone(),
            moved,
            returned,
            began,
        );
    }

    fn push(
        &self,
        connection: &mut Connection,
        pushed: &mut Wanted,
        wanted: &Wanted,
        reset: bool,
    ) -> Result<(), Ended> {
        let (mut update, changes) = pushed.update_to(wanted);
        if !reset && wanted == pushed {
            return Ok(());
        }
        update.reset = reset;
        for message in split(update, RECORDS) {
            connection.channel.send(&DatapathRequest::Update(message))?;
            self.done(connection)?;
        }
        // With negotiated keys there are some in every rekeying.
        let level = if reset { Level::Info } else { Level::Debug };
        log!(
            level,
            "datapath has {} SAs and {} policies ({} SAs added, {} changed, {} removed)",
            wanted.sas.len(),
            wanted.policies.len(),
            changes.sas_added,
            changes.sas_changed,
            changes.sas_removed
        );
        *pushed = wanted.clone();
        Ok(())
    }

    fn done(&self, connection: &mut Connection) -> Result<(), Ended> {
        while connection.judged && !connection.channel.hung_up(LOOK)? {
            self.heart(connection, Instant::now())?;
        }
        match connection.channel.answer()? {
            DatapathReply::Done => Ok(()),
            DatapathReply::Refused(text) => Err(Ended::Refused(text)),
            _ => Err(ChannelError::Unexpected.into()),
        }
    }

    /// Waits until something else is wanted than in `generation`, or the datapath is gone, or hangs.
    fn wait(&self, connection: &Connection, generation: u64) -> Result<(), Ended> {
        let timeout = if connection.judged {
            PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::NONE)
        } else {
            PollTimeout::NONE
        };
        while self.shared.generation() == generation {
            let asleep = Instant::now();
            let mut descriptors = [
                PollFd::new(connection.channel.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.shared.wake.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut descriptors, timeout) {
                Ok(_) | Err(nix::Error::EINTR) => {}
                Err(error) => return Err(ChannelError::from(error).into()),
            }
            // It never speaks unasked: readable means gone.
            if descriptors[0].any() == Some(true) {
                return Err(ChannelError::Closed.into());
            }
            // Empty if somebody else read it; the generation is what counts.
            let _ = self.shared.wake.read();
            if connection.judged {
                self.heart(connection, asleep + LOOK)?;
            }
        }
        Ok(())
    }

    /// Whether the datapath's heart beats. `due` is when we meant to look: if we are late ourselves, the machine is too
    /// busy to tell.
    fn heart(&self, connection: &Connection, due: Instant) -> Result<(), Ended> {
        if due.elapsed() > LOOK {
            return Ok(());
        }
        let beat = self.region.last_beat();
        if beat == connection.beat && connection.began.elapsed() < FIRST_BEAT {
            return Ok(());
        }
        let age = now().saturating_sub(beat);
        if Duration::from_millis(age) > self.shared.hung_after() {
            info!("no heartbeat of the datapath for {age} ms");
            return Err(Ended::Hung(age));
        }
        Ok(())
    }
}

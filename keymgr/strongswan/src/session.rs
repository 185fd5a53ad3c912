//! The session with the key manager: begun anew whenever it ends, until charon does.

use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::{self, JoinHandle, ThreadId};
use std::time::{Duration, Instant};

use culvert_bridge::records::Expired;
use culvert_bridge::{Connection, Event, Reply, Request};

use crate::charon::Ears;
use crate::client::Client;
use crate::mirror::Mirror;
use crate::os;

/// How long to wait after a session has ended or not begun; twice as long each time, up to the other.
const SOON: Duration = Duration::from_millis(50);
const LATER: Duration = Duration::from_millis(500);

/// How long charon has to delete what is lost, before it is told again: it does not know a child yet that it is just
/// setting up.
const AGAIN: Duration = Duration::from_secs(1);

/// How long charon's end waits for ours.
const END: Duration = Duration::from_secs(2);

/// The session, and what the calls share with it.
pub(crate) struct Session {
    pub(crate) shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
    /// charon's main thread, which loads plugins. Policies are removed on it only by charon's end: while charon runs,
    /// that thread waits for signals.
    pub(crate) main: ThreadId,
    /// Whether the key manager knows that charon ends.
    pub(crate) ending: AtomicBool,
}

pub(crate) struct Shared {
    pub(crate) charon: Arc<dyn Ears>,
    pub(crate) client: Client,
    pub(crate) mirror: Mutex<Mirror>,
    /// Calls share it; the start of a session has it alone, so that no change falls between what it sends and what
    /// calls send.
    pub(crate) gate: RwLock<()>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    up: bool,
    /// How many sessions there have been.
    count: u64,
    /// Why it is not up.
    problem: String,
    /// To shut it down from without.
    stream: Option<UnixStream>,
    end: bool,
}

impl Session {
    /// Begins, in a thread of its own. To be called on charon's main thread.
    pub(crate) fn new(charon: Arc<dyn Ears>, client: Client) -> Self {
        let shared = Arc::new(Shared {
            charon,
            client,
            mirror: Mutex::default(),
            gate: RwLock::default(),
            state: Mutex::new(State {
                problem: "the session with culvert-keymgr has not begun".to_owned(),
                ..State::default()
            }),
            changed: Condvar::new(),
        });
        let theirs = Arc::clone(&shared);
        let thread = os::spawn(move || theirs.run())
            .inspect_err(|error| {
                let text = format!("no thread for the session with culvert-keymgr: {error}");
                shared.charon.log(&text);
            })
            .ok();
        Self {
            shared,
            thread,
            main: thread::current().id(),
            ending: AtomicBool::new(false),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        let mut state = self.shared.state();
        state.end = true;
        if let Some(stream) = state.stream.take() {
            // It fails if the other end was faster.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        drop(state);
        self.shared.changed.notify_all();
        let Some(thread) = self.thread.take() else {
            return;
        };
        let deadline = Instant::now() + END;
        while !thread.is_finished() && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
        if thread.is_finished() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Which session there is; if there is none, why.
    pub(crate) fn up(&self) -> Result<u64, String> {
        let state = self.state();
        if state.up {
            Ok(state.count)
        } else {
            Err(state.problem.clone())
        }
    }

    /// Ends a session, unless it has ended, with a key manager that hangs: nobody else is to wait for it until it
    /// takes a new one.
    pub(crate) fn give_up(&self, session: u64, why: &str) {
        let mut state = self.state();
        if !state.up || state.count != session {
            return;
        }
        state.up = false;
        state.problem = format!("the session with culvert-keymgr is given up: {why}");
        if let Some(stream) = &state.stream {
            // It fails if the other end was faster.
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        let news = state.problem.clone();
        drop(state);
        self.log(&news);
    }

    /// Waits until something changes, but no longer than this.
    pub(crate) fn wait(&self, limit: Duration) {
        drop(self.changed.wait_timeout(self.state(), limit));
    }

    /// The mirror.
    pub(crate) fn mirror(&self) -> MutexGuard<'_, Mirror> {
        self.mirror.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self) {
        let mut pause = SOON;
        while !self.state().end {
            let mut problem = match self.begin() {
                Ok(connection) => {
                    let began = Instant::now();
                    let problem = self.listen(connection);
                    if began.elapsed() > LATER {
                        pause = SOON;
                    }
                    problem
                }
                Err(problem) => problem,
            };
            let mut state = self.state();
            state.up = false;
            state.stream = None;
            std::mem::swap(&mut state.problem, &mut problem);
            let news = (state.problem != problem).then(|| state.problem.clone());
            drop(state);
            if let Some(news) = news {
                self.log(&news);
            }
            self.pause(pause);
            pause = LATER.min(pause * 2);
        }
    }

    /// Connects, and hands over the policies.
    fn begin(&self) -> Result<Connection, String> {
        let mut connection = self.client.connect()?;
        let stream = connection.stream().try_clone();
        let stream = stream.map_err(|error| self.client.unreachable(&error.into()))?;
        let mut state = self.state();
        if state.end {
            return Err(String::new());
        }
        state.stream = Some(stream);
        drop(state);
        let theirs = self.client.greet(&mut connection)?;

        let gate = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        let policies = self.mirror().policies();
        let count = policies.len();
        let answer = connection.send(&Request::Session(policies));
        match answer.and_then(|()| connection.receive()) {
            Ok(Reply::Done) => {}
            Ok(Reply::Refused(refused)) => {
                return Err(format!(
                    "culvert-keymgr begins no session: {}",
                    refused.text
                ));
            }
            Ok(_) => {
                return Err("culvert-keymgr begins no session, and does not say why".to_owned());
            }
            Err(error) => return Err(self.client.unreachable(&error).into()),
        }
        let lost = self.mirror().begin(theirs.instance);
        let mut state = self.state();
        state.up = true;
        state.count += 1;
        state.problem.clear();
        drop(state);
        drop(gate);
        self.changed.notify_all();

        let path = self.client.path.display();
        self.log(&format!(
            "connected to {} at {path}, policies handed over: {count}",
            theirs.program
        ));
        if lost > 0 {
            self.log(&format!(
                "culvert-keymgr was started anew: all {lost} SAs are lost and will be negotiated anew"
            ));
        }
        Ok(connection)
    }

    /// Passes on what the key manager reports, until the session ends; says why.
    fn listen(&self, mut connection: Connection) -> String {
        let deleted = self.mirror().deleted();
        for name in deleted {
            if self.state().end {
                break;
            }
            // If it is not answered, the next session does it.
            let _ = self.delete_sa(&name);
        }
        if self.expire_lost() {
            self.pause(AGAIN);
            self.expire_lost();
        }
        loop {
            match connection.wait() {
                Ok(event) => self.pass_on(&event),
                Err(error) => {
                    // Who gave it up has said why.
                    return self.up().err().unwrap_or_else(|| {
                        format!(
                            "the session with culvert-keymgr has ended: is it running? ({error})"
                        )
                    });
                }
            }
        }
    }

    fn expire_lost(&self) -> bool {
        let lost = self.mirror().lost();
        for name in &lost {
            let Some(charon) = self.charon() else {
                break;
            };
            charon.expire(&Expired {
                spi: name.spi,
                destination: name.destination,
                hard: true,
            });
        }
        !lost.is_empty()
    }

    fn pass_on(&self, event: &Event) {
        let Some(charon) = self.charon() else {
            return;
        };
        match event {
            Event::Expired(expired) => charon.expire(expired),
            Event::Moved(moved) => charon.moved(moved),
            Event::Acquire(acquire) if self.mirror().traps_any_peer(acquire.reqid) => {
                charon.log(&format!(
                    "the trap with reqid {} is for any peer, and none can be started from it: name the peer in \
                     remote_addrs",
                    acquire.reqid
                ));
            }
            Event::Acquire(acquire) => charon.acquire(acquire.reqid),
        }
    }

    /// charon, until it ends: a thread that is still here then may not call what is being freed.
    fn charon(&self) -> Option<&dyn Ears> {
        (!self.state().end).then_some(&*self.charon)
    }

    fn log(&self, text: &str) {
        if let Some(charon) = self.charon() {
            charon.log(text);
        }
    }

    /// Waits, unless it is the end.
    fn pause(&self, limit: Duration) {
        let state = self.state();
        drop(
            self.changed
                .wait_timeout_while(state, limit, |state| !state.end),
        );
    }
}

#[cfg(test)]
pub(crate) mod tests;

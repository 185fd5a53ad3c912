//! The socket that charon's plugin speaks to.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_bridge::records::Refused;
use culvert_bridge::{Connection, Error, Event, Hello, Kind, Refusal, Reply, Request, VERSION};
use culvert_proto::channel::{Listener, Lock};
use log::{debug, warn};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::NotServed;
use crate::daemon::{PROGRAM, spawn};
use crate::manager::{Manager, Sources};

/// Connections at once. Charon has 16 threads by default, each with one call.
const CONNECTIONS: usize = 128;
/// How long a call waits for the datapath to follow: it is away for less while it is started again.
const PATIENCE: Duration = Duration::from_secs(2);
/// What the status calls the peer of refusals that are not a peer's.
const DATAPATH: &str = "datapath";
/// How often a session looks whether its charon is still there.
const LOOK: Duration = Duration::from_millis(100);

/// The socket, and the right to it.
pub(crate) struct Bridge {
    listener: Listener,
    _lock: Lock,
}

impl Bridge {
    /// Takes the socket at `path`.
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let name = path.file_name().context("no file name")?;
        let lock = Lock::take(folder, &name.to_string_lossy())
            .context("one key manager at a time may have it; give this one another by --bridge")?;
        Ok(Self {
            listener: Listener::bind(path)?,
            _lock: lock,
        })
    }

    /// Serves for ever, a thread a connection.
    pub(crate) fn serve(&self, manager: &Arc<Manager>) {
        let open = Arc::new(());
        loop {
            let stream = match self.listener.accept_stream() {
                Ok(stream) => stream,
                Err(error) => {
                    warn!("strongSwan's socket: {error}");
                    // A lack of descriptors does not pass by asking again at once.
                    std::thread::sleep(Duration::from_millis(50));
                    continue;
                }
            };
            let ticket = Arc::clone(&open);
            if Arc::strong_count(&ticket) > CONNECTIONS {
                warn!("strongSwan's socket: more than {CONNECTIONS} connections, one refused");
                continue;
            }
            let manager = Arc::clone(manager);
            let spawned = spawn("charon", move || {
                let _ticket = ticket;
                if let Err(error) = converse(stream, &manager) {
                    debug!("strongSwan's socket: {error}");
                }
            });
            if let Err(error) = spawned {
                warn!("strongSwan's socket: {error:#}");
            }
        }
    }
}

fn converse(stream: UnixStream, manager: &Manager) -> Result<(), Error> {
    let mut connection = Connection::new(stream)?;
    let greeted = connection.greeted(&Hello {
        version: VERSION,
        program: PROGRAM.to_owned(),
        instance: manager.instance(),
    });
    if let Err(error @ Error::Version(_)) = &greeted {
        manager.unserved(&error.to_string());
    }
    let hello = greeted?;
    match connection.receive()? {
        Request::Session(policies) => {
            let begun = manager.change(|sources| {
                let Sources {
                    state,
                    file,
                    charon,
                    ..
                } = sources;
                charon.begin(hello.clone(), policies, state, file)
            });
            match begun.1 {
                Ok((number, events)) => {
                    manager.served();
                    let served = session(&mut connection, &events);
                    manager.change(|sources| sources.charon.end(number));
                    served
                }
                Err(text) => connection.send(&refused(Refusal::Away, text)),
            }
        }
        Request::Unserved(text) => {
            manager.unserved(&format!("{}: {text}", hello.program));
            connection.send(&Reply::Done)
        }
        request => {
            let reply = answer(manager, &hello, request);
            connection.send(&reply)
        }
    }
}

/// Passes events on until the charon is gone.
fn session(connection: &mut Connection, events: &Receiver<Event>) -> Result<(), Error> {
    connection.send(&Reply::Done)?;
    loop {
        match events.recv_timeout(LOOK) {
            Ok(event) => connection.send(&event)?,
            // Another connection has taken over.
            Err(RecvTimeoutError::Disconnected) => return Ok(()),
            Err(RecvTimeoutError::Timeout) => {}
        }
        // It says nothing in a session: readable means gone.
        let mut descriptors = [PollFd::new(connection.stream().as_fd(), PollFlags::POLLIN)];
        if poll(&mut descriptors, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            return Ok(());
        }
    }
}

fn refused(refusal: Refusal, text: impl Into<String>) -> Reply {
    let text = text.into();
    Reply::Refused(Refused { refusal, text })
}

/// What is not there is gone already, or was never ours.
fn found(found: Option<()>) -> Reply {
    match found {
        Some(()) => Reply::Done,
        None => refused(Refusal::NotFound, "there is none"),
    }
}

fn answer(manager: &Manager, hello: &Hello, request: Request) -> Reply {
    let away = || refused(Refusal::Away, "this charon has no session");
    try_answer(manager, hello, request).unwrap_or_else(away)
}

/// None if the charon that asks is not the one that has the session.
fn try_answer(manager: &Manager, hello: &Hello, request: Request) -> Option<Reply> {
    Some(match request {
        Request::AddSa(sa) => {
            let (generation, added) = manager.change_for(hello, |sources| {
                let Sources {
                    state,
                    file,
                    charon,
                    ..
                } = sources;
                charon.add_sa(&sa, state, file)
            })?;
            let added = match added {
                Ok(id) => id,
                Err(NotServed(text)) => {
                    let text = format!("{}: {text}", sa.name);
                    return Some(refused(Refusal::NotSupported, text));
                }
            };
            // The peer may send under it as soon as we have said that it is there.
            let settled = manager.settle(generation, PATIENCE);
            let settled =
                settled.map_err(|problem| format!("the datapath does not take it: {problem}"));
            if let Err(problem) = settled.and_then(|()| manager.taken(&added)) {
                let text = format!("{}: {problem}", sa.name);
                manager.change(|sources| {
                    let Sources { state, charon, .. } = sources;
                    charon.delete_sa(&sa.name, state);
                    charon.refuse(DATAPATH, &text);
                });
                return Some(refused(Refusal::Failed, text));
            }
            manager.alter(|sources| sources.charon.refused.remove(DATAPATH));
            Reply::Done
        }
        Request::AddPolicy(policy) => {
            let (generation, added) = manager.change_for(hello, |sources| {
                let Sources { file, charon, .. } = sources;
                let added = charon.add_policy(*policy, file);
                charon.guard(true);
                added
            })?;
            match added {
                Ok(()) => {
                    // Without the datapath it guards nothing yet, but it is not forgotten.
                    let _ = manager.settle(generation, PATIENCE);
                    Reply::Done
                }
                Err(NotServed(text)) => refused(Refusal::NotSupported, text),
            }
        }
        Request::AllocateSpi(destination) => {
            let spi = manager.alter_for(hello, |sources| {
                let Sources { file, charon, .. } = sources;
                charon.allocate_spi(destination, file)
            })?;
            match spi {
                Some(spi) => Reply::Spi(spi.get()),
                None => refused(Refusal::Failed, "there is no free SPI"),
            }
        }
        Request::UpdateSa(update) => {
            let (generation, updated) = manager.change_for(hello, |sources| {
                let Sources { file, charon, .. } = sources;
                charon.update_sa(&update, file)
            })?;
            let _ = manager.settle(generation, PATIENCE);
            found(updated)
        }
        Request::DeleteSa(name) => {
            let (_, deleted) = manager.change_for(hello, |Sources { state, charon, .. }| {
                charon.delete_sa(&name, state)
            })?;
            found(deleted)
        }
        Request::FlushSas => {
            manager.change_for(hello, |Sources { state, charon, .. }| {
                charon.flush_sas(state);
            })?;
            Reply::Done
        }
        Request::DeletePolicy(policy) => {
            let (_, deleted) = manager.change_for(hello, |sources| {
                let Sources { state, charon, .. } = sources;
                let deleted = charon.delete_policy(&policy, state);
                charon.guard(true);
                deleted
            })?;
            // Those that let pass what is not Geneve were not kept.
            found(deleted.or((policy.kind == Kind::Bypass).then_some(())))
        }
        Request::FlushPolicies => {
            manager.change_for(hello, |sources| {
                sources.charon.policies.clear();
                sources.charon.guard(true);
            })?;
            Reply::Done
        }
        Request::QuerySa(name) => {
            let id = manager.look(|sources| sources.charon.find(&name));
            id.iter().for_each(|id| manager.count(id));
            let usage = manager.alter_for(hello, |Sources { state, charon, .. }| {
                charon.query_sa(&name, state)
            })?;
            usage.map_or_else(|| found(None), Reply::Usage)
        }
        Request::QueryPolicy(name) => {
            let usage = manager.alter_for(hello, |Sources { state, charon, .. }| {
                charon.query_policy(&name, state)
            })?;
            usage.map_or_else(|| found(None), Reply::Usage)
        }
        Request::Ending => {
            manager.alter_for(hello, |sources| sources.charon.ending())?;
            Reply::Done
        }
        Request::Session(_) | Request::Unserved(_) => refused(Refusal::Failed, "not here"),
    })
}

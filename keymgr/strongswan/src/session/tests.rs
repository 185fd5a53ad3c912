//! The session and the calls against a key manager that is a thread of the test.

use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, Sender};

use culvert_bridge::records::*;

use super::*;
use crate::calls::Status;

mod trouble;

/// How long the tests wait for what must happen.
const SURELY: Duration = Duration::from_secs(20);

pub(crate) fn name(spi: u32) -> SaName {
    SaName {
        spi,
        destination: "192.0.2.1".parse().unwrap(),
    }
}

pub(crate) fn policy(reqid: u32) -> Policy {
    let end = TrafficSelector {
        protocol: 17,
        network: "192.0.2.1".parse().unwrap(),
        prefix: 32,
        first_port: 0,
        last_port: u16::MAX,
    };
    Policy {
        name: PolicyName {
            direction: Direction::Out,
            source: end.clone(),
            destination: end,
        },
        kind: Kind::Protect,
        priority: Priority::Default,
        manual_priority: 0,
        source: "192.0.2.1".parse().unwrap(),
        destination: "192.0.2.2".parse().unwrap(),
        mode: 1,
        reqid,
        spi: 0,
        restriction: None,
    }
}

fn sa(spi: u32) -> Sa {
    Sa {
        name: name(spi),
        protocol: 50,
        inbound: true,
        source: "192.0.2.2:500".parse().unwrap(),
        destination_port: 500,
        reqid: 1,
        mode: 1,
        encryption: 20,
        key: Secret::new(vec![0xa5; 36]),
        integrity: 0,
        integrity_key: Secret::new(Vec::new()),
        esn: true,
        replay_window: 32,
        tfc: 0,
        encapsulated: false,
        ipcomp: 0,
        lifetimes: Lifetimes::default(),
        restriction: None,
    }
}

fn hard(spi: u32) -> Heard {
    Heard::Expired(Expired {
        spi,
        destination: name(spi).destination,
        hard: true,
    })
}

#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Log(String),
    Expired(Expired),
    Acquire(u32),
    Moved(Moved),
}

/// What charon would hear.
struct Charon(Mutex<Sender<Heard>>);

impl Charon {
    fn hear(&self, heard: Heard) {
        // A test that has seen enough does not listen any more.
        let _ = self.0.lock().unwrap().send(heard);
    }
}

impl Ears for Charon {
    fn log(&self, text: &str) {
        self.hear(Heard::Log(text.to_owned()));
    }
    fn expire(&self, expired: &Expired) {
        self.hear(Heard::Expired(expired.clone()));
    }
    fn acquire(&self, reqid: u32) {
        self.hear(Heard::Acquire(reqid));
    }
    fn moved(&self, moved: &Moved) {
        self.hear(Heard::Moved(moved.clone()));
    }
}

/// charon's side: a session with what listens in a folder.
struct Here {
    session: Session,
    heard: Receiver<Heard>,
}

impl Here {
    fn new(home: &Path) -> Self {
        Self::owned_by(home, home.metadata().unwrap().uid())
    }

    fn owned_by(home: &Path, owner: u32) -> Self {
        let (tell, heard) = mpsc::channel();
        let client = Client {
            path: home.join("bridge"),
            hello: hello(1),
            owner,
        };
        let session = Session::new(Arc::new(Charon(Mutex::new(tell))), client);
        Self { session, heard }
    }

    fn hear(&self) -> Heard {
        self.heard.recv_timeout(SURELY).unwrap()
    }

    /// The next line of the log, with all of this in it.
    fn hear_log(&self, parts: &[&str]) {
        match self.hear() {
            Heard::Log(text) if parts.iter().all(|part| text.contains(part)) => {}
            other => panic!("{other:?} has not all of {parts:?}"),
        }
    }
}

fn hello(instance: u64) -> Hello {
    Hello {
        version: culvert_bridge::VERSION,
        program: "test".to_owned(),
        instance,
    }
}

/// The key manager's side.
struct There(UnixListener);

impl There {
    fn new(home: &Path) -> Self {
        let path = home.join("bridge");
        // The one before may have left it.
        let _ = std::fs::remove_file(&path);
        let listener = UnixListener::bind(path).unwrap();
        listener.set_nonblocking(true).unwrap();
        Self(listener)
    }

    fn incoming(&self) -> Connection {
        let deadline = Instant::now() + SURELY;
        loop {
            match self.0.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(false).unwrap();
                    return Connection::new(stream).unwrap();
                }
                Err(error) => assert!(Instant::now() < deadline, "nobody comes: {error}"),
            }
            thread::sleep(Duration::from_millis(1));
        }
    }

    fn accept(&self, instance: u64) -> (Connection, Request) {
        let mut connection = self.incoming();
        connection.greeted(&hello(instance)).unwrap();
        let request = connection.receive().unwrap();
        (connection, request)
    }

    /// Begins a session; says with which policies.
    fn begin(&self, instance: u64) -> (Connection, Vec<Policy>) {
        let (mut connection, request) = self.accept(instance);
        let Request::Session(policies) = request else {
            panic!("{request:?} is no session");
        };
        connection.send(&Reply::Done).unwrap();
        (connection, policies)
    }

    /// Answers one call while it is made.
    fn answer<T: Send>(&self, reply: &Reply, call: impl FnOnce() -> T + Send) -> (Request, T) {
        thread::scope(|scope| {
            let call = scope.spawn(call);
            let (mut connection, request) = self.accept(7);
            connection.send(reply).unwrap();
            (request, call.join().unwrap())
        })
    }
}

fn refused(refusal: Refusal) -> Reply {
    Reply::Refused(Refused {
        refusal,
        text: "because".to_owned(),
    })
}

fn home() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// Both sides with a session between them: the folder of the socket, the key manager, charon, the session's connection.
fn connected() -> (tempfile::TempDir, There, Here, Connection) {
    let home = home();
    let there = There::new(home.path());
    let here = Here::new(home.path());
    let (session, _) = there.begin(7);
    here.hear_log(&["connected"]);
    (home, there, here, session)
}

#[test]
fn calls_are_asked_and_answered() {
    let home = home();
    let there = There::new(home.path());
    let here = Here::new(home.path());
    let (_session, policies) = there.begin(7);
    assert!(policies.is_empty());
    here.hear_log(&["connected to test"]);
    let session = &here.session;

    let destination = name(1).destination;
    let spi = Reply::Spi(0xc000_0001);
    let (request, answer) = there.answer(&spi, || session.allocate_spi(destination));
    assert_eq!(request, Request::AllocateSpi(destination));
    assert_eq!(answer, Ok(0xc000_0001));

    let (request, answer) = there.answer(&Reply::Done, || session.add_sa(sa(1)));
    assert_eq!(request, Request::AddSa(Box::new(sa(1))));
    assert_eq!(answer, Status::Success);

    let usage = Usage {
        bytes: 3,
        packets: 2,
        last_use: 1,
    };
    let reply = Reply::Usage(usage);
    let (_, answer) = there.answer(&reply, || session.query_sa(name(1)));
    assert_eq!(answer, Ok(usage));

    let (request, _) = there.answer(&Reply::Done, || session.delete_sa(&name(1)));
    assert_eq!(request, Request::DeleteSa(name(1)));
    assert!(here.heard.try_recv().is_err(), "nothing to tell");

    for (refusal, status) in [
        (Refusal::Failed, Status::Failed),
        (Refusal::NotSupported, Status::NotSupported),
        (Refusal::NotFound, Status::NotFound),
    ] {
        let (_, answer) = there.answer(&refused(refusal), || session.add_sa(sa(2)));
        assert_eq!(answer, status);
        here.hear_log(&[
            "SA 0x00000002 to 192.0.2.1",
            "is not installed",
            ": because",
        ]);
    }
}

#[test]
fn policies_are_sent_once_and_again_with_the_next_session() {
    let (home, there, here, first) = connected();
    let session = &here.session;

    let (request, _) = there.answer(&Reply::Done, || session.add_policy(&policy(1)));
    assert_eq!(request, Request::AddPolicy(Box::new(policy(1))));
    assert_eq!(session.add_policy(&policy(1)), Status::Success);
    let no = refused(Refusal::NotSupported);
    let (_, answer) = there.answer(&no, || session.add_policy(&policy(2)));
    assert_eq!(answer, Status::NotSupported);
    here.hear_log(&["is not installed: because"]);
    assert_eq!(session.delete_policy(policy(2)), Status::NotFound);

    // Away, it is noted.
    drop((first, there));
    here.hear_log(&["has ended"]);
    here.hear_log(&["not reachable", "is it running?"]);
    assert_eq!(session.add_policy(&policy(3)), Status::Success);
    here.hear_log(&["noted"]);

    let there = There::new(home.path());
    let (_second, policies) = there.begin(7);
    assert_eq!(policies, [policy(1), policy(3)]);
    here.hear_log(&["connected", "handed over: 2"]);
    assert_eq!(session.delete_policy(policy(1)), Status::Success);
    let (request, _) = there.answer(&Reply::Done, || session.delete_policy(policy(1)));
    assert_eq!(request, Request::DeletePolicy(Box::new(policy(1))));
}

#[test]
fn events_reach_charon() {
    let home = home();
    let there = There::new(home.path());
    let here = Here::new(home.path());
    let (mut events, _) = there.begin(7);
    here.hear_log(&["connected"]);
    let mut trap = policy(4);
    trap.priority = Priority::Routed;
    trap.destination = "0.0.0.0".parse().unwrap();
    there.answer(&Reply::Done, || here.session.add_policy(&trap));

    let moved = Moved {
        spi: 1,
        destination: name(1).destination,
        remote: "192.0.2.9:4500".parse().unwrap(),
    };
    let expired = Expired {
        hard: false,
        spi: 1,
        destination: name(1).destination,
    };
    for event in [
        Event::Expired(expired.clone()),
        Event::Acquire(Acquire { reqid: 3 }),
        Event::Moved(moved.clone()),
        Event::Acquire(Acquire { reqid: 4 }),
    ] {
        events.send(&event).unwrap();
    }
    assert_eq!(here.hear(), Heard::Expired(expired));
    assert_eq!(here.hear(), Heard::Acquire(3));
    assert_eq!(here.hear(), Heard::Moved(moved));
    here.hear_log(&["reqid 4", "any peer"]);
}

#[test]
fn sas_are_expired_when_the_key_manager_is_another_one() {
    let (home, there, here, first) = connected();
    let session = &here.session;
    for spi in [1, 2] {
        there.answer(&Reply::Done, || session.add_sa(sa(spi)));
    }

    // The same one again: only what was deleted meanwhile is made up for.
    drop((first, there));
    here.hear_log(&["has ended"]);
    here.hear_log(&["not reachable"]);
    assert_eq!(session.delete_sa(&name(2)), Status::Success);
    here.hear_log(&["removed later"]);
    let there = There::new(home.path());
    let (first, _) = there.begin(7);
    here.hear_log(&["connected"]);
    let (request, ()) = there.answer(&Reply::Done, || ());
    assert_eq!(request, Request::DeleteSa(name(2)));

    // Another one: what is left is lost, and told until charon deletes it.
    let (second, _) = {
        drop(first);
        there.begin(8)
    };
    here.hear_log(&["has ended"]);
    here.hear_log(&["connected"]);
    here.hear_log(&["all 1 SAs are lost"]);
    assert_eq!(here.hear(), hard(1));
    assert_eq!(here.hear(), hard(1), "again, as it was not deleted");
    assert_eq!(session.delete_sa(&name(1)), Status::Success);

    drop(second);
    let _third = there.begin(9);
    here.hear_log(&["has ended"]);
    here.hear_log(&["connected"]);
    assert!(
        here.heard.recv_timeout(AGAIN * 2).is_err(),
        "nothing was lost"
    );
}

#[test]
fn a_call_waits_for_the_key_manager_a_little() {
    let home = home();
    let here = Here::new(home.path());
    here.hear_log(&["not reachable"]);
    assert_eq!(here.session.add_sa(sa(1)), Status::Failed);
    here.hear_log(&["is not installed", "is it running?"]);
    assert_eq!(here.session.query_sa(name(1)), Err(Status::Failed));
    here.hear_log(&["is not known"]);

    thread::scope(|scope| {
        let call = scope.spawn(|| here.session.add_sa(sa(1)));
        thread::sleep(Duration::from_millis(100));
        let there = There::new(home.path());
        let _session = there.begin(7);
        // It has not looked yet who is there.
        let away = refused(Refusal::Away);
        there.answer(&away, || ());
        there.answer(&Reply::Done, || ());
        assert_eq!(call.join().unwrap(), Status::Success);
    });
}

#[test]
fn what_was_sent_is_not_sent_again() {
    let home = home();
    let there = There::new(home.path());
    let here = Here::new(home.path());
    let _session = there.begin(7);
    here.hear_log(&["connected"]);
    thread::scope(|scope| {
        let call = scope.spawn(|| here.session.add_sa(sa(1)));
        let (connection, _) = there.accept(7);
        drop(connection);
        assert_eq!(call.join().unwrap(), Status::Failed);
    });
    here.hear_log(&["is not installed", "no answer"]);
    let (request, _) = there.answer(&Reply::Done, || here.session.delete_sa(&name(1)));
    assert_eq!(request, Request::DeleteSa(name(1)), "it may be there");
}

#[test]
fn nobody_but_root_gets_a_key() {
    let home = home();
    let _there = There::new(home.path());
    let stranger = home.path().metadata().unwrap().uid() + 1;
    let here = Here::owned_by(home.path(), stranger);
    here.hear_log(&["gets no key"]);
    assert_eq!(here.session.add_sa(sa(1)), Status::Failed);
    here.hear_log(&["is not installed", "gets no key"]);
}

#[test]
fn another_version_says_what_to_do() {
    let home = home();
    let there = There::new(home.path());
    let here = Here::new(home.path());
    let mut connection = there.incoming();
    let mut other = hello(7);
    other.version += 1;
    // It says the same of us.
    let _ = connection.greeted(&other);
    here.hear_log(&["speaks version", "install the same release"]);
}

use super::*;
use crate::config::Config;
use culvert_bridge::Kind;
use culvert_bridge::records::{Acquire, Expired, PolicyName};
use culvert_bridge::{Direction as Way, Lifetimes, Priority, Secret, TrafficSelector};
use culvert_proto::event;
use culvert_proto::policy::Selector;
use culvert_state::Region;
use std::net::SocketAddr;

pub(super) const HERE: &str = "192.0.2.1";
pub(super) const THERE: &str = "192.0.2.2";

/// An SA whose key is made of `key`.
pub(crate) fn sa(spi: u32, inbound: bool, key: u8) -> Sa {
    let (source, destination) = if inbound {
        (THERE, HERE)
    } else {
        (HERE, THERE)
    };
    Sa {
        name: SaName {
            spi,
            destination: destination.parse().unwrap(),
        },
        protocol: 50,
        inbound,
        source: SocketAddr::new(source.parse().unwrap(), 4500),
        destination_port: 4500,
        reqid: 1,
        mode: 1,
        encryption: 20,
        key: Secret::new(vec![key; 36]),
        integrity: 1024,
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

fn end(address: &str, port: u16) -> TrafficSelector {
    TrafficSelector {
        protocol: 17,
        network: address.parse().unwrap(),
        prefix: 32,
        first_port: port,
        last_port: if port == 0 { u16::MAX } else { port },
    }
}

/// A policy for what we send to the peer's tunnel (and back), as charon installs it: `spi` 0 is a trap.
pub(crate) fn policy(direction: Way, spi: u32) -> Policy {
    let (local, remote) = (end(HERE, 0), end(THERE, 6081));
    let ((source, destination), (from, to)) = match direction {
        Way::Out => ((local, remote), (HERE, THERE)),
        _ => ((remote, local), (THERE, HERE)),
    };
    Policy {
        name: PolicyName {
            direction,
            source,
            destination,
        },
        kind: Kind::Protect,
        priority: if spi == 0 {
            Priority::Routed
        } else {
            Priority::Default
        },
        manual_priority: 0,
        source: from.parse().unwrap(),
        destination: to.parse().unwrap(),
        mode: 1,
        reqid: 1,
        spi,
        restriction: None,
    }
}

/// A charon's installations, with the state that they need.
struct Fixture {
    _folders: [tempfile::TempDir; 2],
    state: State,
    file: Wanted,
    charon: Charon,
}

fn fixture() -> Fixture {
    let folders = [(); 2].map(|()| tempfile::tempdir().unwrap());
    let (region, _) = Region::open_or_create(&folders[0].path().join("sa-state")).unwrap();
    Fixture {
        state: State::new(region, folders[1].path()).unwrap(),
        file: Wanted::default(),
        charon: Charon::open(folders[0].path()).unwrap(),
        _folders: folders,
    }
}

impl Fixture {
    fn begin(&mut self, instance: u64, policies: Vec<Policy>) -> Result<Receiver<Event>, String> {
        let hello = Hello {
            version: culvert_bridge::VERSION,
            program: "test".to_owned(),
            instance,
        };
        let begun = self
            .charon
            .begin(hello, policies, &mut self.state, &self.file);
        begun.map(|(_, events)| events)
    }

    fn add(&mut self, sa: &Sa) -> Result<SaId, String> {
        let added = self.charon.add_sa(sa, &mut self.state, &self.file);
        added.map_err(|NotServed(text)| text)
    }

    fn add_policy(&mut self, policy: Policy) {
        self.charon.add_policy(policy, &self.file).unwrap();
        self.charon.guard(true);
    }

    fn delete_policy(&mut self, policy: &Policy) {
        self.charon.delete_policy(policy, &self.state).unwrap();
        self.charon.guard(true);
    }

    fn wanted(&self) -> Wanted {
        let mut goal = Goal {
            wanted: self.file.clone(),
            ..Goal::default()
        };
        self.charon.add_to(&mut goal);
        goal.wanted
    }

    fn action(&self) -> Action {
        let wanted = self.wanted();
        let mut policies = wanted.policies.into_values();
        let policy = policies.next().unwrap();
        assert_eq!(policies.next(), None);
        policy.action
    }
}

fn id(direction: Direction, spi: u32) -> SaId {
    let destination = match direction {
        Direction::In => HERE,
        Direction::Out => THERE,
    };
    SaId {
        direction,
        spi: Spi::new(spi).unwrap(),
        destination: destination.parse().unwrap(),
    }
}

#[test]
fn a_trap_becomes_a_tunnel_and_is_rekeyed() {
    let mut it = fixture();
    let events = it.begin(1, Vec::new()).unwrap();
    for direction in [Way::Out, Way::In] {
        it.add_policy(policy(direction, 0));
    }
    let nothing = Action::Protect {
        outbound: None,
        inbound: Vec::new(),
    };
    assert_eq!(it.action(), nothing);
    let selector = it.wanted().policies.keys().next().unwrap().clone();
    assert!(it.charon.hear(&event::Event::Wanted { selector }));
    assert_eq!(events.try_recv(), Ok(Event::Acquire(Acquire { reqid: 1 })));

    it.add(&sa(0x1001, true, 1)).unwrap();
    it.add(&sa(0x2001, false, 2)).unwrap();
    it.add_policy(policy(Way::In, 0x1001));
    it.add_policy(policy(Way::Out, 0x2001));
    let protect = |out: u32, into: &[u32]| Action::Protect {
        outbound: Some(id(Direction::Out, out)),
        inbound: into.iter().map(|spi| id(Direction::In, *spi)).collect(),
    };
    assert_eq!(it.action(), protect(0x2001, &[0x1001]));

    // The new SAs are there, and the inbound one is good at once; the policy says when the outbound one is used.
    let soft = event::Event::Expired {
        sa: id(Direction::Out, 0x2001),
        hard: false,
        limit: event::Limit::Seconds,
    };
    assert!(it.charon.hear(&soft) && it.charon.hear(&soft));
    assert!(matches!(
        events.try_recv(),
        Ok(Event::Expired(Expired { hard: false, .. }))
    ));
    assert!(events.try_recv().is_err(), "once is enough");
    it.add(&sa(0x1002, true, 3)).unwrap();
    it.add(&sa(0x2002, false, 4)).unwrap();
    assert_eq!(it.action(), protect(0x2001, &[0x1001, 0x1002]));
    it.add_policy(policy(Way::In, 0x1002));
    it.add_policy(policy(Way::Out, 0x2002));
    assert_eq!(it.action(), protect(0x2002, &[0x1001, 0x1002]));
    it.delete_policy(&policy(Way::Out, 0x2001));
    it.delete_policy(&policy(Way::In, 0x1001));
    for name in [sa(0x2001, false, 2).name, sa(0x1001, true, 1).name] {
        it.charon.delete_sa(&name, &mut it.state).unwrap();
    }
    assert_eq!(it.action(), protect(0x2002, &[0x1002]));
    assert_eq!(it.wanted().sas.len(), 2);
    // All is taken down: the trap stands.
    for (direction, spi) in [(Way::Out, 0x2002), (Way::In, 0x1002)] {
        it.delete_policy(&policy(direction, spi));
    }
    it.charon.flush_sas(&mut it.state);
    assert_eq!(it.action(), nothing);
}

#[test]
fn a_key_comes_once() {
    let mut it = fixture();
    it.begin(1, Vec::new()).unwrap();
    it.add(&sa(0x1001, true, 1)).unwrap();
    assert!(
        it.add(&sa(0x1001, true, 2))
            .unwrap_err()
            .contains("already")
    );
    let again = it.add(&sa(0x1002, true, 1)).unwrap_err();
    assert!(again.contains("in use before"), "{again}");
    it.charon
        .delete_sa(&sa(0x1001, true, 1).name, &mut it.state);
    assert!(
        it.add(&sa(0x1001, true, 1)).is_err(),
        "also when it is gone"
    );
    assert_eq!(it.charon.refused().len(), 1);
    it.add(&sa(0x1001, true, 9)).unwrap();
    assert_eq!(it.charon.refused().len(), 0, "what works is no problem");
}

#[test]
fn an_sa_that_moves_keeps_its_numbers() {
    let mut it = fixture();
    let events = it.begin(1, Vec::new()).unwrap();
    it.add(&sa(0x1001, true, 1)).unwrap();
    let before = it.wanted().sas.into_values().next().unwrap();
    let moved = event::Event::Moved {
        sa: before.id,
        address: "192.0.2.9".parse().unwrap(),
        port: 1234,
    };
    assert!(it.charon.hear(&moved));
    assert!(matches!(events.try_recv(), Ok(Event::Moved(_))));
    let update = SaUpdate {
        name: sa(0x1001, true, 1).name,
        source: "192.0.2.9:1234".parse().unwrap(),
        destination: "192.0.2.1:4500".parse().unwrap(),
        encapsulated: true,
        reqid: 5,
    };
    it.charon.update_sa(&update, &it.file).unwrap();
    let after = it.wanted().sas.into_values().next().unwrap();
    assert_eq!(after.state, before.state);
    assert_eq!(after.source, "192.0.2.9".parse::<IpAddr>().unwrap());
    assert_eq!(after.encapsulation.unwrap().source_port, 1234);
}

#[test]
fn a_charon_that_crashed_leaves_all_and_the_next_begins_anew() {
    let mut it = fixture();
    it.begin(1, Vec::new()).unwrap();
    it.add(&sa(0x2001, false, 2)).unwrap();
    it.add_policy(policy(Way::Out, 0x2001));
    assert!(it.begin(2, Vec::new()).unwrap_err().contains("already"));
    it.charon.end(1);
    assert_eq!(it.wanted().sas.len(), 1, "traffic goes on");
    // The same one again: nothing is lost, and nothing twice.
    let events = it.begin(1, vec![policy(Way::Out, 0x2001)]).unwrap();
    assert!(events.try_recv().is_err());
    assert_eq!(it.wanted().sas.len(), 1);
    // An old connection that ends late is not this one.
    it.charon.end(1);
    assert!(it.charon.status().unwrap().connected);
    it.charon.end(2);
    it.begin(3, Vec::new()).unwrap();
    let wanted = it.wanted();
    assert_eq!((wanted.sas.len(), wanted.policies.len()), (0, 1));
    let held = wanted.policies.into_values().next().unwrap();
    assert_eq!(held.order, u32::MAX);
    assert_eq!(held.selector.to_string(), "0.0.0.0/0 to 192.0.2.2");
    assert_eq!(it.charon.release(None).len(), 1);
    assert_eq!(it.wanted(), Wanted::default());
}

#[test]
fn file_and_charon_do_not_share_names() {
    let mut it = fixture();
    it.begin(1, Vec::new()).unwrap();
    let id = it.add(&sa(0x1001, true, 1)).unwrap();
    it.add_policy(policy(Way::Out, 0));
    let wanted = it.wanted();
    let file = Config {
        sas: wanted.sas.values().cloned().collect(),
        policies: wanted.policies.values().cloned().collect(),
        ..Config::default()
    };
    assert_eq!(it.charon.clashes(&file).len(), 1);
    it.charon.flush_sas(&mut it.state);
    assert!(it.charon.clashes(&file).is_empty());
    // Of policies the file's counts, as long as it is there; charon's is not forgotten.
    it.file = wanted;
    let mut bypass = it.file.policies.values().next().unwrap().clone();
    bypass.action = Action::Bypass;
    it.file.policies.insert(bypass.selector.clone(), bypass);
    assert!(it.add(&sa(id.spi.get(), true, 7)).is_err());
    it.add_policy(policy(Way::In, 0));
    assert_eq!(it.action(), Action::Bypass);
    assert_eq!(it.charon.refused().len(), 1);
    it.file.policies.clear();
    assert_eq!(it.action().name(), "protect");
}

#[test]
fn bypass_for_others_is_no_business_of_ours() {
    let mut it = fixture();
    let mut ssh = policy(Way::Out, 0);
    ssh.name.source.protocol = 6;
    ssh.name.destination.protocol = 6;
    ssh.kind = Kind::Bypass;
    it.add_policy(ssh.clone());
    assert_eq!(it.wanted(), Wanted::default());
    ssh.kind = Kind::Protect;
    let error = it.charon.add_policy(ssh, &it.file).unwrap_err();
    assert!(error.0.contains("not for Geneve"), "{error:?}");
    let mut selector = Selector::hosts(HERE.parse().unwrap(), THERE.parse().unwrap());
    selector.geneve = Geneve::Remote;
    assert!(it.charon.hear(&event::Event::Wanted { selector }));
}

#[test]
fn what_is_taken_down_under_traffic_stays_until_it_is_made_again() {
    let mut it = fixture();
    let events = it.begin(1, Vec::new()).unwrap();
    for direction in [Way::Out, Way::In] {
        it.add_policy(policy(direction, 0));
    }
    let pair = |it: &mut Fixture, number: u32| {
        let key = u8::try_from(number).unwrap();
        it.add(&sa(0x1000 + number, true, 2 * key)).unwrap();
        it.add(&sa(0x2000 + number, false, 2 * key + 1)).unwrap();
        it.add_policy(policy(Way::In, 0x1000 + number));
        it.add_policy(policy(Way::Out, 0x2000 + number));
    };
    let take_down = |it: &mut Fixture, number: u32| {
        it.delete_policy(&policy(Way::Out, 0x2000 + number));
        it.delete_policy(&policy(Way::In, 0x1000 + number));
        for name in [
            sa(0x2000 + number, false, 0).name,
            sa(0x1000 + number, true, 0).name,
        ] {
            it.charon.delete_sa(&name, &mut it.state).unwrap();
            assert!(it.charon.delete_sa(&name, &mut it.state).is_none(), "once");
        }
    };
    let used = |it: &mut Fixture, spi: u32| {
        let sa = it.charon.sas.get_mut(&id(Direction::Out, spi)).unwrap();
        sa.last_use = crate::state::now() / 1000;
    };
    let protect = |out: u32, into: &[u32]| Action::Protect {
        outbound: Some(id(Direction::Out, out)),
        inbound: into.iter().map(|spi| id(Direction::In, *spi)).collect(),
    };
    // Nothing goes under it: it is gone at once.
    pair(&mut it, 1);
    take_down(&mut it, 1);
    assert_eq!(it.wanted().sas.len(), 0);
    assert!(events.try_recv().is_err());

    pair(&mut it, 2);
    used(&mut it, 0x2002);
    take_down(&mut it, 2);
    assert_eq!(it.action(), protect(0x2002, &[0x1002]));
    for _ in 0..2 {
        assert!(!it.charon.tick(&mut it.state));
    }
    let asked = events.try_recv();
    assert_eq!(asked, Ok(Event::Acquire(Acquire { reqid: 1 })));
    assert!(events.try_recv().is_err(), "once is enough");
    pair(&mut it, 3);
    it.charon.asked.clear();
    assert!(!it.charon.tick(&mut it.state));
    assert!(events.try_recv().is_err(), "they are there");
    assert_eq!(it.action(), protect(0x2003, &[0x1002, 0x1003]));
    let later = Instant::now() + Duration::from_secs(10);
    assert!(it.charon.let_go(later, &mut it.state));
    assert_eq!(it.action(), protect(0x2003, &[0x1003]));
    assert_eq!(it.wanted().sas.len(), 2);

    // Without the trap nobody would make them again.
    used(&mut it, 0x2003);
    take_down(&mut it, 3);
    for direction in [Way::Out, Way::In] {
        it.delete_policy(&policy(direction, 0));
    }
    assert_eq!(it.charon.policies.len(), 0);
}

#[test]
fn what_is_refused_at_the_start_of_a_session_is_held() {
    let mut it = fixture();
    let mut marked = policy(Way::Out, 0);
    marked.restriction = Some("mark 0x1/0x1".to_owned());
    let mut ssh = marked.clone();
    ssh.name.source.protocol = 6;
    ssh.name.destination.network = "192.0.2.77".parse().unwrap();
    it.begin(1, vec![marked, ssh]).unwrap();
    assert_eq!(
        it.charon.held().len(),
        1,
        "charon takes it that it is protected"
    );
}

#[test]
fn a_charon_that_ends_lets_nobody_go() {
    let mut it = fixture();
    it.begin(1, Vec::new()).unwrap();
    it.add_policy(policy(Way::Out, 0));
    it.charon.ending();
    it.delete_policy(&policy(Way::Out, 0));
    assert!(
        !it.charon
            .guard
            .expire(Instant::now() + Duration::from_secs(3600))
    );
    assert_eq!(it.charon.held().len(), 1);
}

#[test]
fn state_is_given_up_when_the_datapath_has_let_go() {
    let mut it = fixture();
    it.begin(1, Vec::new()).unwrap();
    it.add(&sa(0x1001, true, 1)).unwrap();
    let name = sa(0x1001, true, 1).name;
    it.charon.delete_sa(&name, &mut it.state).unwrap();
    it.state.let_go(7);
    assert_eq!(it.state.waiting(), 1, "of no generation yet");
    it.state.gone_with(8);
    it.state.let_go(7);
    assert_eq!(it.state.waiting(), 1);
    it.state.let_go(8);
    assert_eq!(it.state.waiting(), 0);
}

#[test]
fn an_sa_does_not_move_onto_another() {
    let mut it = fixture();
    it.begin(1, Vec::new()).unwrap();
    it.add(&sa(0x1001, true, 1)).unwrap();
    let mut other = sa(0x1001, true, 2);
    other.name.destination = "192.0.2.9".parse().unwrap();
    it.add(&other).unwrap();
    let update = SaUpdate {
        name: other.name,
        source: other.source,
        destination: "192.0.2.1:4500".parse().unwrap(),
        encapsulated: false,
        reqid: 0,
    };
    assert!(it.charon.update_sa(&update, &it.file).is_none());
    assert_eq!(it.wanted().sas.len(), 2);
}

use super::*;
use crate::goal::{How, KernelOnly};
use crate::kernel::Action as Done;
use culvert_proto::policy::VniRange;
use culvert_proto::sa::{Cipher, Direction, Keymat, Lifetime, SaSpec, Spi};
use std::net::IpAddr;

const HERE: [u8; 4] = [192, 0, 2, 1];

fn id(direction: Direction, host: u8) -> SaId {
    let there = IpAddr::from([192, 0, 2, host]);
    SaId {
        direction,
        spi: Spi::new(0x1000 + u32::from(host)).unwrap(),
        destination: match direction {
            Direction::Out => there,
            Direction::In => HERE.into(),
        },
    }
}

fn sa(id: SaId, cipher: Cipher) -> SaSpec {
    SaSpec {
        id,
        source: match id.direction {
            Direction::Out => HERE.into(),
            Direction::In => [192, 0, 2, u8::try_from(id.spi.get() - 0x1000).unwrap()].into(),
        },
        cipher,
        keymat: Keymat::new(vec![1; cipher.keymat_length()]),
        esn: true,
        replay_window: 64,
        encapsulation: None,
        tfc: 0,
        lifetime: Lifetime::default(),
        state: StateRef {
            offset: 0,
            words: 8,
        },
    }
}

/// A tunnel to each of some hosts.
fn goal(hosts: &[u8]) -> Goal {
    let mut goal = Goal::default();
    for &host in hosts {
        let ids = [Direction::Out, Direction::In].map(|direction| id(direction, host));
        for id in ids {
            goal.wanted.sas.insert(id, sa(id, Cipher::Aes128Gcm16));
        }
        let spec = PolicySpec {
            selector: selector(host),
            order: host.into(),
            action: Action::Protect {
                outbound: Some(ids[0]),
                inbound: vec![ids[1]],
            },
        };
        goal.wanted.policies.insert(selector(host), spec);
    }
    goal
}

fn selector(host: u8) -> Selector {
    Selector::hosts(HERE.into(), [192, 0, 2, host].into())
}

fn set_mode(goal: &mut Goal, host: u8, mode: Mode) {
    let how = How { mode, trap: None };
    goal.hows.insert(selector(host), how);
}

fn place_of(division: &Division, host: u8) -> Place {
    division.places[&selector(host)].0
}

/// What the kernel does with what leaves for a host.
fn done(division: &Division, host: u8) -> Vec<Done> {
    let policies = division.kernel.policies.iter();
    let to_host = |policy: &&KernelPolicy| {
        policy.way == crate::kernel::Way::Out && policy.destination.net == selector(host).remote
    };
    policies
        .filter(to_host)
        .map(|policy| policy.action)
        .collect()
}

#[test]
fn the_datapath_serves_while_it_can() {
    let division = divide(&goal(&[2, 3]), Ok(()), Ok(()));
    assert_eq!(place_of(&division, 2), Place::Culvert);
    assert_eq!(division.datapath, goal(&[2, 3]).wanted);
    assert_eq!(division.kernel, KernelPart::default());
}

#[test]
fn the_kernel_gets_everything_while_the_datapath_is_away() {
    let division = divide(&goal(&[2, 3]), Err("it is away"), Ok(()));
    assert_eq!(
        division.places[&selector(3)],
        (Place::Kernel, Some("it is away".to_owned()))
    );
    assert_eq!(division.kernel.sas.len(), 4);
    assert!(division.datapath.sas.is_empty());
    assert_eq!(done(&division, 2).len(), 2);
    assert!(
        done(&division, 2)
            .iter()
            .all(|done| matches!(done, Done::Protect(_)))
    );
}

#[test]
fn what_nobody_can_serve_is_blocked() {
    let mut goal = goal(&[2, 3, 4]);
    set_mode(&mut goal, 2, Mode::CulvertOnly);
    for direction in [Direction::In, Direction::Out] {
        let id = id(direction, 3);
        goal.wanted.sas.insert(id, sa(id, Cipher::Aes128Gcm16Iiv));
    }
    let with_vni = PolicySpec {
        selector: Selector {
            vnis: vec![VniRange { first: 7, last: 7 }],
            ..selector(4)
        },
        ..goal.wanted.policies.remove(&selector(4)).unwrap()
    };
    let vni = with_vni.selector.clone();
    goal.wanted.policies.insert(vni.clone(), with_vni);
    let division = divide(&goal, Err("it is away"), Ok(()));
    for (selector, words) in [
        (&selector(2), "culvert-only"),
        (&selector(3), "implicit"),
        (&vni, "VNI"),
    ] {
        let (place, why) = &division.places[selector];
        assert_eq!(*place, Place::Nobody);
        assert!(why.as_ref().unwrap().contains(words), "{why:?}");
    }
    for host in 2..=4 {
        assert_eq!(done(&division, host), [Done::Block; 2], "{host}");
    }
    // The datapath that comes back drops them, too, and does not leave them alone.
    assert_eq!(division.datapath.policies.len(), 3);
}

#[test]
fn without_ipsec_in_the_kernel_nothing_is_asked_of_it() {
    let mut goal = goal(&[2, 3]);
    set_mode(&mut goal, 3, Mode::KernelOnly);
    let division = divide(&goal, Ok(()), Err("no ESP"));
    assert_eq!(place_of(&division, 2), Place::Culvert);
    assert_eq!(
        division.places[&selector(3)],
        (Place::Nobody, Some("as its mode says; no ESP".to_owned()))
    );
    assert_eq!(division.kernel, KernelPart::default());
    let action = &division.datapath.policies[&selector(3)].action;
    assert!(matches!(action, Action::Protect { outbound: None, .. }));
}

#[test]
fn one_policy_may_be_the_kernels() {
    let mut goal = goal(&[2, 3]);
    set_mode(&mut goal, 3, Mode::KernelOnly);
    let division = divide(&goal, Ok(()), Ok(()));
    assert_eq!(place_of(&division, 2), Place::Culvert);
    assert_eq!(place_of(&division, 3), Place::Kernel);
    assert_eq!(division.kernel.sas.len(), 2);
    assert_eq!(division.datapath.sas.len(), 2);
    // The kernel need not know of the other one.
    assert!(done(&division, 2).is_empty());
}

#[test]
fn what_the_datapath_serves_passes_by_a_wider_policy_of_the_kernel() {
    let mut goal = goal(&[2, 3]);
    let wide = Selector {
        remote: "192.0.2.0/24".parse().unwrap(),
        ..selector(3)
    };
    let mut spec = goal.wanted.policies.remove(&selector(3)).unwrap();
    spec.selector = wide.clone();
    goal.wanted.policies.insert(wide.clone(), spec);
    let mode = Mode::KernelOnly;
    goal.hows.insert(wide, How { mode, trap: None });
    let division = divide(&goal, Ok(()), Ok(()));
    assert_eq!(place_of(&division, 2), Place::Culvert);
    assert_eq!(done(&division, 2), [Done::Allow; 2]);
}

#[test]
fn policies_that_share_an_sa_stay_together() {
    let mut goal = goal(&[2, 3]);
    let shared = goal.wanted.policies[&selector(2)].action.clone();
    let other = Selector {
        geneve: culvert_proto::policy::Geneve::Local,
        ..selector(2)
    };
    let spec = PolicySpec {
        selector: other.clone(),
        order: 9,
        action: shared,
    };
    goal.wanted.policies.insert(other.clone(), spec);
    set_mode(&mut goal, 2, Mode::KernelOnly);
    let division = divide(&goal, Ok(()), Ok(()));
    assert_eq!(division.places[&other].0, Place::Kernel);
    assert_eq!(place_of(&division, 3), Place::Culvert);
}

#[test]
fn an_sa_that_only_the_kernel_has_takes_its_policy_there() {
    let mut goal = goal(&[2]);
    let out = id(Direction::Out, 2);
    let spec = goal.wanted.sas.remove(&out).unwrap();
    let only = KernelOnly {
        sa: KernelSa::of(&spec, 7).unwrap(),
        state: spec.state,
        why: "AES_CBC is not served".to_owned(),
    };
    goal.kernel_only.insert(out, only);
    let division = divide(&goal, Ok(()), Ok(()));
    let (place, why) = &division.places[&selector(2)];
    assert_eq!(*place, Place::Kernel);
    assert!(why.as_ref().unwrap().contains("AES_CBC"));
    // Its inbound SA goes with it.
    assert_eq!(division.kernel.sas.len(), 2);
}

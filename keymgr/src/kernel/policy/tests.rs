use super::*;
use crate::charon::tests::policy as charons;
use culvert_bridge::Priority;
use culvert_proto::policy as proto;
use culvert_proto::sa::{self, SaId};
use netlink_packet_core::Emitable;

const SAS: Sas = Sas {
    reqid: 7,
    trap: false,
};

fn outbound() -> SaId {
    SaId {
        direction: sa::Direction::Out,
        spi: Spi::new(0x1001).unwrap(),
        destination: "192.0.2.2".parse().unwrap(),
    }
}

fn spec(geneve: Geneve, action: proto::Action) -> PolicySpec {
    PolicySpec {
        selector: proto::Selector {
            geneve,
            ..proto::Selector::hosts("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap())
        },
        order: 5,
        action,
    }
}

fn protect(outbound: Option<SaId>) -> proto::Action {
    proto::Action::Protect {
        outbound,
        inbound: Vec::new(),
    }
}

fn texts(policies: &[KernelPolicy]) -> Vec<String> {
    policies.iter().map(ToString::to_string).collect()
}

fn template(spi: Option<Spi>) -> Action {
    Action::Protect(Template {
        reqid: 7,
        spi,
        tunnel: None,
    })
}

#[test]
fn geneve_is_seen_from_both_sides() {
    let of = |geneve| {
        texts(&KernelPolicy::of(
            &spec(geneve, proto::Action::Bypass),
            None,
        ))
    };
    let remote = [
        "policy 192.0.2.1/32 to 192.0.2.2/32 port 6081 out protocol 17",
        "policy 192.0.2.2/32 port 6081 to 192.0.2.1/32 in protocol 17",
    ];
    let local = [
        "policy 192.0.2.1/32 port 6081 to 192.0.2.2/32 out protocol 17",
        "policy 192.0.2.2/32 to 192.0.2.1/32 port 6081 in protocol 17",
    ];
    assert_eq!(of(Geneve::Remote), remote);
    assert_eq!(of(Geneve::Local), local);
    assert_eq!(of(Geneve::Either), [remote, local].concat());
    assert_eq!(of(Geneve::Both).len(), 2);
    assert!(
        of(Geneve::Both)
            .iter()
            .all(|text| text.matches("6081").count() == 2)
    );
}

#[test]
fn without_an_sa_nothing_goes() {
    let actions = |action, sas: Option<&Sas>| {
        let policies = KernelPolicy::of(&spec(Geneve::Remote, action), sas);
        [policies[0].action, policies[1].action]
    };
    let spi = Some(outbound().spi);
    let trap = Sas { trap: true, ..SAS };
    assert_eq!(
        actions(protect(Some(outbound())), Some(&SAS)),
        [template(spi), template(None)]
    );
    assert_eq!(
        actions(protect(None), Some(&SAS)),
        [Action::Block, template(None)]
    );
    assert_eq!(
        actions(protect(None), Some(&trap)),
        [template(None), template(None)]
    );
    assert_eq!(actions(protect(None), None), [Action::Block; 2]);
    assert_eq!(actions(protect(Some(outbound())), None), [Action::Block; 2]);
    assert_eq!(
        actions(proto::Action::Discard, Some(&trap)),
        [Action::Block; 2]
    );
    assert_eq!(
        actions(proto::Action::Bypass, Some(&trap)),
        [Action::Allow; 2]
    );
}

#[test]
fn what_is_for_some_vnis_drops_all() {
    for action in [protect(Some(outbound())), proto::Action::Bypass] {
        let mut spec = spec(Geneve::Either, action);
        spec.selector.vnis = vec!["7".parse().unwrap()];
        let policies = KernelPolicy::of(&spec, Some(&SAS));
        assert!(policies.iter().all(|it| it.action == Action::Block));
    }
}

#[test]
fn of_those_with_one_name_the_first_in_order_counts() {
    let pass = KernelPolicy::of(&spec(Geneve::Either, proto::Action::Bypass), None);
    let mut first = spec(Geneve::Remote, proto::Action::Discard);
    first.order = 4;
    let block = KernelPolicy::of(&first, None);
    let merged = KernelPolicy::merge(pass.iter().chain(&block).copied());
    assert_eq!(merged.len(), 4);
    let blocked = merged.iter().filter(|it| it.action == Action::Block);
    assert_eq!(blocked.count(), 2);
    assert_eq!(
        KernelPolicy::merge(block.iter().chain(&pass).copied()),
        merged
    );
}

#[test]
fn priorities_keep_their_order_and_are_known_again() {
    assert_eq!(priority(0), 0x0c00_0000);
    assert!(priority(5) < priority(6));
    assert_eq!(priority(u32::MAX), 0x0cff_ffff);
    for order in [0, 1, u32::MAX] {
        assert!(is_ours(priority(order)));
    }
    for priority in [0, 399_999, 0x0bff_ffff, 0x0d00_0000, u32::MAX] {
        assert!(!is_ours(priority));
    }
}

#[test]
fn what_charon_has_is_taken_over() {
    let out = charons(Direction::Out, 0x1001);
    let policy = KernelPolicy::of_charon(&out).unwrap();
    assert_eq!(
        policy.to_string(),
        "policy 192.0.2.1/32 to 192.0.2.2/32 port 6081 out protocol 17"
    );
    let spi =
        |policy: &culvert_bridge::Policy| match KernelPolicy::of_charon(policy).unwrap().action {
            Action::Protect(template) => template.spi,
            other => panic!("{other:?}"),
        };
    assert_eq!(spi(&out), Some(outbound().spi));
    // Inbound SAs belong by reqid; a trap has no SA.
    assert_eq!(spi(&charons(Direction::In, 0x1001)), None);
    assert_eq!(spi(&charons(Direction::Out, 0)), None);
    let trap = KernelPolicy::of_charon(&charons(Direction::Out, 0)).unwrap();
    assert!(policy.priority < trap.priority);

    let tunnel = culvert_bridge::Policy {
        mode: 2,
        ..charons(Direction::Forward, 0)
    };
    let Action::Protect(template) = KernelPolicy::of_charon(&tunnel).unwrap().action else {
        panic!("it protects");
    };
    assert_eq!(template.tunnel, Some((tunnel.source, tunnel.destination)));
    let pass = culvert_bridge::Policy {
        kind: Kind::Bypass,
        priority: Priority::Pass,
        ..tunnel
    };
    let pass = KernelPolicy::of_charon(&pass).unwrap();
    assert_eq!((pass.way, pass.action), (Way::Forward, Action::Allow));
    assert!(pass.priority < policy.priority);
}

#[test]
fn ports_are_the_bits_that_they_have_in_common() {
    let of = |protocol, first_port, last_port| {
        side(&TrafficSelector {
            protocol,
            network: "192.0.2.9".parse().unwrap(),
            prefix: 24,
            first_port,
            last_port,
        })
        .map(|side| side.to_string())
    };
    assert_eq!(of(17, 0, u16::MAX).unwrap(), "192.0.2.0/24");
    assert_eq!(of(17, 6081, 6081).unwrap(), "192.0.2.0/24 port 6081");
    assert_eq!(of(6, 1024, 2047).unwrap(), "192.0.2.0/24 port 1024/0xfc00");
    assert_eq!(of(6, 1000, 1030).unwrap(), "192.0.2.0/24 port 0/0xf800");
    assert!(of(17, u16::MAX, 0).unwrap_err().contains("OPAQUE"));

    let mut ping = charons(Direction::Out, 0);
    ping.name.destination = TrafficSelector {
        protocol: 1,
        first_port: 0x0800,
        last_port: 0x0800,
        ..ping.name.destination
    };
    ping.name.source.protocol = 0;
    let ping = KernelPolicy::of_charon(&ping).unwrap();
    assert_eq!((ping.protocol, ping.source.port), (1, 8));
    assert_eq!((ping.source.mask, ping.destination.mask), (u16::MAX, 0));
}

#[test]
fn what_the_kernel_says_is_what_it_was_told() {
    let tunnel = culvert_bridge::Policy {
        mode: 2,
        ..charons(Direction::Out, 0x1001)
    };
    let mut policies =
        KernelPolicy::of(&spec(Geneve::Either, protect(Some(outbound()))), Some(&SAS));
    policies.extend(KernelPolicy::of(
        &spec(Geneve::Both, proto::Action::Discard),
        None,
    ));
    policies.extend(KernelPolicy::of(
        &spec(Geneve::Both, proto::Action::Bypass),
        None,
    ));
    policies.push(KernelPolicy::of_charon(&tunnel).unwrap());
    for policy in policies {
        let bytes = |policy: &KernelPolicy| {
            let request = policy.set_request();
            let mut bytes = vec![0; request.buffer_len()];
            request.emit(&mut bytes);
            bytes
        };
        assert_eq!(KernelPolicy::read(&bytes(&policy)).unwrap(), Some(policy));
        let foreign = KernelPolicy {
            priority: 399_999,
            ..policy
        };
        assert_eq!(KernelPolicy::read(&bytes(&foreign)).unwrap(), None);
    }
}

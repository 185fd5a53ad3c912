use super::*;
use crate::charon::tests::policy;

#[test]
fn selectors_say_which_side_has_the_port() {
    let with = |here: (u16, u16), there: (u16, u16), protocol: u8| {
        let mut policy = policy(Way::In, 0);
        let PolicyName {
            source: remote,
            destination: local,
            ..
        } = &mut policy.name;
        (local.first_port, local.last_port, local.protocol) = (here.0, here.1, protocol);
        (remote.first_port, remote.last_port, remote.protocol) = (there.0, there.1, protocol);
        selector(&policy)
    };
    const ANY: (u16, u16) = (0, u16::MAX);
    const GENEVE: (u16, u16) = (6081, 6081);
    let geneve = |here, there| with(here, there, 17).unwrap().geneve;
    assert_eq!(geneve(ANY, ANY), Geneve::Either);
    assert_eq!(geneve(GENEVE, ANY), Geneve::Local);
    assert_eq!(geneve(ANY, GENEVE), Geneve::Remote);
    assert_eq!(geneve(GENEVE, GENEVE), Geneve::Both);
    // A range of source ports is less than Geneve has: it must not be taken for any.
    assert_eq!(geneve(GENEVE, (1024, u16::MAX)), Geneve::Both);
    assert_eq!(with(ANY, ANY, 0).unwrap().geneve, Geneve::Either);
    for (here, there, protocol) in [
        (ANY, (80, 80), 17),
        ((5000, 6080), GENEVE, 17),
        (ANY, ANY, 6),
        // OPAQUE.
        ((u16::MAX, 0), ANY, 17),
    ] {
        assert!(with(here, there, protocol).is_err());
    }
}

#[test]
fn what_cannot_be_served_is_refused() {
    let mut tunnel = policy(Way::Out, 0);
    tunnel.mode = 2;
    assert!(selector(&tunnel).unwrap_err().0.contains("transport"));
    let mut marked = policy(Way::Out, 0);
    marked.restriction = Some("mark 0x1/0x1".to_owned());
    assert!(selector(&marked).unwrap_err().0.contains("mark"));
    let mut mixed = policy(Way::Out, 0);
    mixed.name.source.network = "2001:db8::1".parse().unwrap();
    assert!(selector(&mixed).is_err());
}

#[test]
fn bits_behind_the_prefix_do_not_make_another_policy() {
    let mut net = policy(Way::Out, 0);
    net.name.destination.prefix = 24;
    assert_eq!(selector(&net).unwrap().remote.to_string(), "192.0.2.0/24");
}

#[test]
fn priorities_are_those_of_kernel_netlink() {
    let trap = policy(Way::Out, 0);
    let host = policy(Way::Out, 0x1001);
    assert_eq!(order(&trap), order(&host) + 1);
    let mut wide = host.clone();
    wide.name.destination.prefix = 0;
    assert!(order(&wide) > order(&trap));
    let mut pass = wide.clone();
    pass.priority = Priority::Pass;
    assert!(order(&pass) < order(&host));
    pass.manual_priority = 5;
    assert_eq!(order(&pass), 5);
    assert!(
        automatic_order(&pass) > 5,
        "among those of the same priority by hand"
    );
}

#[test]
fn the_stricter_kind_counts_where_directions_differ() {
    let mut bypass = policy(Way::Out, 0);
    bypass.kind = Kind::Bypass;
    let protect = policy(Way::In, 0);
    let selector = selector(&bypass).unwrap();
    let compose = |policies: &[&Policy]| {
        let policies = policies.iter().map(|policy| (&selector, *policy));
        compose(policies, &BTreeMap::new()).remove(0).spec.action
    };
    assert_eq!(compose(&[&bypass]), Action::Bypass);
    assert_eq!(compose(&[&bypass, &protect]).name(), "protect");
    let mut discard = policy(Way::In, 0);
    discard.kind = Kind::Discard;
    assert_eq!(compose(&[&bypass, &discard]), Action::Discard);
}

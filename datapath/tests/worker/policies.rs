//! What the SPD says of packets, both ways.

use super::common::*;
use culvert_datapath::worker::Handle;
use culvert_packet::reason::DropReason;
use culvert_proto::message::Update;
use culvert_proto::policy::{Geneve, VniRange};
use culvert_proto::sa::{Action, Direction, PolicySpec, SaId, Spi};

/// The policies of `kind`, with `action` put before them for the VNIs from `first` to `last`.
pub(crate) fn with_first(
    kind: Kind,
    mirrored: bool,
    action: Action,
    first: u32,
    last: u32,
) -> Update {
    let mut update = update(kind, mirrored);
    let mut selector = update.add_policies[0].selector.clone();
    selector.vnis = vec![VniRange { first, last }];
    update.add_policies[0].order = 1;
    update.add_policies.push(PolicySpec {
        selector,
        order: 0,
        action,
    });
    update
}

/// As OVS has it: a policy for each way, in place of one for both.
pub(crate) fn paired(mut update: Update) -> Update {
    let only = update.add_policies.remove(0);
    let [mut to, mut from] = [only.clone(), only];
    to.selector.geneve = Geneve::Remote;
    from.selector.geneve = Geneve::Local;
    if let Action::Protect { inbound, .. } = &mut to.action {
        inbound.clear();
    }
    if let Action::Protect { outbound, .. } = &mut from.action {
        *outbound = None;
    }
    update.add_policies = vec![to, from];
    update
}

fn dropped(handle: &Handle, reason: DropReason) -> u64 {
    handle.counters().dropped(reason)
}

#[test]
fn some_networks_go_in_clear_and_some_not_at_all() {
    // RFC 4303 §3.3.1 [3.3.1-lookup]
    let kind = Kind::default();
    let clear = geneve(kind, 100, 0);
    let mut other = clear.clone();
    other[48] = 78;
    for (action, reason) in [
        (Action::Bypass, None),
        (Action::Discard, Some(DropReason::PolicyDiscard)),
    ] {
        let (mut a, at_a) = worker_with(with_first(kind, false, action.clone(), 77, 77));
        let (mut b, at_b) = worker_with(with_first(kind, true, action, 70, 77));
        let out = turn(&mut a, true, &clear).wire;
        let came = turn(&mut b, false, &clear).host;
        match reason {
            None => assert_eq!(
                (&out[..], &came[..]),
                (&[clear.clone()][..], &[clear.clone()][..])
            ),
            Some(reason) => {
                assert!(out.is_empty() && came.is_empty());
                assert_eq!((dropped(&at_a, reason), dropped(&at_b, reason)), (1, 1));
            }
        }
        // The others are protected, also against coming in clear.
        let sealed = through_outbound(&mut a, &other).unwrap();
        assert_ne!(sealed, other);
        assert_eq!(through_inbound(&mut b, &sealed), Some(other.clone()));
        assert_eq!(through_inbound(&mut b, &other), None);
        assert_eq!(dropped(&at_b, DropReason::PlaintextFromPeer), 1);
    }
}

#[test]
fn what_is_sealed_under_another_policys_sa_is_dropped() {
    // b has two policies for a: VNI 77 has no SA of its own, all else has the usual one.
    let kind = Kind::default();
    let nobody = Action::Protect {
        outbound: None,
        inbound: Vec::new(),
    };
    let (mut a, _) = worker(kind, false);
    let (mut b, at_b) = worker_with(with_first(kind, true, nobody, 77, 77));
    let mut clear = geneve(kind, 100, 0);
    let sealed = through_outbound(&mut a, &clear).unwrap();
    assert_eq!(through_inbound(&mut b, &sealed), None);
    assert_eq!(dropped(&at_b, DropReason::PolicyMismatch), 1);
    clear[48] = 78;
    let sealed = through_outbound(&mut a, &clear).unwrap();
    assert_eq!(through_inbound(&mut b, &sealed), Some(clear));
    // It authenticated, though, and is counted so: nothing is missing.
    assert_eq!(dropped(&at_b, DropReason::AuthenticationFailed), 0);
}

#[test]
fn ovs_has_a_policy_for_each_way_and_an_sa_for_each_policy() {
    let kind = Kind::default();
    let (mut a, _) = worker_with(paired(update(kind, false)));
    let (mut b, _) = worker_with(paired(update(kind, true)));
    let clear = geneve(kind, 100, 0);
    let sealed = through_outbound(&mut a, &clear).unwrap();
    assert_eq!(through_inbound(&mut b, &sealed), Some(clear));
}

#[test]
fn a_policy_for_many_hosts_does_not_send_to_one_under_anothers_sa() {
    // RFC 4303 §3.3.1 [3.3.1-lookup]
    let kind = Kind::default();
    let mut wide = update(kind, false);
    wide.add_policies[0].selector.remote = "192.0.2.0/24".parse().unwrap();
    let (mut a, at_a) = worker_with(wide);
    let clear = geneve(kind, 100, 0);
    assert!(through_outbound(&mut a, &clear).is_some());
    let mut elsewhere = clear;
    elsewhere[33] = 9;
    assert_eq!(through_outbound(&mut a, &elsewhere), None);
    assert_eq!(dropped(&at_a, DropReason::NoSa), 1);
}

#[test]
fn what_comes_under_an_sa_comes_from_its_peer() {
    // The source address is not authenticated: a policy for many hosts must not let one speak for another.
    let kind = Kind::default();
    let mut wide = update(kind, true);
    wide.add_policies[0].selector.remote = "192.0.2.0/24".parse().unwrap();
    let (mut a, _) = worker(kind, false);
    let (mut b, at_b) = worker_with(wide);
    let clear = geneve(kind, 100, 0);
    let mut sealed = through_outbound(&mut a, &clear).unwrap();
    let good = through_outbound(&mut a, &clear).unwrap();
    sealed[29] = 9;
    assert_eq!(through_inbound(&mut b, &sealed), None);
    assert_eq!(dropped(&at_b, DropReason::PolicyMismatch), 1);
    assert!(through_inbound(&mut b, &good).is_some());
}

#[test]
fn a_policy_cannot_name_an_sa_that_is_not_between_its_ends() {
    let kind = Kind::default();
    let database = culvert_datapath::tables::Database::default();
    for (outbound, remote) in [(0x1001, "192.0.2.7/32"), (0x1002, "192.0.2.2/32")] {
        let mut update = update(kind, false);
        update.add_policies[0].selector.remote = remote.parse().unwrap();
        update.add_policies[0].action = Action::Protect {
            outbound: Some(SaId {
                direction: Direction::Out,
                spi: Spi::new(outbound).unwrap(),
                destination: B4.parse().unwrap(),
            }),
            inbound: Vec::new(),
        };
        let refused = database.updated(update, heap_words).unwrap_err();
        assert!(refused.to_string().contains("refused"), "{refused}");
    }
}

use super::*;
use culvert_proto::sa::{Cipher, Keymat, Lifetime, SaId, Spi, StateRef, UdpEncapsulation};

const AT: u64 = 1_000_000;

fn watched(direction: Direction, esn: bool, lifetime: Lifetime) -> Arc<WatchList> {
    let words = match direction {
        Direction::In => inbound::words(64),
        Direction::Out => outbound::WORDS,
    };
    let spec = SaSpec {
        id: SaId {
            direction,
            spi: Spi::new(0x1001).unwrap(),
            destination: [192, 0, 2, 2].into(),
        },
        source: [192, 0, 2, 1].into(),
        cipher: Cipher::Aes128Gcm16,
        keymat: Keymat::new(vec![0; 20]),
        esn,
        replay_window: 64,
        encapsulation: Some(UdpEncapsulation {
            source_port: 4500,
            destination_port: 4500,
            keepalive: 0,
        }),
        tfc: 0,
        lifetime,
        state: StateRef {
            offset: 0,
            words: 0,
        },
    };
    let state = Words::on_heap(words);
    state[both::ADDED].store(AT, Ordering::Relaxed);
    let spec = Arc::new(spec);
    Arc::new(WatchList {
        sas: vec![Watched { spec, state }],
        lacking: Vec::new(),
    })
}

fn set(list: &Arc<WatchList>, at: usize, value: u64) {
    list.sas[0].state[at].store(value, Ordering::Relaxed);
}

/// What is told at the next look.
fn told(
    monitor: &mut Monitor,
    list: &Arc<WatchList>,
    now: u64,
    journal: &Journal,
) -> Vec<(bool, Limit)> {
    let before = journal.after(u64::MAX, Duration::ZERO).last;
    monitor.look(list, now, journal);
    let events = journal.after(before, Duration::ZERO).list;
    events
        .into_iter()
        .filter_map(|event| match event {
            Event::Expired { hard, limit, .. } => Some((hard, limit)),
            Event::Moved { .. } | Event::Wanted { .. } | Event::Leaving => None,
        })
        .collect()
}

#[test]
fn each_limit_is_told_of_once_soft_and_hard() {
    let limits = |limit: Limit, value: u64| {
        let mut limits = Limits::NONE;
        match limit {
            Limit::Bytes => limits.bytes = Some(value),
            Limit::Packets => limits.packets = Some(value),
            Limit::Seconds => limits.seconds = Some(value),
            Limit::SecondsInUse => limits.seconds_in_use = Some(value),
            Limit::Sequence | Limit::Kernel => {}
        }
        limits
    };
    for limit in [
        Limit::Bytes,
        Limit::Packets,
        Limit::Seconds,
        Limit::SecondsInUse,
    ] {
        let lifetime = Lifetime {
            soft: limits(limit, 10),
            hard: limits(limit, 20),
        };
        let list = watched(Direction::In, true, lifetime);
        let (mut monitor, journal) = (Monitor::default(), Journal::default());
        set(&list, both::FIRST_USE, AT + 500);
        let mut use_up = |amount: u64| {
            set(&list, both::BYTES, amount);
            set(&list, both::PACKETS, amount);
            // As if the first packet had come at once.
            let now = AT + 500 + amount * 1000;
            told(&mut monitor, &list, now, &journal)
        };
        assert_eq!(use_up(9), []);
        assert_eq!(use_up(10), [(false, limit)]);
        assert_eq!(use_up(11), []);
        assert_eq!(use_up(20), [(true, limit)]);
        assert_eq!(use_up(21), []);
        assert_eq!(read(&list.sas[0].state, both::STATE), both::EXPIRED);
    }
}

#[test]
fn an_sa_that_was_never_used_has_no_time_in_use() {
    let mut lifetime = Lifetime::default();
    lifetime.hard.seconds_in_use = Some(1);
    let list = watched(Direction::In, true, lifetime);
    let (mut monitor, journal) = (Monitor::default(), Journal::default());
    assert_eq!(told(&mut monitor, &list, AT * 2, &journal), []);
}

#[test]
fn numbers_without_esn_ask_for_a_rekey_long_before_their_end() {
    // RFC 4303 §3.3.3 [3.3.3-in-anticipation]
    let list = watched(Direction::Out, false, Lifetime::default());
    let (mut monitor, journal) = (Monitor::default(), Journal::default());
    let mut at = |leased: u64| {
        set(&list, outbound::LEASED, leased);
        told(&mut monitor, &list, AT, &journal)
    };
    assert_eq!(at(3 << 29), []);
    assert_eq!(at(3 << 30), [(false, Limit::Sequence)]);
    assert_eq!(at(u64::from(u32::MAX)), [(true, Limit::Sequence)]);
}

#[test]
fn what_is_fenced_does_not_expire() {
    let mut lifetime = Lifetime::default();
    lifetime.hard.packets = Some(5);
    for direction in [Direction::In, Direction::Out] {
        let list = watched(direction, false, lifetime);
        let state = &list.sas[0].state;
        let (mut monitor, journal) = (Monitor::default(), Journal::default());
        match direction {
            Direction::In => drop(handover::fence_inbound(state, 64)),
            Direction::Out => assert_eq!(handover::fence_outbound(state), 0),
        }
        set(&list, both::PACKETS, 7);
        assert_eq!(told(&mut monitor, &list, AT, &journal), []);
        assert_eq!(read(state, both::STATE), both::ALIVE);
        match direction {
            Direction::In => handover::release_inbound(state, 64, &handover::Window::up_to(9)),
            Direction::Out => handover::release_outbound(state, 9),
        }
        assert_eq!(
            told(&mut monitor, &list, AT, &journal),
            [(true, Limit::Packets)]
        );
    }
}

#[test]
fn a_datapath_that_starts_tells_again_what_stands() {
    let mut lifetime = Lifetime::default();
    lifetime.soft.packets = Some(5);
    let list = watched(Direction::In, true, lifetime);
    set(&list, both::PACKETS, 7);
    for _ in 0..2 {
        let (mut monitor, journal) = (Monitor::default(), Journal::default());
        assert_eq!(
            told(&mut monitor, &list, AT, &journal),
            [(false, Limit::Packets)]
        );
    }
}

#[test]
fn a_peer_that_moved_is_told_of_with_its_address() {
    let list = watched(Direction::In, true, Lifetime::default());
    let (mut monitor, journal) = (Monitor::default(), Journal::default());
    set(&list, inbound::ADDRESS, 0);
    set(&list, inbound::ADDRESS + 1, 0xffff_c000_0209);
    set(&list, inbound::PORT, 1234);
    monitor.look(&list, AT, &journal);
    monitor.look(&list, AT, &journal);
    let events = journal.after(0, Duration::ZERO).list;
    assert_eq!(
        events,
        [Event::Moved {
            sa: list.sas[0].spec.id,
            address: [192, 0, 2, 9].into(),
            port: 1234,
        }]
    );
}

#[test]
fn whoever_asks_gets_what_is_new_or_waits() {
    let journal = Journal::default();
    let event = |port| Event::Moved {
        sa: watched(Direction::In, true, Lifetime::default()).sas[0]
            .spec
            .id,
        address: [192, 0, 2, 9].into(),
        port,
    };
    assert_eq!(journal.after(0, Duration::ZERO), Events::default());
    journal.add(event(1));
    journal.add(event(2));
    let all = journal.after(0, Duration::ZERO);
    assert_eq!((all.last, all.list.len()), (2, 2));
    assert_eq!(journal.after(1, Duration::ZERO).list, [event(2)]);
    // Of another datapath, that had more to tell.
    assert_eq!(journal.after(99, Duration::ZERO).list.len(), 2);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| journal.after(2, Duration::from_secs(20)));
        journal.add(event(3));
        assert_eq!(waiting.join().unwrap().list, [event(3)]);
    });
    for port in 0..=REMEMBERED {
        journal.add(event(u16::try_from(port % 60_000).unwrap()));
    }
    let rest = journal.after(3, Duration::ZERO);
    assert_eq!((rest.lost, rest.list.len()), (1, REMEMBERED));
}

#[test]
fn a_policy_without_an_sa_is_wanted_when_packets_come_and_again_later() {
    let selector = Selector::hosts([192, 0, 2, 1].into(), [192, 0, 2, 2].into());
    let blocked = Arc::new(AtomicU64::new(5));
    let list = |blocked: &Arc<AtomicU64>| {
        Arc::new(WatchList {
            sas: Vec::new(),
            lacking: vec![Lacking {
                selector: selector.clone(),
                blocked: Arc::clone(blocked),
                before: blocked.load(Ordering::Relaxed),
            }],
        })
    };
    let (mut monitor, journal) = (Monitor::default(), Journal::default());
    let mut events = |list: &Arc<WatchList>, now: u64| {
        let before = journal.after(u64::MAX, Duration::ZERO).last;
        monitor.look(list, now, &journal);
        journal.after(before, Duration::ZERO).list.len()
    };
    let first = list(&blocked);
    assert_eq!(events(&first, AT), 0, "they came before");
    blocked.fetch_add(1, Ordering::Relaxed);
    assert_eq!(events(&first, AT), 1);
    blocked.fetch_add(1, Ordering::Relaxed);
    assert_eq!(events(&first, AT + 999), 0);
    assert_eq!(events(&first, AT + 1000), 1);
    assert_eq!(events(&first, AT + 5000), 0, "nobody asks any more");
    // Another list, while it lacks an SA still, forgets nothing.
    blocked.fetch_add(1, Ordering::Relaxed);
    let second = list(&blocked);
    assert_eq!(events(&second, AT + 6000), 1);
    // It had an SA, and has none again.
    assert_eq!(events(&Arc::default(), AT + 6050), 0);
    assert_eq!(events(&list(&blocked), AT + 6100), 0);
}

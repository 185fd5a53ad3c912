//! The key manager's way to kernel IPsec and back: SAs at any number, taken away exactly, and what the kernel says of
//! them meanwhile. Two namespaces, with the kernel's IPsec on both sides and a packet socket as judge of the wire.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use culvert_bridge::{Lifetimes, Sa, SaName, Secret};
use culvert_keymgr::kernel::{
    Acquire, Action, Kernel, KernelEvent, KernelPolicy, KernelSa, Listener, Numbers, Progress, Sas,
    Window,
};
use culvert_proto::policy::{self, Geneve, PolicySpec, Selector};
use culvert_proto::sa::{Cipher, Direction, Keymat, Lifetime, Limits, SaId, SaSpec, Spi, StateRef};
use culvert_tests::netns::{Home, Namespace, wait_for};

use crate::wires::{A, B, Pair, REQID, Wire, inbound_of, number, received, replay};

const SPI: u32 = 0xc000_1001;

/// An SA from a to b.
fn sa(cipher: Cipher, esn: bool) -> Result<KernelSa> {
    let spec = SaSpec {
        id: SaId {
            direction: Direction::Out,
            spi: Spi::new(SPI)?,
            destination: B.parse()?,
        },
        source: A.parse()?,
        cipher,
        keymat: Keymat::new((1..).take(cipher.keymat_length()).collect()),
        esn,
        replay_window: 64,
        encapsulation: None,
        tfc: 0,
        lifetime: Lifetime::default(),
        state: StateRef {
            offset: 0,
            words: 0,
        },
    };
    KernelSa::of(&spec, REQID).map_err(|text| anyhow!(text))
}

/// An SA that is somewhere in its life.
fn at(numbers: Numbers) -> Progress {
    Progress {
        numbers,
        packets: 1000,
        bytes: 500_000,
        added: 100,
        first_use: Some(50),
    }
}

/// A window of 64 packets, of which all came but those that are so far behind the highest.
fn window(highest: u64, missing: &[u32]) -> Window {
    let bits = missing
        .iter()
        .fold(u64::MAX, |bits, back| bits & !(1 << back));
    Window {
        highest,
        received: vec![bits],
        size: 64,
    }
}

/// Every algorithm, in every setting that an SA can have, is taken by the kernel and shown again as it was.
pub(crate) fn the_kernel_takes_every_algorithm() -> Result<()> {
    let home = Home::new(false)?;
    let namespace = Namespace::new(home.name("-k"))?;
    let mut kernel = namespace.within(|| Ok(Kernel::open()?))?;
    for ipv6 in [false, true] {
        kernel.probe(ipv6).map_err(|text| anyhow!(text))?;
    }
    let mut sas = Vec::new();
    for cipher in Cipher::ALL {
        for esn in [false, true] {
            if cipher.iv_length() == 0 {
                ensure!(sa(cipher, esn).is_err(), "{cipher}");
            } else {
                sas.push(sa(cipher, esn)?);
            }
        }
    }
    // IKEv2 transforms with the bytes of their keys, as charon has them.
    for (encryption, key, integrity, integrity_key) in [
        (12, 16, 2, 20),
        (12, 32, 12, 32),
        (13, 20, 12, 32),
        (3, 24, 13, 48),
        (23, 16, 14, 64),
        (11, 0, 12, 32),
        (12, 24, 5, 16),
        (12, 16, 8, 16),
        (14, 19, 0, 0),
        (15, 27, 0, 0),
        (16, 35, 0, 0),
        (18, 20, 0, 0),
        (21, 36, 0, 0),
        (28, 36, 0, 0),
    ] {
        let secret = |length| Secret::new((1..).take(length).collect());
        for mode in [1, 2] {
            let sa = Sa {
                name: SaName {
                    spi: SPI,
                    destination: "2001:db8::2".parse()?,
                },
                protocol: 50,
                inbound: false,
                source: "[2001:db8::1]:4500".parse()?,
                destination_port: 4501,
                reqid: REQID,
                mode,
                encryption,
                key: secret(key),
                integrity,
                integrity_key: secret(integrity_key),
                esn: mode == 2,
                replay_window: 32,
                tfc: 1000,
                encapsulated: mode == 2,
                ipcomp: 0,
                lifetimes: Lifetimes::default(),
                restriction: None,
            };
            sas.push(KernelSa::of_charon(&sa).map_err(|text| anyhow!(text))?);
        }
    }
    for sa in sas {
        let what = format!("{:?}", sa.algorithm);
        let last = if sa.esn { 1 << 33 } else { 1 << 31 };
        goes_there_and_back(&mut kernel, &sa, Numbers::Sent(last)).context(what.clone())?;
        let window = Numbers::Received(window(last, &[1, 5, 63]));
        goes_there_and_back(&mut kernel, &inbound_of(&sa), window).context(what)?;
    }
    Ok(())
}

fn goes_there_and_back(kernel: &mut Kernel, sa: &KernelSa, numbers: Numbers) -> Result<()> {
    let progress = at(numbers);
    kernel.add_sa(sa, &progress)?;
    let again = kernel.add_sa(sa, &progress).err().context("twice")?;
    ensure!(again.kind() == std::io::ErrorKind::AlreadyExists, "{again}");
    let read = kernel.read_sa(&sa.id)?.context("it is not there")?;
    let found = kernel.sas()?;
    ensure!(
        found.len() == 1
            && found[0].id(sa.id.direction) == sa.id
            && found[0].fingerprint == Some(sa.fingerprint())
            && found[0].algorithm == sa.algorithm
            && (found[0].reqid, found[0].tunnel, found[0].esn()) == (REQID, sa.tunnel, sa.esn),
        "{found:?}"
    );
    let taken = kernel
        .take_sa(&sa.id)?
        .context("it is not there any more")?;
    ensure!(taken.exact && !taken.exhausted, "{taken:?}");
    for seen in [read, taken.progress] {
        ensure!(
            seen.numbers == progress.numbers
                && (seen.packets, seen.bytes) == (progress.packets, progress.bytes)
                && (100..200).contains(&seen.added)
                && seen.first_use.is_some_and(|ago| (50..150).contains(&ago)),
            "{seen:?} of {progress:?}"
        );
    }
    ensure!(kernel.take_sa(&sa.id)?.is_none() && kernel.read_sa(&sa.id)?.is_none());
    Ok(())
}

/// Under a flood of packets, no number is used twice and none is left out, however often the SA is taken and given back,
/// also over 2^32.
pub(crate) fn an_outbound_sa_is_taken_exactly() -> Result<()> {
    let mut pair = Pair::new()?;
    let wire = Wire::open(&pair.namespaces[1])?;
    let sa = sa(Cipher::Aes128Gcm16, true)?;
    // Packets that come while there is no SA leave larvae, but only if somebody might bring an SA.
    let _listener = pair.namespaces[0].within(|| Ok(Listener::open()?))?;
    pair.protect(&sa)?;
    let [from, _to] = pair.sockets()?;
    let start = (1_u64 << 32) - 50;
    let (mut last, mut frames) = (start, Vec::new());
    let mut progress = at(Numbers::Sent(start));
    let kernel = &mut pair.kernels[0];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // It fails while there is no SA.
                let _ = from.send(&[0; 100]);
            }
        });
        let mut take = || {
            kernel.add_sa(&sa, &progress)?;
            let enough =
                |numbers: &Numbers| matches!(numbers, Numbers::Sent(number) if *number > last + 50);
            wait_for("packets under the SA", Duration::from_secs(20), || {
                let read = kernel.read_sa(&sa.id);
                matches!(read, Ok(Some(read)) if enough(&read.numbers))
            })?;
            let taken = kernel.take_sa(&sa.id)?.context("the SA is gone")?;
            ensure!(taken.exact && !taken.exhausted, "{taken:?}");
            let Numbers::Sent(number) = taken.progress.numbers else {
                bail!("{taken:?}");
            };
            ensure!(
                taken.progress.packets == 1000 + (number - start),
                "{taken:?}"
            );
            last = number;
            progress = taken.progress;
            frames.extend(wire.esp()?);
            sleep(Duration::from_millis(20));
            Ok(())
        };
        let result = (0..10).try_for_each(|_| take());
        // The judge of that: `take` has had to do with larvae.
        let larvae = pair.namespaces[0].ip("xfrm state");
        stop.store(true, Ordering::Relaxed);
        ensure!(
            larvae?.contains(&sa.id.spi.to_string()),
            "there are no larvae"
        );
        result
    })?;
    sleep(Duration::from_millis(200));
    frames.extend(wire.esp()?);
    // Their low halves go on from 0 behind 2^32.
    let mut numbers: Vec<u64> = frames
        .iter()
        .map(|frame| u64::from(number(frame).wrapping_add(50)))
        .collect();
    numbers.sort_unstable();
    let expected: Vec<u64> = (1..=last - start).collect();
    ensure!(
        numbers == expected,
        "{} on the wire, {} by the kernel; the last on the wire is {:?}",
        numbers.len(),
        expected.len(),
        numbers.last()
    );
    ensure!(last > 1 << 32, "it got only to {last:#x}");
    at_the_end_nothing_goes(&mut pair, &from, &wire)
}

/// Without ESN the last number is 2^32 - 1.
fn at_the_end_nothing_goes(pair: &mut Pair, from: &UdpSocket, wire: &Wire) -> Result<()> {
    let sa = sa(Cipher::Aes128Gcm16, false)?;
    let end = u64::from(u32::MAX);
    pair.kernels[0].add_sa(&sa, &at(Numbers::Sent(end - 3)))?;
    for _ in 0..10 {
        let _ = from.send(&[0; 100]);
    }
    sleep(Duration::from_millis(100));
    let numbers: Vec<u64> = wire
        .esp()?
        .iter()
        .map(|frame| number(frame).into())
        .collect();
    ensure!(numbers == [end - 2, end - 1, end], "{numbers:?}");
    let taken = pair.kernels[0].take_sa(&sa.id)?.context("the SA is gone")?;
    ensure!(
        taken.exact && taken.exhausted && taken.progress.numbers == Numbers::Sent(end),
        "{taken:?}"
    );
    Ok(())
}

/// What b has received is not received again, whoever had the window meanwhile; and what was not, is.
pub(crate) fn a_window_survives_the_kernel() -> Result<()> {
    let mut pair = Pair::new()?;
    let wire = Wire::open(&pair.namespaces[1])?;
    let sa = sa(Cipher::Aes128Gcm16, true)?;
    let inbound = inbound_of(&sa);
    let full = |highest| at(Numbers::Received(window(highest, &[])));
    pair.install(&sa, &at(Numbers::Sent(100)), &full(100))?;
    pair.protect(&sa)?;
    let [from, to] = pair.sockets()?;
    let send = |count: usize| (0..count).try_for_each(|_| from.send(&[0; 100]).map(drop));
    send(40)?;
    ensure!(received(&to) == 40, "they do not arrive");
    let frames = wire.esp()?;
    ensure!(frames.len() == 40 && number(&frames[0]) == 101);
    let with = |which: &[u32]| -> Vec<&Vec<u8>> {
        let of = |wanted: &u32| frames.iter().find(|frame| number(frame) == *wanted);
        which.iter().filter_map(of).collect()
    };
    let take = |pair: &mut Pair| {
        let taken = pair.kernels[1]
            .take_sa(&inbound.id)?
            .context("it is gone")?;
        ensure!(taken.exact, "{taken:?}");
        Ok(taken.progress)
    };

    let progress = take(&mut pair)?;
    ensure!(
        progress.numbers == Numbers::Received(window(140, &[])),
        "{progress:?}"
    );
    ensure!(progress.packets == 1040, "{progress:?}");
    pair.kernels[1].add_sa(&inbound, &progress)?;
    replay(&pair.namespaces[0], &frames.iter().collect::<Vec<_>>())?;
    ensure!(received(&to) == 0, "a replayed packet arrives");
    let refused = |pair: &Pair| pair.errors(1, "XfrmInStateSeqError");
    ensure!(refused(&pair)? == 40);

    take(&mut pair)?;
    let with_gaps = at(Numbers::Received(window(140, &[10, 39])));
    pair.kernels[1].add_sa(&inbound, &with_gaps)?;
    replay(&pair.namespaces[0], &with(&[130, 101, 102, 130, 101]))?;
    ensure!(received(&to) == 2, "what was missing is to arrive once");
    ensure!(refused(&pair)? == 43);
    send(1)?;
    ensure!(received(&to) == 1, "it does not go on");
    let progress = take(&mut pair)?;
    ensure!(
        progress.numbers == Numbers::Received(window(141, &[])),
        "{progress:?}"
    );

    // Both over 2^32.
    pair.kernels[0].take_sa(&sa.id)?;
    let near = (1_u64 << 32) - 6;
    pair.install(&sa, &at(Numbers::Sent(near)), &full(near))?;
    send(12)?;
    ensure!(received(&to) == 12, "they do not go over 2^32");
    let progress = take(&mut pair)?;
    let over = near + 12;
    ensure!(
        progress.numbers == Numbers::Received(window(over, &[])),
        "{progress:?}"
    );
    let sent = pair.kernels[0].take_sa(&sa.id)?.context("it is gone")?;
    ensure!(sent.progress.numbers == Numbers::Sent(over), "{sent:?}");
    Ok(())
}

/// Lifetimes and wants are heard of; policies are known again, and others' left alone.
pub(crate) fn the_kernel_is_heard() -> Result<()> {
    let mut pair = Pair::new()?;
    let mut listener = pair.namespaces[0].within(|| Ok(Listener::open()?))?;
    let mut sa = sa(Cipher::Aes128Gcm16, false)?;
    let packets = |packets| Limits {
        packets: Some(packets),
        ..Limits::NONE
    };
    // Absolute: some went before.
    sa.lifetime = Lifetime {
        soft: packets(1003),
        hard: packets(1005),
    };
    pair.kernels[0].add_sa(&sa, &at(Numbers::Sent(1000)))?;
    pair.protect(&sa)?;
    let [from, _to] = pair.sockets()?;
    for _ in 0..8 {
        let _ = from.send(&[0; 100]);
    }
    for hard in [false, true] {
        let expired = KernelEvent::Expired {
            spi: sa.id.spi,
            destination: sa.id.destination,
            hard,
        };
        hears(&mut listener, &expired)?;
    }
    ensure!(pair.kernels[0].take_sa(&sa.id)?.is_none(), "it has expired");

    let spec = |order, action| {
        Ok::<_, anyhow::Error>(PolicySpec {
            selector: Selector {
                geneve: Geneve::Remote,
                ..Selector::hosts(A.parse()?, B.parse()?)
            },
            order,
            action,
        })
    };
    let protect = policy::Action::Protect {
        outbound: None,
        inbound: Vec::new(),
    };
    let trap = Sas {
        reqid: 9,
        trap: true,
    };
    let mut policies = KernelPolicy::of(&spec(70_000_000, protect)?, Some(&trap));
    let [a, _] = &mut pair.kernels;
    for policy in &policies {
        a.set_policy(policy)?;
    }
    let _ = from.send(&[0; 100]);
    let acquire = KernelEvent::Acquire(Acquire {
        reqid: 9,
        local: A.parse()?,
        remote: B.parse()?,
    });
    hears(&mut listener, &acquire)?;

    let foreign = format!("src {A} dst {B} proto tcp dport 6081 dir out");
    pair.namespaces[0].ip(&format!("xfrm policy add {foreign} priority 5"))?;
    let mut found = a.policies()?;
    found.sort_unstable();
    policies.sort_unstable();
    ensure!(found == policies, "{found:?}");
    let block = KernelPolicy::of(&spec(0, policy::Action::Discard)?, None);
    for policy in &block {
        a.set_policy(policy)?;
    }
    let found = a.policies()?;
    ensure!(
        found.len() == 2 && found.iter().all(|it| it.action == Action::Block),
        "they are not replaced: {found:?}"
    );
    for policy in &block {
        ensure!(a.delete_policy(policy)? && !a.delete_policy(policy)?);
    }
    ensure!(a.policies()?.is_empty());
    pair.namespaces[0].ip(&format!("xfrm policy delete {foreign}"))?;
    Ok(())
}

fn hears(listener: &mut Listener, what: &KernelEvent) -> Result<()> {
    let mut heard = Vec::new();
    wait_for(&format!("{what:?}"), Duration::from_secs(10), || {
        let result = listener.hear(Duration::from_millis(100), |event| heard.push(event));
        result.is_ok() && heard.contains(what)
    })
    .with_context(|| format!("heard: {heard:?}"))
}

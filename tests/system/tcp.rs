//! TCP through a wire that loses, repeats, reorders and damages: streams complete, byte for byte, and each packet is
//! accounted for. `CULVERT_FAULTS_SEED` repeats what happened.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_proto::status::DatapathStatus;
use culvert_tests::faulty::{Counts, Faults, FaultyWire};
use culvert_tests::lab::{Lab, Plan};
use culvert_tests::load;
use culvert_tests::netns::wait_for;
use culvert_tests::random::seed;
use culvert_tests::stream;

use crate::tap::moved;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("tcp_under_loss", tcp_under_loss),
    ("tcp_under_reordering", tcp_under_reordering),
    ("tcp_under_duplication", tcp_under_duplication),
    ("tcp_under_everything", tcp_under_everything),
    ("faulty_wire_sees_plaintext", faulty_wire_sees_plaintext),
];

/// Bytes of a stream, each way.
const BYTES: u64 = 32 << 20;
/// Longest time for both streams.
const LIMIT: Duration = Duration::from_secs(60);

/// What a machine that is too slow for its load drops, whatever the wire does.
const OVERLOAD: &[&str] = &["rx_overflow", "tx_ring_full"];
/// What becomes of packets with a wrong bit, besides those whose ICV is wrong: it may be in a header.
const DAMAGED: &[&str] = &[
    "malformed_from_peer",
    "malformed",
    "fragment_malformed",
    "fragment_incomplete",
    "not_ours",
    "truncated",
    "reserved_spi",
    "unknown_spi",
    "wrong_encapsulation",
    "replayed",
    "too_old",
    "authentication_failed",
    "policy_mismatch",
];

fn tcp_under_loss() -> Result<()> {
    under(Faults {
        loss: 10_000,
        ..Faults::default()
    })
}

fn tcp_under_reordering() -> Result<()> {
    under(Faults {
        reordering: 50_000,
        ..Faults::default()
    })
}

fn tcp_under_duplication() -> Result<()> {
    under(Faults {
        duplication: 50_000,
        ..Faults::default()
    })
}

fn tcp_under_everything() -> Result<()> {
    let faults = Faults {
        loss: 10_000,
        duplication: 50_000,
        reordering: 50_000,
        corruption: 5_000,
    };
    // And two workers share the SAs.
    let shared = Plan {
        ipv6: true,
        queues: 2,
        ..plan("tap")
    };
    under_each(faults, &[plan("veth"), plan("tap"), shared])
}

fn plan(host_port: &'static str) -> Plan {
    Plan {
        host_port,
        // A busy machine is no matter here.
        hung_after: 1000,
        ..Plan::default()
    }
}

/// With each kind of host port.
fn under(faults: Faults) -> Result<()> {
    under_each(faults, &["veth", "tap"].map(plan))
}

fn under_each(faults: Faults, plans: &[Plan]) -> Result<()> {
    let seed = seed("CULVERT_FAULTS_SEED")?;
    for &plan in plans {
        with(plan, faults, seed)
            .with_context(|| format!("CULVERT_FAULTS_SEED={seed}, {faults:?}, {plan:?}"))?;
    }
    Ok(())
}

fn with(plan: Plan, faults: Faults, seed: u64) -> Result<()> {
    let mut lab = Lab::new(plan)?;
    lab.start_culvert()?;
    let before = statuses(&lab)?;
    let wire = FaultyWire::start(&lab, faults, seed)?;
    let done = stream::both_ways(&lab, BYTES, seed, LIMIT);
    let after = quiet(&lab);
    let counts = wire.finish()?;
    let drops = || statuses(&lab).map(|statuses| statuses.map(|status| status.drops));
    done.with_context(|| format!("{counts:?}, {:?}", drops()))?;
    let after = after?;
    for (way, counts) in counts.iter().enumerate() {
        let name = ["from a to b", "from b to a"][way];
        judge_wire(faults, counts).with_context(|| format!("{name}: {counts:?}"))?;
        let receiver = 1 - way;
        let drops = dropped(&before[receiver], &after[receiver]);
        let opened = opened(&after[receiver]) - opened(&before[receiver]);
        judge_receiver(faults, counts, opened, &drops)
            .with_context(|| format!("{name}: {opened} opened, {drops:?}, {counts:?}"))?;
    }
    for (side, after) in lab.sides.iter().zip(&after) {
        let host = after.ports.iter().find(|port| port.role == "host");
        let kind = &host.context("the host port")?.kind;
        ensure!(kind.to_lowercase().starts_with(plan.host_port), "{kind}");
        if plan.host_port == "tap" && !kind.contains("no superpackets") {
            let [(sent, _), (received, _)] = moved(side)?;
            let sealed: u64 = after.workers.iter().map(|worker| worker.sealed).sum();
            let opened = opened(after);
            ensure!(sealed > 2 * sent, "{sealed} packets were cut from {sent}");
            ensure!(
                opened > received + received / 2,
                "{opened} packets were joined to {received}"
            );
        }
    }
    Ok(())
}

/// Without Culvert: so what [`judge_wire`] does not see was not there.
fn faulty_wire_sees_plaintext() -> Result<()> {
    for ipv6 in [false, true] {
        let lab = Lab::new(Plan {
            ipv6,
            ..Plan::default()
        })?;
        let wire = FaultyWire::start(&lab, Faults::default(), 0)?;
        let ping = load::ping(&lab, 10)?;
        ensure!(ping.received == 10, "{ping:?}");
        for counts in wire.finish()? {
            let expected = Counts {
                plaintext_geneve: 10,
                sent: 10,
                ..Counts::default()
            };
            ensure!(counts == expected, "ipv6 {ipv6}: {counts:?}");
        }
        // The relay is gone, and with it the wire.
        ensure!(load::ping(&lab, 1)?.received == 0);
    }
    Ok(())
}

/// The wire did what it was to do, and what crossed it was ESP.
fn judge_wire(faults: Faults, counts: &Counts) -> Result<()> {
    for (wanted, done) in [
        (faults.loss, counts.lost),
        (faults.duplication, counts.duplicated),
        (faults.reordering, counts.reordered),
        (faults.corruption, counts.corrupted),
    ] {
        ensure!((done > 0) == (wanted > 0), "it happened {done} times");
    }
    ensure!(counts.plaintext_geneve == 0, "Geneve in clear");
    ensure!(counts.too_long == 0, "longer than the MTU");
    // An ICMP error for what the kernel got as its own, by a wrong bit.
    ensure!(counts.other <= counts.corrupted, "not ESP");
    Ok(())
}

/// All that came was opened, or is counted under a reason that there was.
fn judge_receiver(
    faults: Faults,
    counts: &Counts,
    opened: u64,
    drops: &BTreeMap<&str, u64>,
) -> Result<()> {
    let of = |reason| drops.get(reason).copied().unwrap_or_default();
    for reason in drops.keys() {
        let expected = OVERLOAD.contains(reason)
            || (faults.duplication > 0 && *reason == "replayed")
            || (faults.corruption > 0 && DAMAGED.contains(reason));
        ensure!(expected, "{reason} should not be there");
    }
    let came = counts.sent - counts.refused;
    // What is dropped at the host's port was opened before.
    let dropped = drops.values().sum::<u64>() - of("tx_ring_full");
    // By a wrong bit a packet may be somebody else's.
    let least = came - counts.corrupted - counts.other;
    ensure!((least..=came).contains(&(opened + dropped)), "{came} came");
    ensure!(of("authentication_failed") <= counts.corrupted, "ICVs");
    if faults.corruption > 0 {
        ensure!(of("authentication_failed") > counts.corrupted / 2, "ICVs");
    } else if of("rx_overflow") + counts.refused == 0 {
        ensure!(of("replayed") == counts.duplicated, "replays");
    }
    ensure!(faults.duplication == 0 || of("replayed") > 0, "replays");
    Ok(())
}

fn statuses(lab: &Lab) -> Result<[DatapathStatus; 2]> {
    let [a, b] = &lab.sides;
    Ok([a.datapath_status()?, b.datapath_status()?])
}

/// How it is when nothing is on its way any more.
fn quiet(lab: &Lab) -> Result<[DatapathStatus; 2]> {
    let moved = |statuses: &[DatapathStatus; 2]| {
        let workers = statuses.each_ref().map(|status| {
            let workers = status.workers.iter();
            workers
                .map(|worker| worker.from_wire + worker.from_host)
                .sum::<u64>()
        });
        (
            workers,
            statuses.each_ref().map(|status| status.drops.clone()),
        )
    };
    let mut last = statuses(lab)?;
    wait_for("the wire to be quiet", Duration::from_secs(10), || {
        std::thread::sleep(Duration::from_millis(300));
        let Ok(now) = statuses(lab) else { return false };
        let quiet = moved(&now) == moved(&last);
        last = now;
        quiet
    })?;
    Ok(last)
}

fn opened(status: &DatapathStatus) -> u64 {
    status.workers.iter().map(|worker| worker.opened).sum()
}

/// What was dropped between the two.
fn dropped<'a>(before: &DatapathStatus, after: &'a DatapathStatus) -> BTreeMap<&'a str, u64> {
    let grown = |(reason, count): (&'a String, &u64)| {
        let count = count - before.drops.get(reason).copied().unwrap_or_default();
        (count > 0).then_some((reason.as_str(), count))
    };
    after.drops.iter().filter_map(grown).collect()
}

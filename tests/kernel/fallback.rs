//! The kernel's IPsec of side a in the place of Culvert's datapath, and back; the peer is the kernel of side b all along.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::scope;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use culvert_packet::headers::{self, Kind};
use culvert_proto::message::{KeymgrReply, KeymgrRequest};
use culvert_proto::policy::Place;
use culvert_proto::sa::Cipher;
use culvert_tests::keys::{Generation, write_private};
use culvert_tests::lab::{Lab, Plan, SPIS, culvert};
use culvert_tests::load::ping_between;
use culvert_tests::netns::{run, wait_for};
use culvert_tests::udp::{self, Flow, Stream};
use culvert_tests::wire::{Capture, take_counts};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Test;
use crate::xfrm::{Algorithm, Xfrm};

/// Of these, others show most.
const RARE: [&str; 2] = ["ended_in_order", "drained"];

/// Every test, and whether it is run only if all are wanted.
pub(crate) fn all() -> Vec<(String, bool, Test)> {
    let ways: [(&str, Way, Way); 5] = [
        (
            "killed",
            |lab| lab.kill_datapath(0),
            |lab| lab.start_datapath(0),
        ),
        (
            "ended_in_order",
            |lab| lab.end_datapath(0),
            |lab| lab.start_datapath(0),
        ),
        (
            "stopped",
            |lab| signal(lab, Signal::SIGSTOP),
            |lab| signal(lab, Signal::SIGCONT),
        ),
        (
            "drained",
            |lab| command(lab, "drain"),
            |lab| command(lab, "resume"),
        ),
        (
            "killed_with_the_key_manager",
            |lab| {
                lab.kill_keymgr(0)?;
                lab.kill_datapath(0)?;
                lab.start_keymgr(0)
            },
            |lab| lab.start_datapath(0),
        ),
    ];
    let mut tests: Vec<(String, bool, Test)> = Vec::new();
    for (name, away, back) in ways {
        tests.push((
            format!("the_kernel_takes_over_from_a_datapath_that_is_{name}"),
            RARE.contains(&name),
            Box::new(move || there_and_back(1, away, back)),
        ));
    }
    tests.push((
        "modes_say_who_serves".to_owned(),
        false,
        Box::new(modes_say_who_serves),
    ));
    tests.push((
        "without_a_datapath_the_kernel_serves".to_owned(),
        false,
        Box::new(without_a_datapath_the_kernel_serves),
    ));
    tests.push((
        "down_takes_everything_away".to_owned(),
        false,
        Box::new(down_takes_everything_away),
    ));
    tests.push((
        "many_times_there_and_back".to_owned(),
        false,
        Box::new(|| {
            // A hundred, where there is time for them.
            let every = std::env::var_os("CULVERT_EVERY_CASE").is_some();
            let times = if every { 100 } else { 15 };
            let ask = |lab: &Lab, request| match lab.sides[0].ask_keymgr(&request)? {
                KeymgrReply::Done => Ok(()),
                other => anyhow::bail!("{other:?}"),
            };
            there_and_back(
                times,
                move |lab| ask(lab, KeymgrRequest::Drain),
                move |lab| ask(lab, KeymgrRequest::Resume),
            )
        }),
    ));
    tests
}

/// A policy says who may serve it, and that can change under traffic.
fn modes_say_who_serves() -> Result<()> {
    let (mut lab, xfrm) = pair()?;
    take_counts(&lab.underlay)?;
    let ping = |lab: &Lab| -> Result<u32> {
        let [a, b] = &lab.sides;
        Ok(ping_between(a, b, 3, 10)?.received)
    };
    for (mode, place) in [
        ("kernel-only", Place::Kernel),
        ("culvert-only", Place::Culvert),
        ("prefer-culvert", Place::Culvert),
        ("kernel-only", Place::Kernel),
    ] {
        set_mode(&lab, mode)?;
        served_by(&lab, place, Instant::now()).context(mode)?;
        ensure!(ping(&lab)? == 3, "{mode}");
    }
    // Without the datapath, what is Culvert's only is dropped.
    set_mode(&lab, "culvert-only")?;
    served_by(&lab, Place::Culvert, Instant::now())?;
    lab.kill_datapath(0)?;
    served_by(&lab, Place::Nobody, Instant::now())?;
    ensure!(ping(&lab)? == 0, "somebody serves");
    set_mode(&lab, "prefer-culvert")?;
    served_by(&lab, Place::Kernel, Instant::now())?;
    ensure!(ping(&lab)? == 3, "nobody serves");
    let counts = take_counts(&lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    let errors = xfrm.errors()?;
    ensure!(errors.is_empty(), "the peer counts {errors:?}");
    Ok(())
}

fn set_mode(lab: &Lab, mode: &str) -> Result<()> {
    let path = lab.sides[0].folder.join("keymgr.toml");
    let text = std::fs::read_to_string(&path)?;
    let without = text.lines().filter(|line| !line.starts_with("mode = "));
    let lines = without.map(|line| match line {
        "[[policy]]" => format!("[[policy]]\nmode = \"{mode}\"\n"),
        other => format!("{other}\n"),
    });
    write_private(&path, &lines.collect::<String>())?;
    command(lab, "reload")
}

/// As on a NIC without AF_XDP: no datapath, no eBPF, and the key manager alone.
fn without_a_datapath_the_kernel_serves() -> Result<()> {
    let mut lab = Lab::new(plan())?;
    let xfrm = Xfrm::new(&lab)?;
    let keys = Generation::new(CIPHER, SPIS)?;
    xfrm.install(&keys, ALGORITHM, 0)?;
    lab.write_keys(0, &[&keys], 0)?;
    lab.start_keymgr(0)?;
    served_by(&lab, Place::Kernel, Instant::now())?;
    take_counts(&lab.underlay)?;
    for (from, to) in [(0, 1), (1, 0)] {
        let ping = ping_between(&lab.sides[from], &lab.sides[to], 3, 10)?;
        ensure!(ping.received == 3, "{ping:?}");
    }
    // What has no SA any more is dropped by the kernel's policies, whoever lives.
    lab.kill_keymgr(0)?;
    lab.sides[0].namespace.ip("xfrm state flush")?;
    let ping = ping_between(&lab.sides[0], &lab.sides[1], 3, 1)?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(
        ping.received == 0 && counts.plaintext_geneve.packets == 0 && counts.esp.packets == 12,
        "{ping:?}, {counts:?}"
    );
    Ok(())
}

/// Everything away on purpose: then, and only then, Geneve is in clear.
fn down_takes_everything_away() -> Result<()> {
    let (mut lab, _xfrm) = pair()?;
    lab.kill_datapath(0)?;
    served_by(&lab, Place::Kernel, Instant::now())?;
    let side = &lab.sides[0];
    let settings = side.folder.join("datapath.toml");
    let settings = settings.display().to_string();
    let mut down = culvert(side, &["down", "--datapath-config", &settings])?;
    // Nobody is there to be asked.
    ensure!(run(&mut down).is_err(), "it did not ask");
    run(down.arg("--yes"))?;
    for what in ["state", "policy"] {
        let text = side.namespace.ip(&format!("xfrm {what}"))?;
        ensure!(text.trim().is_empty(), "{what}: {text}");
    }
    take_counts(&lab.underlay)?;
    let ping = ping_between(&lab.sides[0], &lab.sides[1], 2, 2)?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(
        ping.received == 0 && counts.plaintext_geneve.packets == 2,
        "{counts:?}"
    );
    // The key goes on when it is started again: its numbers were kept.
    lab.start_datapath(0)?;
    lab.start_keymgr(0)?;
    served_by(&lab, Place::Culvert, Instant::now())?;
    let ping = ping_between(&lab.sides[0], &lab.sides[1], 2, 10)?;
    ensure!(ping.received == 2, "{ping:?}");
    Ok(())
}

type Way = fn(&mut Lab) -> Result<()>;

/// How long each serves.
const BETWEEN: Duration = Duration::from_millis(200);
/// Packets a second, each way.
const RATE: u32 = 300;
const CIPHER: Cipher = Cipher::Aes256Gcm16;
const ALGORITHM: Algorithm = Algorithm {
    name: "rfc4106(gcm(aes))",
    icv_bits: 128,
};

/// On emulated CPUs that others use, too, hearts beat slowly.
pub(crate) fn plan() -> Plan {
    Plan {
        hung_after: 1000,
        ..Plan::default()
    }
}

/// Culvert on a and the kernel on b.
fn pair() -> Result<(Lab, Xfrm)> {
    let mut lab = Lab::new(plan())?;
    ensure!(lab.endpoint == "kernel", "the kernel has no Geneve");
    let xfrm = Xfrm::new(&lab)?;
    let keys = Generation::new(CIPHER, SPIS)?;
    xfrm.install(&keys, ALGORITHM, 0)?;
    lab.start_side(0, &keys)?;
    lab.wait_for_protection(0)?;
    Ok((lab, xfrm))
}

fn there_and_back(
    times: u32,
    away: impl Fn(&mut Lab) -> Result<()> + Copy,
    back: impl Fn(&mut Lab) -> Result<()> + Copy,
) -> Result<()> {
    let (mut lab, xfrm) = pair()?;
    take_counts(&lab.underlay)?;
    let captures = ["a0", "b0"]
        .map(|port| Capture::start(&lab.home, &lab.underlay, port, 96))
        .into_iter()
        .collect::<Result<Vec<_>>>()?;
    let end = AtomicBool::new(false);
    let (flows, times) = scope(|scope| -> Result<_> {
        let streams = [(0, 1), (1, 0)].map(|(from, to)| Stream {
            from: (&lab.sides[from]).into(),
            to: (&lab.sides[to]).into(),
            rate: RATE,
        });
        let end = &end;
        let running = scope.spawn(move || udp::run(&streams, end));
        let moved = (0..times)
            .map(|time| move_once(&mut lab, away, back).with_context(|| format!("time {time}")))
            .collect::<Result<Vec<_>>>();
        end.store(true, Ordering::Relaxed);
        let flows = running.join().map_err(|_| anyhow::anyhow!("it panicked"))?;
        Ok((flows?, moved?))
    })?;
    for (from, to) in [(0, 1), (1, 0)] {
        let ping = ping_between(&lab.sides[from], &lab.sides[to], 1, 10)?;
        ensure!(ping.received == 1, "{ping:?}");
    }
    let sent = captures
        .into_iter()
        .map(|capture| capture.finish_timed())
        .collect::<Result<Vec<_>>>()?;
    let kernel = sent
        .iter()
        .map(|packets| check(packets))
        .sum::<Result<u64>>()?;
    ensure!(kernel > 0, "the kernel has sealed nothing on side a");
    let counts = take_counts(&lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    let errors = xfrm.errors()?;
    ensure!(errors.is_empty(), "the peer counts {errors:?}");
    report(&flows, &times, &sent[0]);
    Ok(())
}

/// How long it took until the kernel served, and until Culvert did again.
fn move_once(
    lab: &mut Lab,
    away: impl Fn(&mut Lab) -> Result<()>,
    back: impl Fn(&mut Lab) -> Result<()>,
) -> Result<[Duration; 2]> {
    std::thread::sleep(BETWEEN);
    let began = Instant::now();
    away(lab)?;
    let there = served_by(lab, Place::Kernel, began)?;
    std::thread::sleep(BETWEEN);
    let began = Instant::now();
    back(lab)?;
    let here = served_by(lab, Place::Culvert, began)?;
    Ok([there, here])
}

fn served_by(lab: &Lab, place: Place, began: Instant) -> Result<Duration> {
    let side = &lab.sides[0];
    let is = || {
        side.keymgr_status().is_ok_and(|status| {
            !status.tunnels.is_empty() && status.tunnels.iter().all(|tunnel| tunnel.place == place)
        })
    };
    wait_for(place.name(), Duration::from_secs(20), is).with_context(|| lab.logs(0))?;
    Ok(began.elapsed())
}

/// Nothing in clear, and of each SA no number and no IV twice. How many packets had IVs that are not Culvert's.
fn check(packets: &[(Duration, Vec<u8>)]) -> Result<u64> {
    let (mut numbers, mut ivs) = (HashSet::new(), HashSet::new());
    let mut others = 0;
    for (_, packet) in packets {
        let Some((spi, number, iv)) = esp(packet)? else {
            continue;
        };
        ensure!(
            numbers.insert((spi, number)),
            "SPI {spi:#x}: number {number} twice"
        );
        ensure!(ivs.insert((spi, iv)), "SPI {spi:#x}: IV {iv:#x} twice");
        others += u64::from(iv != u64::from(number) && spi == SPIS[0]);
    }
    ensure!(numbers.len() > 100, "only {} packets", numbers.len());
    Ok(others)
}

/// SPI, sequence number and IV of an ESP packet.
fn esp(packet: &[u8]) -> Result<Option<(u32, u32, u64)>> {
    let Ok(headers) = headers::walk(packet) else {
        return Ok(None);
    };
    match headers::classify(packet, &headers) {
        Kind::Esp(spi) => {
            let at = headers.transport;
            let number = u32::from_be_bytes(packet[at + 4..at + 8].try_into()?);
            let iv = u64::from_be_bytes(packet[at + 8..at + 16].try_into()?);
            Ok(Some((spi, number, iv)))
        }
        Kind::Geneve => anyhow::bail!("Geneve in clear: {packet:02x?}"),
        _ => Ok(None),
    }
}

/// Says how long nothing was sealed where the sealer changed, and what was lost.
fn report(flows: &[Flow], times: &[[Duration; 2]], sent: &[(Duration, Vec<u8>)]) {
    let mut pauses = [Vec::new(), Vec::new()];
    let mut last: Option<(Duration, bool)> = None;
    for (time, packet) in sent {
        let Ok(Some((_, number, iv))) = esp(packet) else {
            continue;
        };
        let culverts = iv == u64::from(number);
        if let Some((before, was)) = last
            && was != culverts
        {
            pauses[usize::from(culverts)].push(time.saturating_sub(before));
        }
        last = Some((*time, culverts));
    }
    for (index, name) in ["to the kernel", "to Culvert"].iter().enumerate() {
        let mut pause = std::mem::take(&mut pauses[index]);
        let mut took: Vec<Duration> = times.iter().map(|pair| pair[index]).collect();
        for (what, list) in [
            ("nothing sealed for", &mut pause),
            ("said after", &mut took),
        ] {
            list.sort_unstable();
            if let (Some(worst), median) = (list.last(), list.get(list.len() / 2)) {
                println!(
                    "{name}: {what} {median:?}, at most {worst:?}, of {}",
                    list.len()
                );
            }
        }
    }
    for (way, flow) in ["a to b", "b to a"].iter().zip(flows) {
        println!(
            "{way}: {} of {} packets lost",
            flow.sent - flow.received,
            flow.sent
        );
    }
}

fn signal(lab: &Lab, signal: Signal) -> Result<()> {
    let pid = lab.sides[0].datapath_pid().context("no datapath")?;
    Ok(kill(Pid::from_raw(pid.cast_signed()), signal)?)
}

fn command(lab: &Lab, name: &str) -> Result<()> {
    run(&mut culvert(&lab.sides[0], &[name])?).map(drop)
}

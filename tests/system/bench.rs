//! The benchmark suite, in short: what it measures, keeps and leaves.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_tests::lab::{Lab, Plan, WIRE, program};
use culvert_tests::netns::{ROOT, wait_for};
use culvert_tests::record::{Iperf, Place, Record, Results, Series};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[
    ("bench_keeps_what_it_measures", bench_keeps_what_it_measures),
    ("bench_between_two_machines", bench_between_two_machines),
    (
        "bench_interrupted_keeps_what_it_measured",
        bench_interrupted_keeps_what_it_measured,
    ),
    ("bench_of_many_sas", bench_of_many_sas),
    (
        "bench_loop_carries_superpackets",
        bench_loop_carries_superpackets,
    ),
];

fn bench(words: &str, records: &Path) -> Result<Command> {
    let mut command = Command::new(program("culvert")?);
    command.arg("bench").args(words.split_whitespace());
    command.arg("--records").arg(records).stdin(Stdio::null());
    Ok(command)
}

/// The one record of a folder.
fn record(records: &Path) -> Result<Record> {
    let mut files = fs::read_dir(records)?;
    let file = files.next().context("there is no record")??.path();
    ensure!(files.next().is_none(), "more than one record");
    let text = fs::read_to_string(&file)?;
    serde_json::from_str(&text).with_context(|| format!("{}: {text}", file.display()))
}

fn iperf(record: Record) -> Result<Iperf> {
    match record.results {
        Results::Iperf(iperf) => Ok(iperf),
        other => anyhow::bail!("another record: {other:?}"),
    }
}

/// Whether a lab's process is still there: then somebody else is at work on this machine.
fn in_use(name: &str) -> bool {
    let pid = name
        .strip_prefix("cv")
        .and_then(|rest| rest.split('x').next());
    pid.is_some_and(|pid| Path::new("/proc").join(pid).exists())
}

/// Labs that were left, but those of `own`.
fn labs(own: &[&Lab]) -> Vec<String> {
    let names = fs::read_dir(ROOT).into_iter().flatten().flatten();
    let names = names.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let owns = |name: &String| own.iter().any(|lab| lab.home.path().ends_with(name));
    names.filter(|name| !owns(name) && !in_use(name)).collect()
}

fn bench_keeps_what_it_measures() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let words = "iperf --sides plain,null,culvert-tap --ciphers aes256gcm16 --loads tcp,udp-512 --rounds 1 --seconds 1";
    let output = bench(words, folder.path())?.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    ensure!(said.contains("[6/6, "), "no progress: {said}");
    let record = record(folder.path())?;
    ensure!(record.complete && record.host.cores > 0, "{record:?}");
    let iperf = iperf(record)?;
    ensure!(iperf.place == Place::Namespaces && iperf.wire.driver == "veth");
    ensure!(iperf.wire.af_xdp == "copy", "{:?}", iperf.wire);
    ensure!(iperf.series.len() == 6, "{:?}", iperf.series);
    for series in &iperf.series {
        ensure!(series.rounds.len() == 1, "{series:?}");
        for round in &series.rounds {
            let sealed = series.side == "culvert-tap";
            ensure!(round.gbit_per_s > 0.0, "{series:?}");
            ensure!((round.wire.esp > 0) == sealed, "{series:?}");
            ensure!(round.cores["machine"] > 0.0, "{series:?}");
            let probed = round.latency.is_some_and(|latency| latency.p99 > 0.0);
            ensure!(probed == (series.load == "tcp"), "{series:?}");
        }
    }
    ensure!(labs(&[]).is_empty(), "left: {:?}", labs(&[]));
    Ok(())
}

/// Two namespaces in the place of two machines, and entering one in the place of ssh.
fn bench_between_two_machines() -> Result<()> {
    let lab = Lab::new(Plan {
        tunnel: false,
        mtu: 1600,
        ..Plan::default()
    })?;
    let folder = tempfile::tempdir()?;
    let ssh = folder.path().join("ssh");
    let there = lab.sides[1].namespace.name();
    fs::write(
        &ssh,
        format!("#!/bin/sh\nshift\nexec nsenter --net=/run/netns/{there} \"$@\"\n"),
    )?;
    fs::set_permissions(&ssh, fs::Permissions::from_mode(0o755))?;
    let records = folder.path().join("records");
    let mut command = lab.sides[0].namespace.command(program("culvert-bench")?);
    command
        .args(
            "iperf --sides plain,culvert --ciphers aes256gcm16 --loads tcp --rounds 1 --seconds 1"
                .split(' '),
        )
        .args(["--remote", "b", "--wire", WIRE, "--ssh"])
        .arg(&ssh)
        .arg("--remote-program")
        .arg(program("culvert-bench")?)
        .arg("--records")
        .arg(&records);
    let output = command.stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    let iperf = iperf(record(&records)?)?;
    ensure!(iperf.place == Place::Remote && iperf.peer.is_some());
    let sealed = |series: &Series| series.rounds[0].wire.esp;
    ensure!(iperf.series.len() == 2, "{:?}", iperf.series);
    ensure!(sealed(&iperf.series[0]) == 0 && sealed(&iperf.series[1]) > 1_000);
    ensure!(labs(&[&lab]).is_empty(), "left: {:?}", labs(&[&lab]));
    for side in &lab.sides {
        let links = side.namespace.ip("-o -d link")?;
        let left = ["cvbench", "cvbhost", "prog/xdp"];
        ensure!(!left.iter().any(|name| links.contains(name)), "{links}");
    }
    Ok(())
}

fn bench_interrupted_keeps_what_it_measured() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let words = "iperf --sides culvert --ciphers aes256gcm16 --loads tcp --rounds 50 --seconds 1";
    let mut child = bench(words, folder.path())?
        .stderr(Stdio::piped())
        // ^C is for all of a terminal's foreground.
        .process_group(0)
        .spawn()?;
    let mut lines = BufReader::new(child.stderr.take().context("no output")?).lines();
    let first = lines.next().context("it ended")??;
    ensure!(first.contains("Gbit/s"), "{first}");
    let other = bench("scale", &folder.path().join("other"))?.output()?;
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    ensure!(
        !other.status.success() && said.contains("measure each other"),
        "{said}"
    );
    fs::remove_dir(folder.path().join("other"))?;
    let nowhere = bench("scale", Path::new("/proc/nowhere"))?.output()?;
    let said = String::from_utf8_lossy(&nowhere.stderr).into_owned();
    ensure!(
        !nowhere.status.success() && said.contains("no record can be kept in /proc/nowhere"),
        "{said}"
    );
    std::thread::sleep(Duration::from_millis(500));
    killpg(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT)?;
    let rest: Vec<String> = lines.map_while(Result::ok).collect();
    let status = child.wait()?;
    ensure!(status.code() == Some(130), "{status}: {rest:?}");
    let record = record(folder.path())?;
    ensure!(!record.complete);
    ensure!(!iperf(record)?.series[0].rounds.is_empty());
    wait_for("the labs to go", Duration::from_secs(10), || {
        labs(&[]).is_empty()
    })
}

fn bench_of_many_sas() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let words = "scale --sas 1,1000 --workers 2 --rounds 1 --seconds 1";
    let output = bench(words, folder.path())?.output()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.success(), "{said}");
    let Results::Scale(scale) = record(folder.path())?.results else {
        anyhow::bail!("another record");
    };
    let kinds: Vec<_> = scale
        .points
        .iter()
        .map(|point| (point.sas, point.workers))
        .collect();
    ensure!(kinds == [(1, 1), (1_000, 1), (1, 2)], "{kinds:?}");
    for point in &scale.points {
        ensure!(
            point.mpps[0] > 0.0 && point.gbit_per_s[0] > 0.0,
            "{point:?}"
        );
        let workers = f64::from(point.workers);
        ensure!(
            point.datapath_mib < 96.0 * workers && point.keymgr_mib < 25.0,
            "{point:?}"
        );
    }
    Ok(())
}

fn bench_loop_carries_superpackets() -> Result<()> {
    for threads in [1, 2] {
        let folder = tempfile::tempdir()?;
        let words = format!("loop --threads {threads} --loads tcp --rounds 1 --seconds 1");
        let output = bench(&words, folder.path())?.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        if said.contains("no superpackets of tunnels") {
            return Ok(());
        }
        ensure!(output.status.success(), "{said}");
        ensure!(said.contains("[2/2, "), "no progress: {said}");
        let record = record(folder.path())?;
        ensure!(record.complete, "{record:?}");
        let Results::Loop(looped) = record.results else {
            anyhow::bail!("another record");
        };
        ensure!(looped.threads == threads && looped.series.len() == 2);
        for series in &looped.series {
            let round = series.rounds.first().context("no round")?;
            let sealed = series.side == "culvert-tap";
            ensure!(round.gbit_per_s > 0.0, "{series:?}");
            // An MTU's worth each, and what acknowledges them.
            let packets = round.gbit_per_s * 1e9 / 8.0 / 1_500.0;
            let [there, not] = match sealed {
                true => [round.wire.esp, round.wire.geneve],
                false => [round.wire.geneve, round.wire.esp],
            };
            ensure!(there as f64 > packets * 0.8 && not == 0, "{series:?}");
            let superpackets = round.superpackets.context("no superpackets")?;
            ensure!(
                superpackets.cut > 3.0 && superpackets.joined > 1.5,
                "{series:?}"
            );
            let workers = if threads == 1 { "workers" } else { "worker a" };
            ensure!(round.cores[workers] > 0.0, "{series:?}");
        }
        ensure!(labs(&[]).is_empty(), "left: {:?}", labs(&[]));
    }
    Ok(())
}

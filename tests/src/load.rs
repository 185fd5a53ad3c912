//! Load: ping and iperf3 between the two hypervisors' "VMs".

use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Serialize;
use serde_json::Value;

use crate::lab::{Lab, Side};
use crate::netns::{run, wait_for};

/// What ping said.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Ping {
    /// Requests sent.
    pub sent: u32,
    /// Replies received.
    pub received: u32,
    /// Share of requests without a reply, in percent.
    pub loss_percent: f64,
    /// Median round trip in milliseconds.
    pub median_ms: f64,
    /// 99th percentile of the round trip in milliseconds.
    pub p99_ms: f64,
}

/// Pings from a to b, `count` times, 100 a second.
///
/// # Errors
/// ping cannot be run, or its output is not understood.
pub fn ping(lab: &Lab, count: u32) -> Result<Ping> {
    run_ping(&lab.sides[0], &lab.sides[1], count, 1, 56)
}

/// Pings until a reply comes.
///
/// # Errors
/// None does within `limit`.
pub fn wait_for_reply(lab: &Lab, limit: Duration) -> Result<()> {
    wait_for("a ping to come back", limit, || {
        ping(lab, 1).is_ok_and(|ping| ping.received == 1)
    })
}

/// As [`ping`], with `size` bytes behind the ICMP header.
///
/// # Errors
/// As [`ping`].
pub fn ping_of(lab: &Lab, count: u32, size: u32) -> Result<Ping> {
    run_ping(&lab.sides[0], &lab.sides[1], count, 1, size)
}

/// As [`ping`] between other sides. Waits up to `patience` seconds for the first reply, but when there was one, ping
/// waits for the others two more round trips only: where CPUs stand still now and then, send one.
///
/// # Errors
/// As [`ping`].
pub fn ping_between(from: &Side, to: &Side, count: u32, patience: u32) -> Result<Ping> {
    run_ping(from, to, count, patience, 56)
}

fn run_ping(from: &Side, to: &Side, count: u32, patience: u32, size: u32) -> Result<Ping> {
    let output = from
        .namespace
        .command("ping")
        .args(["-n", "-i", "0.01", "-W", &patience.to_string()])
        .args(["-c", &count.to_string(), "-s", &size.to_string()])
        .arg(to.inner.to_string())
        .output()
        .context("ping")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut times: Vec<f64> = text
        .lines()
        .filter_map(|line| line.split_once("time=")?.1.split(' ').next()?.parse().ok())
        .collect();
    times.sort_by(f64::total_cmp);
    ensure!(
        text.contains(" packets transmitted"),
        "ping: {text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let received = u32::try_from(times.len())?;
    let at = |share: usize| {
        times
            .get(times.len() * share / 100)
            .copied()
            .unwrap_or(f64::NAN)
    };
    Ok(Ping {
        sent: count,
        received,
        loss_percent: f64::from(count.saturating_sub(received)) * 100.0 / f64::from(count),
        median_ms: at(50),
        p99_ms: at(99),
    })
}

/// What iperf3 said.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Throughput {
    /// What arrived, in 10^9 bits a second of TCP payload.
    pub gbit_per_s: f64,
    /// How long it ran.
    pub seconds: f64,
    /// Segments that TCP sent again.
    pub retransmits: u64,
}

/// An iperf3 server in b, for one client.
///
/// # Errors
/// It does not start.
pub fn serve(lab: &Lab) -> Result<Child> {
    let b = &lab.sides[1];
    let log = lab.home.path().join("iperf3-server.log");
    // The server says it listens in a log that an earlier one may have left.
    let _ = std::fs::remove_file(&log);
    let mut command = b.namespace.command("iperf3");
    command.args(["-s", "-1", "--forceflush", "-B", &b.inner.to_string()]);
    let server = lab.home.spawn(command, &log)?;
    let listening = || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("listening"));
    wait_for("iperf3", Duration::from_secs(5), listening)?;
    Ok(server)
}

/// Seconds that iperf3 may take longer than it was told. Its own limits do not end a client whose packets
/// are lost for good.
const GRACE: u32 = 15;

/// The client in a that sends TCP to b for `seconds`.
#[must_use]
pub fn client(lab: &Lab, seconds: u32) -> std::process::Command {
    let [a, b] = &lab.sides;
    let mut command = a.namespace.command("timeout");
    command
        .args(["--signal=KILL", &(seconds + GRACE).to_string(), "iperf3"])
        .args([
            "-J",
            "--connect-timeout",
            "5000",
            "-t",
            &seconds.to_string(),
            "-c",
        ])
        .arg(b.inner.to_string());
    command
}

/// Sends TCP from a to b for `seconds` and says what arrived.
///
/// # Errors
/// iperf3 fails.
pub fn iperf(lab: &Lab, seconds: u32) -> Result<Throughput> {
    read(&measure(lab, &mut client(lab, seconds))?, "")
}

/// Sends TCP from a to b and from b to a at once, for `seconds`, and says what arrived each way.
///
/// # Errors
/// iperf3 fails.
pub fn iperf_both_ways(lab: &Lab, seconds: u32) -> Result<[Throughput; 2]> {
    let json = measure(lab, client(lab, seconds).arg("--bidir"))?;
    Ok([read(&json, "")?, read(&json, "_bidir_reverse")?])
}

/// Waits until neither side has a TCP connection that may still send something.
///
/// # Errors
/// They do not end.
pub fn connections_end(lab: &Lab) -> Result<()> {
    /// What comes after the last packet, as `/proc/net/tcp` has it.
    const TIME_WAIT: &str = "06";
    let ended = |side: &Side| {
        let table = side
            .namespace
            .within(|| Ok(std::fs::read_to_string("/proc/thread-self/net/tcp")?));
        table.is_ok_and(|text| {
            let mut states = text
                .lines()
                .skip(1)
                .filter_map(|line| line.split_whitespace().nth(3));
            states.all(|state| state == TIME_WAIT)
        })
    };
    wait_for("TCP connections to end", Duration::from_secs(20), || {
        lab.sides.iter().all(ended)
    })
}

fn measure(lab: &Lab, client: &mut std::process::Command) -> Result<Value> {
    let mut server = serve(lab)?;
    // It may end well and say in its JSON that it failed.
    let result = run(client)
        .and_then(|text| json(&text))
        .context("iperf3 failed, or its packets were lost for good");
    if result.is_err() {
        // The server still waits for a client.
        let _ = server.kill();
    }
    server.wait()?;
    result
}

/// Understands iperf3's JSON.
///
/// # Errors
/// It is none, or reports an error.
pub fn parse(text: &str) -> Result<Throughput> {
    read(&json(text)?, "")
}

fn json(text: &str) -> Result<Value> {
    let json: Value = serde_json::from_str(text).context("iperf3's JSON")?;
    ensure!(json["error"].is_null(), "iperf3: {}", json["error"]);
    Ok(json)
}

/// The sums of one direction, whose names end in `direction`.
fn read(json: &Value, direction: &str) -> Result<Throughput> {
    let received = &json["end"][format!("sum_received{direction}")];
    Ok(Throughput {
        gbit_per_s: received["bits_per_second"]
            .as_f64()
            .context("iperf3: rate")?
            / 1e9,
        seconds: received["seconds"].as_f64().unwrap_or_default(),
        retransmits: json["end"][format!("sum_sent{direction}")]["retransmits"]
            .as_u64()
            .unwrap_or_default(),
    })
}

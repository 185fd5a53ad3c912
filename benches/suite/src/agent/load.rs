//! Load by iperf3.

use std::net::IpAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_tests::netns::{Home, run, wait_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Window of the original talk, in bytes.
const TALK_WINDOW: &str = "85K";
/// UDP that may be lost, in percent.
const LOSS: f64 = 0.1;
/// Rates of UDP rise by that factor, from one that everyone can do.
const STEP: f64 = 1.4;
/// First rate in packets a second.
const FIRST: f64 = 20_000.0;
/// Rates tried at most.
const TRIES: u32 = 16;
/// Seconds of each of them.
const TRIAL: u32 = 1;
/// Seconds that iperf3 may take longer than it was told. Its own limits do not end a client whose packets are lost for good.
const GRACE: u32 = 20;

/// What to send.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Load {
    /// TCP.
    Tcp {
        /// Streams side by side.
        streams: u32,
        /// With the window of the original talk.
        talk_window: bool,
        /// No faster than that, in bits a second.
        rate: Option<u64>,
    },
    /// UDP at the highest rate that loses no more than 0.1 %.
    Udp {
        /// Bytes of payload.
        bytes: u32,
    },
}

/// What came of it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub struct Done {
    /// Payload that arrived, in 10^9 bits a second.
    pub gbit_per_s: f64,
    /// Packets that arrived, in 10^6 a second; of UDP.
    pub mpps: Option<f64>,
    /// Segments sent again; of TCP.
    pub retransmits: Option<u64>,
    /// Loss in percent; of UDP.
    pub lost_percent: Option<f64>,
    /// How long it took.
    pub seconds: f64,
    /// Cores that the client took.
    pub client: f64,
    /// Cores that the server took.
    pub server: f64,
}

/// Starts a server for clients, one after the other. `iperf3` is the program, to be run where `address` is.
pub(crate) fn serve(home: &Home, mut iperf3: Command, address: IpAddr) -> Result<()> {
    let log = home.path().join("iperf3.log");
    iperf3.args(["-s", "--forceflush", "-B", &address.to_string()]);
    home.spawn(iperf3, &log)?;
    wait_for("iperf3", Duration::from_secs(10), || listens(&log))
}

fn listens(log: &Path) -> bool {
    std::fs::read_to_string(log).is_ok_and(|text| text.contains("listening"))
}

/// Runs a load.
pub(crate) fn send(load: &Load, to: IpAddr, seconds: u32) -> Result<Done> {
    match *load {
        Load::Tcp {
            streams,
            talk_window,
            rate,
        } => {
            let mut options = vec!["-P".to_owned(), streams.to_string()];
            if talk_window {
                options.extend(["-w".to_owned(), TALK_WINDOW.to_owned()]);
            }
            if let Some(rate) = rate {
                options.extend(["-b".to_owned(), rate.to_string()]);
            }
            client(to, seconds, &options)
        }
        Load::Udp { bytes } => udp(to, bytes),
    }
}

/// Rises until too much is lost; the last rate before that counts. A rate is tried twice, as a machine that is busy for a
/// moment would else be the limit; and if the first one is too much, it falls.
fn udp(to: IpAddr, bytes: u32) -> Result<Done> {
    let mut best = Done::default();
    let mut packets = FIRST;
    let mut failed = false;
    for _ in 0..TRIES {
        let rate = packets * f64::from(bytes) * 8.0;
        let options = ["-u", "-b", &format!("{rate:.0}"), "-l", &bytes.to_string()];
        let done = match client(to, TRIAL, &options.map(str::to_owned)) {
            Ok(done) => done,
            // Its own control connection suffers, too.
            Err(_) if best.seconds > 0.0 => Done {
                lost_percent: Some(100.0),
                ..Done::default()
            },
            Err(error) => return Err(error),
        };
        if done.lost_percent.unwrap_or(100.0) <= LOSS {
            if done.gbit_per_s > best.gbit_per_s {
                best = done;
            }
            // A client that does not get that fast is a limit, too.
            let kept_up = done.mpps.unwrap_or_default() * 1e6 > packets * 0.9;
            if !kept_up || packets < FIRST {
                break;
            }
            packets *= STEP;
            failed = false;
        } else if best.seconds == 0.0 {
            packets /= 2.0;
        } else if std::mem::replace(&mut failed, true) {
            break;
        }
    }
    Ok(best)
}

fn client(to: IpAddr, seconds: u32, options: &[String]) -> Result<Done> {
    let limit = (seconds + GRACE).to_string();
    let mut command = Command::new("timeout");
    command
        .args(["--signal=KILL", &limit, "iperf3", "-J"])
        .args(["--connect-timeout", "5000", "-t", &seconds.to_string()])
        .args(["-c", &to.to_string()])
        .args(options);
    let mut tries = 0..TRIES;
    loop {
        let text = run(&mut command).context("iperf3 failed, or its packets were lost for good")?;
        let json: Value = serde_json::from_str(&text).context("iperf3's JSON")?;
        match json["error"].as_str() {
            None => return read(&json["end"]),
            // It has not seen the end of the last client yet.
            Some(error) if error.contains("busy") && tries.next().is_some() => {
                std::thread::sleep(Duration::from_millis(200));
            }
            Some(error) => bail!("iperf3: {error}"),
        }
    }
}

fn read(end: &Value) -> Result<Done> {
    let number = |value: &Value| value.as_f64().unwrap_or_default();
    let cpu = &end["cpu_utilization_percent"];
    let mut done = Done {
        client: number(&cpu["host_total"]) / 100.0,
        server: number(&cpu["remote_total"]) / 100.0,
        ..Done::default()
    };
    // Of UDP there is one sum, at the receiver's rate times what was sent.
    if end["sum"]["packets"].is_number() {
        let sum = &end["sum"];
        let (sent, lost) = (number(&sum["packets"]), number(&sum["lost_packets"]));
        done.seconds = number(&sum["seconds"]);
        let bytes = number(&sum["bytes"]) / sent.max(1.0);
        done.mpps = Some((sent - lost) / done.seconds / 1e6);
        done.gbit_per_s = (sent - lost) * bytes * 8.0 / done.seconds / 1e9;
        done.lost_percent = Some(lost * 100.0 / sent.max(1.0));
    } else {
        let received = &end["sum_received"];
        done.gbit_per_s = received["bits_per_second"].as_f64().context("no rate")? / 1e9;
        done.seconds = number(&received["seconds"]);
        done.retransmits = end["sum_sent"]["retransmits"].as_u64();
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn tcp_and_udp_are_read() {
        let tcp = json!({
            "sum_sent": {"retransmits": 3}, "sum_received": {"bits_per_second": 2.5e9, "seconds": 3.0},
            "cpu_utilization_percent": {"host_total": 50.0, "remote_total": 25.0},
        });
        let done = read(&tcp).unwrap();
        assert_eq!((done.gbit_per_s, done.retransmits), (2.5, Some(3)));
        assert_eq!((done.client, done.server, done.mpps), (0.5, 0.25, None));
        let udp =
            json!({"sum": {"packets": 1000, "lost_packets": 1, "bytes": 64_000, "seconds": 1.0}});
        let done = read(&udp).unwrap();
        assert_eq!(done.lost_percent, Some(0.1));
        assert_eq!(done.mpps, Some(999e-6));
        assert!((done.gbit_per_s - 999.0 * 64.0 * 8.0 / 1e9).abs() < 1e-12);
    }
}

//! The report as a screen of text.

use std::collections::HashMap;
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use culvert_packet::reason::DropReason;
use culvert_proto::policy::short;
use culvert_proto::sa::{Action, Direction, Geneve, SaId, Selector, UdpEncapsulation};
use culvert_proto::status::{DatapathStatus, KeymgrStatus, SaStatus};

use super::Report;
use super::problems::{Tunnels, is_protected, tunnels, waits};
use crate::ask::{DATAPATH, KEYMGR};
use crate::table::{Table, bytes, duration};

/// Rows of policies and of SAs that a screen takes.
const ROWS: usize = 12;

pub(super) fn text(report: &Report, all: bool) -> String {
    let mut parts = vec![daemons(report)];
    if let Some(datapath) = &report.datapath {
        parts.push(ports(datapath));
        parts.push(workers(datapath));
        let tunnels = tunnels(report.keymgr.as_ref());
        parts.push(policies(datapath, &tunnels, all));
        parts.push(sas(datapath, all));
        parts.push(drops(datapath));
    }
    parts.push(problems(report));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

fn daemons(report: &Report) -> String {
    let mut table = Table::new(&["DAEMON", ">PID", ">UP", ""]);
    let mut row = |program: &str, pid: String, up: String, note: String| {
        table.row([program.to_owned(), pid, up, note]);
    };
    match &report.datapath {
        Some(status) => row(
            &status.program,
            status.pid.to_string(),
            duration(status.uptime_seconds),
            format!(
                "AEAD by {}; CPU has {}",
                status.aead,
                list(&status.cpu_features)
            ),
        ),
        None => row(
            DATAPATH,
            "-".to_owned(),
            report.absence[0].to_owned(),
            String::new(),
        ),
    }
    match &report.keymgr {
        Some(status) => row(
            &status.program,
            status.pid.to_string(),
            duration(status.uptime_seconds),
            keymgr(status),
        ),
        None => row(
            KEYMGR,
            "-".to_owned(),
            report.absence[1].to_owned(),
            String::new(),
        ),
    }
    table.text()
}

fn keymgr(status: &KeymgrStatus) -> String {
    let charon = match &status.charon {
        Some(charon) if charon.connected => format!(" and {}", charon.program),
        Some(charon) => format!(" and {} (GONE)", charon.program),
        None => String::new(),
    };
    format!(
        "{}{charon}: {} SA{}, {} polic{}; datapath {}",
        status.source,
        status.sas,
        if status.sas == 1 { "" } else { "s" },
        status.policies,
        if status.policies == 1 { "y" } else { "ies" },
        if status.datapath_in_sync {
            "in sync"
        } else {
            "NOT in sync"
        }
    )
}

fn ports(status: &DatapathStatus) -> String {
    let mut table = Table::new(&["PORT", "INTERFACE", "XDP", "AF_XDP", ">QUEUES", ">MTU"]);
    for port in &status.ports {
        table.row([
            port.role.clone(),
            port.interface.clone(),
            port.xdp.clone(),
            port.af_xdp.clone(),
            port.queues.to_string(),
            port.mtu.to_string(),
        ]);
    }
    table.text()
}

fn workers(status: &DatapathStatus) -> String {
    let mut table = Table::new(&[
        "WORKER",
        ">CORE",
        ">CPU s",
        ">FROM HOST",
        ">FROM WIRE",
        ">SEALED",
        ">OPENED",
        ">SLEEPS",
    ]);
    for worker in &status.workers {
        table.row([
            worker.id.to_string(),
            worker.core.map_or("-".to_owned(), |core| core.to_string()),
            format!("{:.1}", worker.cpu_seconds),
            worker.from_host.to_string(),
            worker.from_wire.to_string(),
            worker.sealed.to_string(),
            worker.opened.to_string(),
            worker.sleeps.to_string(),
        ]);
    }
    table.text()
}

fn policies(status: &DatapathStatus, tunnels: &Tunnels<'_>, all: bool) -> String {
    if status.policies.is_empty() {
        return "No policies: no Geneve is protected\n".to_owned();
    }
    let mut table = Table::new(&[
        "GENEVE BETWEEN",
        "AND",
        "ONLY",
        "PROTECTED BY",
        "KEYS FROM",
        "IKE PEER",
        ">AGE",
        ">REKEY IN",
    ]);
    let sas: HashMap<SaId, &SaStatus> = status.sas.iter().map(|sa| (id(sa), sa)).collect();
    // What is blocked first, so that it is on the screen.
    let mut sorted: Vec<_> = status.policies.iter().collect();
    sorted.sort_by_key(|policy| is_protected(policy));
    let shown = if all { sorted.len() } else { ROWS };
    for policy in sorted.iter().take(shown) {
        let tunnel = tunnels.get(&policy.selector);
        let (outbound, inbound) = match &policy.action {
            Action::Protect { outbound, inbound } => (*outbound, &inbound[..]),
            Action::Bypass | Action::Discard => (None, &[][..]),
        };
        // Those that are being replaced say nothing of when the next ones are.
        let alive = outbound.iter().chain(inbound).filter_map(|id| sas.get(id));
        let alive: Vec<&SaStatus> = alive.copied().filter(|sa| sa.state == "alive").collect();
        let sa = outbound.and_then(|id| sas.get(&id));
        let none = || "-".to_owned();
        let protected_by = if !is_protected(policy) && waits(policy, tunnel) {
            "none (waits for a packet)".to_owned()
        } else {
            policy.protected_by.clone()
        };
        table.row([
            short(&policy.selector.local),
            short(&policy.selector.remote),
            only(&policy.selector),
            protected_by,
            tunnel.map_or_else(none, |tunnel| tunnel.source.clone()),
            tunnel
                .and_then(|tunnel| tunnel.ike_peer)
                .map_or_else(none, |peer| peer.to_string()),
            sa.map_or_else(none, |sa| duration(seconds(sa.age_seconds))),
            rekey(&alive),
        ]);
    }
    table.text() + &more(sorted.len(), shown, "policies")
}

fn id(sa: &SaStatus) -> SaId {
    SaId {
        direction: sa.direction,
        spi: sa.spi,
        destination: sa.destination,
    }
}

/// What is left until the first of the SAs asks to be replaced: time, bytes, packets, whichever has a limit.
fn rekey(sas: &[&SaStatus]) -> String {
    let least = |left: fn(&SaStatus) -> Option<u64>| sas.iter().filter_map(|sa| left(sa)).min();
    let parts = [
        least(|sa| Some(sa.lifetime.soft.seconds?.saturating_sub(sa.age_seconds)))
            .map(|left| duration(seconds(left))),
        least(|sa| Some(sa.lifetime.soft.bytes?.saturating_sub(sa.bytes))).map(bytes),
        least(|sa| Some(sa.lifetime.soft.packets?.saturating_sub(sa.packets)))
            .map(|left| format!("{left} packets")),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    if parts.is_empty() {
        return "-".to_owned();
    }
    parts.join(" or ")
}

#[expect(
    clippy::cast_precision_loss,
    reason = "for people, who count no seconds beyond thousands of years"
)]
fn seconds(whole: u64) -> f64 {
    whole as f64
}

/// What a policy asks for beside the addresses.
fn only(selector: &Selector) -> String {
    let mut parts = Vec::new();
    match selector.geneve {
        Geneve::Either => {}
        Geneve::Local => parts.push("to us".to_owned()),
        Geneve::Remote => parts.push("from us".to_owned()),
        Geneve::Both => parts.push("both ports 6081".to_owned()),
    }
    if !selector.vnis.is_empty() {
        let ranges: Vec<_> = selector.vnis.iter().map(ToString::to_string).collect();
        parts.push(format!("VNI {}", ranges.join(",")));
    }
    parts.join(", ")
}

fn list(words: &[String]) -> String {
    if words.is_empty() {
        return "nothing for them".to_owned();
    }
    words.join(" ")
}

fn sas(status: &DatapathStatus, all: bool) -> String {
    let mut table = Table::new(&[
        "SPI",
        "DIR",
        "FROM",
        "TO",
        "CIPHER",
        ">PACKETS",
        ">BYTES",
        ">SEQUENCE",
        ">WINDOW",
        "STATE",
    ]);
    let shown = if all { status.sas.len() } else { ROWS };
    for sa in status.sas.iter().take(shown) {
        let (from, to) = ends(sa);
        let window = match sa.direction {
            Direction::In => sa.replay_window.to_string(),
            Direction::Out => "-".to_owned(),
        };
        table.row([
            sa.spi.to_string(),
            sa.direction.to_string(),
            from,
            to,
            format!("{}{}", sa.cipher, if sa.esn { " esn" } else { "" }),
            sa.packets.to_string(),
            bytes(sa.bytes),
            sa.sequence.to_string(),
            window,
            state(sa),
        ]);
    }
    table.text() + &more(status.sas.len(), shown, "SAs")
}

/// How an SA is: its life, and what went wrong under it.
fn state(sa: &SaStatus) -> String {
    let mut text = sa.state.clone();
    for (count, what) in [
        (sa.lost, "lost"),
        (sa.replayed, "replayed"),
        (sa.late, "late"),
        (sa.failed, "forged"),
    ] {
        if count > 0 {
            // Writing to a string does not fail.
            let _ = write!(text, ", {count} {what}");
        }
    }
    text
}

/// Both ends of an SA, with the ports if it is encapsulated in UDP.
fn ends(sa: &SaStatus) -> (String, String) {
    let end = |address: IpAddr, port: fn(&UdpEncapsulation) -> u16| match &sa.encapsulation {
        Some(ports) => SocketAddr::new(address, port(ports)).to_string(),
        None => address.to_string(),
    };
    (
        end(sa.source, |ports| ports.source_port),
        end(sa.destination, |ports| ports.destination_port),
    )
}

fn more(all: usize, shown: usize, what: &str) -> String {
    match all.saturating_sub(shown) {
        0 => String::new(),
        rest => format!("and {rest} more {what}; --all shows them\n"),
    }
}

fn drops(status: &DatapathStatus) -> String {
    let mut table = Table::new(&["DROPPED", ">PACKETS", "WHY"]);
    let counted = |name: &str| status.drops.get(name).copied().filter(|count| *count > 0);
    for reason in DropReason::ALL {
        if let Some(count) = counted(reason.name()) {
            table.row([
                reason.name().to_owned(),
                count.to_string(),
                reason.help().to_owned(),
            ]);
        }
    }
    let text = table.text();
    if text.is_empty() {
        return "Dropped: nothing\n".to_owned();
    }
    text
}

fn problems(report: &Report) -> String {
    if report.problems.is_empty() {
        return String::new();
    }
    let mut text = "Problems\n".to_owned();
    for (number, problem) in report.problems.iter().enumerate() {
        if number == ROWS {
            // Writing to a string does not fail.
            let _ = writeln!(
                text,
                "  and {} more; --json has them",
                report.problems.len() - ROWS
            );
            break;
        }
        let _ = writeln!(text, "  {}", problem.replace('\n', "\n    "));
    }
    text
}

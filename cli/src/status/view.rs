//! The report as a screen of text.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

use culvert_packet::reason::DropReason;
use culvert_proto::policy::{Mode, short};
use culvert_proto::sa::{Action, Direction, Geneve, SaId, Selector, UdpEncapsulation};
use culvert_proto::status::{DatapathStatus, KernelSaStatus, KeymgrStatus, SaStatus};

use super::Report;
use super::tunnels::{self, Tunnel};
use crate::ask::{DATAPATH, KEYMGR};
use crate::table::{Table, bytes, duration};

/// Rows of policies and of SAs that a screen takes.
const ROWS: usize = 12;
/// Policies beside Geneve that are few.
const BESIDE: usize = 4;

pub(super) fn text(report: &Report, all: bool) -> String {
    let mut parts = vec![daemons(report)];
    let (datapath, keymgr) = (report.datapath.as_ref(), report.keymgr.as_ref());
    if let Some(datapath) = datapath {
        parts.push(ports(datapath));
        parts.push(workers(datapath));
    }
    if datapath.is_some() || keymgr.is_some() {
        let datapath_sas = datapath.map_or(&[][..], |status| &status.sas);
        let kernel_sas = keymgr.map_or(&[][..], |status| &status.kernel_sas);
        let tunnels = tunnels::join(datapath, keymgr);
        let fallback = keymgr.map(fallback).unwrap_or_default();
        parts.push(policies(&tunnels, datapath_sas, all) + &fallback);
        parts.push(sas(datapath_sas, kernel_sas, all));
        parts.push(keymgr.map_or_else(String::new, |status| beside(status, all)));
    }
    parts.push(datapath.map(drops).unwrap_or_default());
    parts.push(lines("Notices", &report.notices));
    parts.push(lines("Problems", &report.problems));
    parts.retain(|part| !part.is_empty());
    parts.join("\n")
}

/// Who serves which cipher, in few words.
fn aead(backends: &BTreeMap<String, String>) -> String {
    let mut served: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (cipher, backend) in backends {
        served.entry(backend).or_default().push(cipher);
    }
    let parts: Vec<String> = served
        .into_iter()
        .map(|(backend, ciphers)| {
            let ciphers = ciphers.join(", ");
            let ciphers = ciphers.replace("AES-128-GCM, AES-192-GCM, AES-256-GCM", "AES-GCM");
            format!("{ciphers} by {backend}")
        })
        .collect();
    parts.join(", ")
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
                "{}; CPU has {}",
                aead(&status.aead),
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
    let mut table = Table::new(&[
        "PORT",
        "INTERFACE",
        "XDP",
        "AF_XDP",
        ">QUEUES",
        ">MTU",
        "KIND",
    ]);
    for port in &status.ports {
        table.row([
            port.role.clone(),
            port.interface.clone(),
            port.xdp.clone(),
            port.af_xdp.clone(),
            port.queues.to_string(),
            port.mtu.to_string(),
            port.kind.clone(),
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

fn policies(tunnels: &[Tunnel<'_>], sas: &[SaStatus], all: bool) -> String {
    if tunnels.is_empty() {
        return "No policies: no Geneve is protected\n".to_owned();
    }
    let mut table = Table::new(&[
        "GENEVE BETWEEN",
        "AND",
        "ONLY",
        "PROTECTED BY",
        "?MODE",
        "KEYS FROM",
        "IKE PEER",
        ">AGE",
        ">REKEY IN",
    ]);
    let sas: HashMap<SaId, &SaStatus> = sas.iter().map(|sa| (id(sa), sa)).collect();
    // What is blocked first, so that it is on the screen, and then what the kernel has.
    let mut sorted: Vec<_> = tunnels.iter().collect();
    sorted.sort_by_key(|tunnel| (!tunnel.is_blocked(), !tunnel.is_with_kernel()));
    let shown = if all { sorted.len() } else { ROWS };
    for tunnel in sorted.iter().take(shown) {
        let (outbound, inbound) = match tunnel.policy.map(|policy| &policy.action) {
            Some(Action::Protect { outbound, inbound }) => (*outbound, &inbound[..]),
            _ => (None, &[][..]),
        };
        // Those that are being replaced say nothing of when the next ones are.
        let alive = outbound.iter().chain(inbound).filter_map(|id| sas.get(id));
        let alive: Vec<&SaStatus> = alive.copied().filter(|sa| sa.state == "alive").collect();
        let sa = outbound.and_then(|id| sas.get(&id));
        let none = || "-".to_owned();
        let mode = tunnel.mode().filter(|mode| *mode != Mode::PreferCulvert);
        table.row([
            short(&tunnel.selector.local),
            short(&tunnel.selector.remote),
            only(tunnel.selector),
            tunnel.protected_by(),
            mode.map_or("", Mode::name).to_owned(),
            tunnel.source().map_or_else(none, str::to_owned),
            tunnel
                .tunnel
                .and_then(|tunnel| tunnel.ike_peer)
                .map_or_else(none, |peer| peer.to_string()),
            sa.map_or_else(none, |sa| duration(seconds(sa.age_seconds))),
            rekey(&alive),
        ]);
    }
    table.text() + &more(sorted.len(), shown, "policies")
}

/// Whether the kernel's IPsec could stand in, or does.
fn fallback(status: &KeymgrStatus) -> String {
    let mut text = match (&status.kernel_problem, status.drained) {
        (None, true) => "drained: everything is with the kernel (culvert resume)".to_owned(),
        (Some(problem), true) => {
            format!("drained (culvert resume), and not everything is with the kernel: {problem}")
        }
        (Some(problem), false) => format!("not available: {problem}"),
        (None, false) => "kernel IPsec ready".to_owned(),
    };
    let times = |count| match count {
        1 => "once".to_owned(),
        count => format!("{count} times"),
    };
    let handovers = &status.handovers;
    if handovers.to_kernel > 0 || handovers.to_culvert > 0 {
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "; the kernel has taken over {}, Culvert {}, the last time within {} ms",
            times(handovers.to_kernel),
            times(handovers.to_culvert),
            handovers.last_milliseconds
        );
    }
    format!("Fallback: {text}\n")
}

/// What the kernel protects beside Geneve.
fn beside(status: &KeymgrStatus, all: bool) -> String {
    let policies = &status.kernel_policies;
    if policies.len() > BESIDE && !all {
        return format!(
            "Beside Geneve, by the kernel: {} policies; --all shows them\n",
            policies.len()
        );
    }
    if policies.is_empty() {
        return String::new();
    }
    format!(
        "Beside Geneve, by the kernel\n  {}\n",
        policies.join("\n  ")
    )
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

fn sas(datapath: &[SaStatus], kernel: &[KernelSaStatus], all: bool) -> String {
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
        "?IN",
    ]);
    // What the kernel has the datapath may still know: it is with the kernel.
    let with_kernel: HashSet<SaId> = kernel.iter().map(kernel_id).collect();
    let datapath: Vec<&SaStatus> = datapath
        .iter()
        .filter(|sa| !with_kernel.contains(&id(sa)))
        .collect();
    let count = datapath.len() + kernel.len();
    let shown = if all { count } else { ROWS };
    for sa in kernel.iter().take(shown) {
        table.row([
            sa.spi.to_string(),
            sa.direction.to_string(),
            sa.source.to_string(),
            sa.destination.to_string(),
            sa.algorithm.clone(),
            sa.packets.to_string(),
            bytes(sa.bytes),
            sa.sequence.to_string(),
            "-".to_owned(),
            "alive".to_owned(),
            "kernel".to_owned(),
        ]);
    }
    for sa in datapath.iter().take(shown.saturating_sub(kernel.len())) {
        let (from, to) = ends(sa);
        let window = match sa.direction {
            Direction::In => sa.replay_window.to_string(),
            Direction::Out => "-".to_owned(),
        };
        let place = if kernel.is_empty() { "" } else { "culvert" };
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
            place.to_owned(),
        ]);
    }
    table.text() + &more(count, shown, "SAs")
}

fn kernel_id(sa: &KernelSaStatus) -> SaId {
    SaId {
        direction: sa.direction,
        spi: sa.spi,
        destination: sa.destination,
    }
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

/// A heading and what is under it, if anything is.
fn lines(heading: &str, list: &[String]) -> String {
    if list.is_empty() {
        return String::new();
    }
    let mut text = format!("{heading}\n");
    for line in list.iter().take(ROWS) {
        text += &format!("  {}\n", line.replace('\n', "\n    "));
    }
    if list.len() > ROWS {
        text += &format!("  and {} more; --json has them\n", list.len() - ROWS);
    }
    text
}

//! System tests: the lab with the real daemons, iperf3, and judges that are not ours.
//!
//! A test that needs what this machine lacks is listed as `skipped: why`, and counted.

mod bench;
mod campaign;
mod commands;
mod faults;
mod interop;
mod jumbo;
mod lives;
mod modes;
mod ovs;
mod packaging;
mod parts;
mod policies;
mod rekey;
mod sizes;
mod strongswan;
mod strongswan_docs;
mod strongswan_faults;
mod strongswan_rekey;
mod tap;
mod tcp;
mod wire;

use std::process::{Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use culvert_datapath::tap::Tap;
use culvert_tests::lab::{missing, set_host_port};
use culvert_tests::{negotiated, netns};
use libtest_mimic::{Arguments, Failed, Trial};

type Test = fn() -> anyhow::Result<()>;

/// Longest time that a test may take. The longest takes one minute; one that hangs must not hold up the others.
const LIMIT: Duration = Duration::from_mins(6);

fn main() {
    let mut arguments = Arguments::from_args();
    // They share two cores, and measure.
    arguments.test_threads = Some(1);
    let lab = missing();
    let scapy = lab.clone().or_else(missing_scapy);
    let parts = lab.clone().or_else(parts::missing);
    let strongswan = parts.clone().or_else(negotiated::missing);
    let other = lab.clone().or_else(strongswan_docs::other_version_missing);
    let trials = [
        tests(&lab, commands::TESTS),
        tests(&lab, bench::TESTS),
        tests(&lab, wire::TESTS),
        tests(&lab, faults::TESTS),
        tests(&lab, rekey::TESTS),
        tests(&lab, policies::TESTS),
        tests(&lab, lives::TESTS),
        tests(&lab, sizes::TESTS),
        tests(&lab, jumbo::TESTS),
        tests(&lab, modes::TESTS),
        tests(&lab, tap::TESTS),
        tests(&lab, tcp::TESTS),
        tests_within(&lab, campaign::TESTS, campaign::limit(), None),
        tests(&lab, packaging::TESTS),
        tests(&packaging::systemd_missing(), packaging::ANALYZE),
        tests(&parts, parts::TESTS),
        tests(&strongswan, strongswan::TESTS),
        tests(&strongswan, strongswan_docs::TESTS),
        tests(&strongswan, strongswan_faults::TESTS),
        tests(&other, strongswan_docs::OTHER_VERSION),
        tests(&strongswan, strongswan_rekey::TESTS),
        tests(&strongswan, ovs::TESTS),
        tests(&scapy, interop::TESTS),
    ];
    let again = [
        on_veth(&lab, wire::TESTS),
        on_veth(&lab, faults::TESTS),
        on_veth(&lab, rekey::TESTS),
        on_veth(&lab, policies::TESTS),
        on_veth(&lab, lives::TESTS),
        on_veth(&lab, sizes::TESTS),
        on_veth(&lab, modes::TESTS),
        on_veth(&lab, campaign::TESTS),
        on_veth(&strongswan, strongswan::TESTS),
        on_veth(&strongswan, strongswan_docs::TESTS),
        on_veth(&strongswan, strongswan_faults::TESTS),
        on_veth(&strongswan, strongswan_rekey::TESTS),
        on_veth(&strongswan, ovs::TESTS),
        on_veth(&scapy, interop::TESTS),
    ];
    let all = trials.into_iter().chain(again).flatten().collect();
    libtest_mimic::run(&arguments, all).exit();
}

/// Those that take long, and of which others show most. `./dev test --all` has them.
const RARE: &[&str] = &[
    "receiving_datapath_killed_under_load",
    "strongswan_self_signed",
    "strongswan_ca",
    "strongswan_ipsec_conf",
    "strongswan_dead_peer",
    "strongswan_charon_restarted_under_load",
    "strongswan_two_hundred_peers",
    "ovs_refresh_and_restart_do_not_hurt",
];

/// Whose ways do not depend on what the host port is, or which the guest's tests show with a veth pair. `./dev test --all` has them
/// on one here, too.
const RARE_ON_VETH: &[&str] = &["strongswan_", "ovs_", "fault_campaign"];

/// Whether every test is wanted, however long it takes.
pub(crate) fn every_case() -> bool {
    std::env::var_os("CULVERT_EVERY_CASE").is_some()
}

fn rare(name: &str, host_port: HostPort) -> Option<String> {
    let on_veth = || RARE_ON_VETH.iter().any(|rare| name.starts_with(rare));
    let rare = RARE.contains(&name) || host_port.is_some() && on_veth();
    (rare && !every_case()).then(|| "`./dev test --all` has it".to_owned())
}

fn tests(missing: &Option<String>, list: &[(&str, Test)]) -> Vec<Trial> {
    tests_within(missing, list, LIMIT, None)
}

/// The same tests once more, with a veth pair as the host port, if Culvert itself chooses a TAP here.
fn on_veth(missing: &Option<String>, list: &[(&str, Test)]) -> Vec<Trial> {
    if matches!(Tap::has_superpackets(), Ok(true)) {
        tests_within(missing, list, LIMIT.max(campaign::limit()), Some("veth"))
    } else {
        Vec::new()
    }
}

/// The kind of host port, if it is not for Culvert to choose.
type HostPort = Option<&'static str>;

fn tests_within(
    missing: &Option<String>,
    list: &[(&str, Test)],
    limit: Duration,
    host_port: HostPort,
) -> Vec<Trial> {
    list.iter()
        .map(|&(name, test)| {
            let shown = match host_port {
                Some(kind) => format!("{kind}_{name}"),
                None => name.to_owned(),
            };
            match missing.clone().or_else(|| rare(name, host_port)) {
                None => Trial::test(shown, move || {
                    set_host_port(host_port);
                    within_limit(test, limit)
                }),
                Some(why) => Trial::test(format!("{shown}: skipped: {why}"), || Ok(()))
                    .with_ignored_flag(true),
            }
        })
        .collect()
}

/// Runs a test; one that takes too long fails, and loses its lab, which ends whatever it waits for.
fn within_limit(test: Test, limit: Duration) -> Result<(), Failed> {
    let (done, result) = mpsc::channel();
    std::thread::spawn(move || done.send(test()));
    match result.recv_timeout(limit) {
        Ok(result) => result.map_err(|error| Failed::from(format!("{error:#}"))),
        Err(mpsc::RecvTimeoutError::Disconnected) => Err(Failed::from("it panicked")),
        Err(mpsc::RecvTimeoutError::Timeout) => {
            netns::remove_own();
            Err(Failed::from(format!("not done after {limit:?}")))
        }
    }
}

fn missing_scapy() -> Option<String> {
    let python = interop::python();
    let works = runs(Command::new(&python).args(["-c", "import scapy.layers.ipsec, cryptography"]));
    (!works).then(|| {
        format!(
            "{} has no scapy; `./dev setup` installs it",
            python.display()
        )
    })
}

/// Whether a program can be started at all; what it makes of its arguments does not matter but for Python.
fn runs(command: &mut Command) -> bool {
    let output = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let python = command.get_args().any(|argument| argument == "-c");
    output.is_ok_and(|status| status.success() || !python)
}

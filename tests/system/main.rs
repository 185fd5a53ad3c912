//! System tests: the lab with the real daemons, iperf3, and judges that are not ours.
//!
//! A test that needs what this machine lacks is listed as `skipped: why`, and counted.

mod commands;
mod faults;
mod interop;
mod rekey;
mod wire;

use std::process::{Command, Stdio};

use libtest_mimic::{Arguments, Failed, Trial};

type Test = fn() -> anyhow::Result<()>;

fn main() {
    let mut arguments = Arguments::from_args();
    // They share two cores, and measure.
    arguments.test_threads = Some(1);
    let lab = missing_for_lab();
    let scapy = lab.clone().or_else(missing_scapy);
    let trials = [
        tests(&lab, commands::TESTS),
        tests(&lab, wire::TESTS),
        tests(&lab, faults::TESTS),
        tests(&lab, rekey::TESTS),
        tests(&scapy, interop::TESTS),
    ];
    libtest_mimic::run(&arguments, trials.into_iter().flatten().collect()).exit();
}

fn tests(missing: &Option<String>, list: &[(&str, Test)]) -> Vec<Trial> {
    list.iter()
        .map(|&(name, test)| match missing {
            None => Trial::test(name, move || {
                test().map_err(|error| Failed::from(format!("{error:#}")))
            }),
            Some(why) => {
                Trial::test(format!("{name}: skipped: {why}"), || Ok(())).with_ignored_flag(true)
            }
        })
        .collect()
}

/// Why there can be no lab here, if so.
fn missing_for_lab() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root, for namespaces and eBPF".to_owned());
    }
    [
        "ip", "nft", "ethtool", "iperf3", "ping", "tcpdump", "sysctl",
    ]
    .into_iter()
    .find(|program| !runs(Command::new(program).arg("--version")))
    .map(|program| format!("there is no {program}"))
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

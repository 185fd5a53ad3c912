//! The machine and what runs on it.

use culvert_proto::status::{DatapathStatus, KeymgrStatus};

use super::Finding;
use crate::ask::Trouble;

pub(super) fn examine() -> Vec<Finding> {
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    vec![ciphers(&cpu), irqbalance(&running())]
}

/// How fast AES-GCM can be.
fn ciphers(cpuinfo: &str) -> Finding {
    let flags: Vec<&str> = cpuinfo
        .lines()
        .find(|line| line.starts_with("flags") || line.starts_with("Features"))
        .and_then(|line| line.split_once(':'))
        .map(|(_, flags)| flags.split_whitespace().collect())
        .unwrap_or_default();
    let has = |wanted: &[&str]| wanted.iter().all(|flag| flags.contains(flag));
    let there: Vec<_> = [
        "aes",
        "pclmulqdq",
        "pmull",
        "vaes",
        "vpclmulqdq",
        "avx2",
        "avx512f",
    ]
    .into_iter()
    .filter(|flag| has(&[flag]))
    .collect();
    let there = there.join(" ");
    if has(&["vaes", "vpclmulqdq"]) || has(&["aes", "pmull"]) {
        Finding::ok("CPU", there)
    } else if has(&["aes", "pclmulqdq"]) {
        Finding::ok(
            "CPU",
            format!("{there} (one with VAES is about twice as fast)"),
        )
    } else {
        Finding::warn(
            "CPU",
            "no AES instructions: AES-GCM is slow",
            "cipher = \"chacha20poly1305\"; in a virtual machine, the host's CPU model (-cpu host)",
        )
    }
}

/// Names of the processes that run.
fn running() -> Vec<String> {
    let Ok(folders) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    folders
        .filter_map(|folder| std::fs::read_to_string(folder.ok()?.path().join("comm")).ok())
        .map(|name| name.trim_end().to_owned())
        .collect()
}

fn irqbalance(running: &[String]) -> Finding {
    if running.iter().any(|name| name == "irqbalance") {
        Finding::warn(
            "irqbalance",
            "runs: it moves the NIC's interrupts away from the workers' cores",
            "systemctl disable --now irqbalance",
        )
    } else {
        Finding::ok("irqbalance", "does not run")
    }
}

/// Whether the daemons run, and how well.
pub(super) fn daemons(
    datapath: &Result<DatapathStatus, Trouble>,
    keymgr: &Result<KeymgrStatus, Trouble>,
) -> Vec<Finding> {
    let mut findings = Vec::new();
    match datapath {
        Err(trouble) => findings.push(silent("datapath", trouble)),
        Ok(status) => {
            findings.push(Finding::ok(
                "datapath",
                format!("runs (process {})", status.pid),
            ));
            // The host port is ours, a veth that has no zero-copy.
            for port in status.ports.iter().filter(|port| port.role == "wire") {
                findings.push(mode(&port.interface, &port.xdp, &port.af_xdp));
            }
        }
    }
    match keymgr {
        Err(trouble) => findings.push(silent("key manager", trouble)),
        Ok(status) => findings.push(match (&status.refused, &status.datapath_problem) {
            (None, None) => Finding::ok("key manager", format!("runs (process {})", status.pid)),
            (Some(text), _) => Finding::warn(
                "key manager",
                format!(
                    "not all is taken over from its source: {}",
                    text.replace('\n', "; ")
                ),
                format!("mend {}, then: culvert reload", status.source),
            ),
            (None, Some(text)) => Finding::warn(
                "key manager",
                format!("the datapath does not have what is wanted: {text}"),
                "culvert status",
            ),
        }),
    }
    findings
}

/// Culvert need not run yet on a machine that is looked at.
fn silent(check: &'static str, trouble: &Trouble) -> Finding {
    match trouble {
        Trouble::Down { start, .. } => Finding::warn(check, "does not run", start),
        Trouble::Other(text) => Finding::warn(check, text, "culvert status"),
    }
}

fn mode(interface: &str, xdp: &str, af_xdp: &str) -> Finding {
    let found = format!("{interface}: XDP {xdp}, AF_XDP {af_xdp}");
    if xdp == "generic" {
        Finding::warn(
            "XDP mode",
            found + "; every packet is copied, and GRO is undone",
            "a driver with native XDP (ice, i40e, ixgbe, mlx5, virtio_net, ena, ...)",
        )
    } else if af_xdp == "copy" {
        Finding::warn(
            "XDP mode",
            found + "; every packet is copied",
            "a driver with AF_XDP zero-copy (ice, i40e, ixgbe, igc, mlx5, ...)",
        )
    } else {
        Finding::ok("XDP mode", found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn the_cpu_is_judged_by_its_flags() {
        for (flags, level, wanted) in [
            (
                "flags\t\t: fpu aes pclmulqdq avx2 vaes vpclmulqdq",
                Level::Ok,
                "vaes",
            ),
            ("flags : aes pclmulqdq avx2", Level::Ok, "twice as fast"),
            ("Features : fp asimd aes pmull sha1", Level::Ok, "pmull"),
            ("flags : fpu sse2", Level::Warn, "slow"),
            ("", Level::Warn, "slow"),
        ] {
            let finding = ciphers(&format!("processor : 0\n{flags}\n"));
            assert_eq!(finding.level, level, "{flags}");
            assert!(finding.found.contains(wanted), "{}", finding.found);
        }
    }

    #[test]
    fn irqbalance_is_found_by_name() {
        let running = ["bash".to_owned(), "irqbalance".to_owned()];
        assert_eq!(irqbalance(&running).level, Level::Warn);
        assert_eq!(irqbalance(&running[..1]).level, Level::Ok);
    }

    #[test]
    fn slow_modes_are_said() {
        assert_eq!(mode("eth1", "native", "zero-copy").level, Level::Ok);
        assert!(mode("eth1", "native", "copy").found.contains("copied"));
        assert!(
            mode("eth1", "generic", "copy")
                .mend
                .unwrap()
                .contains("native XDP")
        );
    }

    #[test]
    fn daemons_that_do_not_run_can_be_started() {
        let down = Trouble::Down {
            program: "x",
            socket: "x.sock".into(),
            start: "x --run-dir y".to_owned(),
        };
        let other = Trouble::Other("culvert-keymgr: no answer".to_owned());
        let findings = daemons(&Err(down), &Err(other));
        assert_eq!(findings[0].mend.as_deref(), Some("x --run-dir y"));
        assert!(findings[1].found.contains("no answer"));
    }
}

//! What the kernel must be able to do.

use std::io;
use std::path::Path;

use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use super::{Finding, probe};

/// The oldest kernel: a UMEM shared by the sockets of two interfaces.
const OLDEST: (u32, u32) = (5, 10);

pub(super) fn examine() -> Vec<Finding> {
    let release = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    let mut findings = vec![version(&release)];
    if !nix::unistd::geteuid().is_root() {
        findings.push(Finding::fail(
            "root",
            "not root: what the kernel allows cannot be tried out",
            "sudo culvert doctor",
        ));
        return findings;
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    findings.extend([
        capabilities(&status),
        trial(
            "AF_XDP",
            "sockets can be made",
            probe::af_xdp(),
            "a kernel with CONFIG_XDP_SOCKETS",
        ),
        trial(
            "BPF: XDP",
            "programs can be loaded",
            probe::load_program(probe::PROGRAM_XDP).map(drop),
            "a kernel with CONFIG_BPF_SYSCALL and CONFIG_NET",
        ),
        trial(
            "BPF: tc",
            "programs can be loaded",
            probe::load_program(probe::PROGRAM_SCHED_CLS).map(drop),
            "a kernel with CONFIG_NET_CLS_BPF",
        ),
        trial(
            "BPF: socket map",
            "can be made",
            probe::socket_map(),
            "a kernel with CONFIG_XDP_SOCKETS",
        ),
        tcx(probe::tcx()),
        bpffs(),
        jit(&std::fs::read_to_string("/proc/sys/net/core/bpf_jit_enable").unwrap_or_default()),
    ]);
    findings
}

fn version(release: &str) -> Finding {
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .map(|part| part.parse().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    let (major, minor) = OLDEST;
    if version < OLDEST {
        Finding::fail(
            "kernel",
            format!("Linux {release} is too old"),
            format!("boot Linux {major}.{minor} or later; 6.6 or later is better"),
        )
    } else {
        Finding::ok("kernel", format!("Linux {release}"))
    }
}

/// Capabilities by number (linux/capability.h) and name.
const CAPABILITIES: [(u32, &str); 4] = [
    (12, "CAP_NET_ADMIN"),
    (13, "CAP_NET_RAW"),
    (14, "CAP_IPC_LOCK"),
    (21, "CAP_SYS_ADMIN"),
];

fn capabilities(status: &str) -> Finding {
    let effective = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|value| u64::from_str_radix(value.trim(), 16).ok())
        .unwrap_or(0);
    let lacking: Vec<_> = CAPABILITIES
        .iter()
        .filter(|(number, _)| effective >> number & 1 == 0)
        .map(|(_, name)| *name)
        .collect();
    if lacking.is_empty() {
        Finding::ok(
            "capabilities",
            CAPABILITIES.map(|(_, name)| name).join(", "),
        )
    } else {
        Finding::fail(
            "capabilities",
            format!("lacking: {}", lacking.join(", ")),
            "run as root outside of a container, or give it these (docker run --cap-add, \
             CapabilityBoundingSet= of the service)",
        )
    }
}

/// What came of trying something out.
fn trial(check: &'static str, good: &str, result: io::Result<()>, needs: &str) -> Finding {
    match result {
        Ok(()) => Finding::ok(check, good),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Finding::fail(
            check,
            format!("not allowed: {error}"),
            "allow it: seccomp filters of a container or lockdown mode (cat \
             /sys/kernel/security/lockdown) forbid it",
        ),
        Err(error) => Finding::fail(check, error.to_string(), format!("boot {needs}")),
    }
}

fn tcx(result: io::Result<bool>) -> Finding {
    match result {
        Ok(true) => Finding::ok("BPF: tcx", "there is"),
        Ok(false) => Finding::warn(
            "BPF: tcx",
            "there is none: a clsact filter stands in, which other programs may remove",
            "boot Linux 6.6 or later",
        ),
        // Said at the program.
        Err(error) => Finding::warn("BPF: tcx", format!("not known: {error}"), "see BPF: tc"),
    }
}

fn bpffs() -> Finding {
    const PATH: &str = "/sys/fs/bpf";
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    if !known
        .lines()
        .any(|line| line.split_whitespace().last() == Some("bpf"))
    {
        return Finding::fail(
            "bpffs",
            "the kernel has none",
            "boot a kernel with CONFIG_BPF_SYSCALL",
        );
    }
    match statfs(Path::new(PATH)) {
        Ok(stat) if stat.filesystem_type() == BPF_FS_MAGIC => {
            Finding::ok("bpffs", format!("mounted on {PATH}"))
        }
        _ => Finding::warn(
            "bpffs",
            format!("not mounted on {PATH}: the datapath mounts its own, which others may not see"),
            format!("mount -t bpf bpf {PATH}"),
        ),
    }
}

fn jit(enabled: &str) -> Finding {
    match enabled.trim() {
        "0" => Finding::warn(
            "BPF: JIT",
            "off: the steering programs are interpreted",
            "sysctl -w net.core.bpf_jit_enable=1",
        ),
        // A kernel that always compiles need not have the setting.
        _ => Finding::ok("BPF: JIT", "on"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Level;

    #[test]
    fn versions_are_compared_by_number() {
        for (release, level) in [
            ("6.1.0-18-amd64", Level::Ok),
            ("5.10", Level::Ok),
            ("5.9.16", Level::Fail),
            ("4.19.0", Level::Fail),
            ("", Level::Fail),
        ] {
            assert_eq!(version(release).level, level, "{release}");
        }
    }

    #[test]
    fn what_is_not_allowed_is_told_from_what_is_not_there() {
        let refused = trial("x", "", Err(io::Error::from_raw_os_error(libc::EPERM)), "y");
        assert!(refused.mend.unwrap().contains("seccomp"));
        let absent = trial(
            "x",
            "",
            Err(io::Error::from_raw_os_error(libc::EAFNOSUPPORT)),
            "y",
        );
        assert_eq!(absent.mend.unwrap(), "boot y");
        assert_eq!(tcx(Ok(false)).level, Level::Warn);
        assert_eq!(jit("0\n").level, Level::Warn);
        assert_eq!(jit("").level, Level::Ok);
    }

    #[test]
    fn lacking_capabilities_are_named() {
        let all = capabilities("Name:\tx\nCapEff:\t000001ffffffffff\n");
        assert_eq!(all.level, Level::Ok);
        let docker = capabilities("CapEff:\t00000000a80425fb\n");
        assert!(docker.found.contains("CAP_NET_ADMIN") && docker.found.contains("CAP_SYS_ADMIN"));
        assert!(!docker.found.contains("CAP_NET_RAW"), "{}", docker.found);
    }
}

//! A host whose systemd starts Culvert by the units that are packaged, as `./dev install` has put them there.
//!
//! Its processes, `/usr`, `/etc`, `/var` and `/run` are its own, its systemd is the first of its processes, and starts
//! nothing but journald and Culvert.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use culvert_proto::policy::Place;
use culvert_proto::sa::Cipher;
use culvert_proto::status::{DatapathStatus, SaStatus};
use culvert_tests::keys::{Generation, keymgr_config};
use culvert_tests::lab::{datapath_status, keymgr_status, program};
use culvert_tests::netns::{Home, Namespace, run, wait_for};
use culvert_tests::systemd::{self, PROGRAM};

pub(crate) const TEST: (&str, fn() -> Result<()>) = (
    "systemd_starts_the_daemons_and_starts_them_again",
    starts_and_starts_again,
);

/// Longest time until something has happened, on emulated CPUs.
const LIMIT: Duration = Duration::from_mins(2);

const DAEMONS: [&str; 2] = ["culvert-datapath", "culvert-keymgr"];

/// Makes the host out of namespaces that are new, and becomes its systemd.
const BOOT: &str = r#"
mount -t proc proc /proc
mount -t tmpfs -o mode=755 tmpfs /run
mkdir /run/lock /run/layers
for part in usr etc var; do
    lower=/$part
    [ "$CULVERT_SYSTEMD" = / ] || [ $part != usr ] || lower=$CULVERT_SYSTEMD/usr:/usr
    mkdir /run/layers/$part /run/layers/$part.work
    mount -t overlay -o lowerdir=$lower,upperdir=/run/layers/$part,workdir=/run/layers/$part.work overlay /$part
done
umount -R /sys/fs/cgroup
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
# Copying programs with all that debuggers want would take longer than anything else here.
mkdir /run/built
for name in culvert-datapath culvert-keymgr culvert culvert-bench libstrongswan_kernel_culvert.so; do : >/run/built/$name; done
PREFIX=/usr CULVERT_BUILT=/run/built "$DEV" install
mount --bind "$PROGRAMS/culvert-datapath" /usr/sbin/culvert-datapath
mount --bind "$PROGRAMS/culvert-keymgr" /usr/sbin/culvert-keymgr
mount --bind "$PROGRAMS/culvert" /usr/bin/culvert
mkdir -m 700 /etc/culvert
echo 'wire = "wire0"' >/etc/culvert/datapath.toml
(umask 077; echo "$KEYS" >/etc/culvert/keymgr.toml)
mkdir -p /run/systemd/system
cat >/run/systemd/system/culvert-tests.target <<END
[Unit]
DefaultDependencies=no
Wants=systemd-journald.service culvert-keymgr.service culvert-datapath.service
END
exec env -i PATH="$PATH" container=culvert-tests "/$PROGRAM" --unit=culvert-tests.target --log-target=kmsg
"#;

/// The host.
struct Host {
    network: Namespace,
    /// What its first process is to us.
    pid: String,
    /// `unshare`, with which it ends.
    _unshare: Child,
    home: Home,
}

impl Host {
    fn boot() -> Result<Self> {
        let home = Home::new(false)?;
        let network = Namespace::new(home.name("-s"))?;
        network.ip("link add wire0 type veth peer name wire1")?;
        network.ip("address add 192.0.2.1/24 dev wire0")?;
        network.ip("link set wire0 up")?;
        network.ip("link set wire1 up")?;
        network.ip("neighbour add 192.0.2.2 lladdr 02:00:00:00:00:02 dev wire0")?;
        let keys = Generation::new(Cipher::Aes256Gcm16, SPIS)?;
        let ends = ["192.0.2.1".parse()?, "192.0.2.2".parse()?];

        let mut command = network.command("unshare");
        command.args(["--pid", "--fork", "--kill-child", "--mount", "--cgroup"]);
        command.args(["--uts", "--ipc", "--propagation", "private"]);
        command.args(["sh", "-euc", BOOT]);
        let programs = program(DAEMONS[0])?;
        command
            .env("DEV", concat!(env!("CARGO_MANIFEST_DIR"), "/../dev"))
            .env("PROGRAMS", programs.parent().context("no folder")?)
            .env("KEYS", keymgr_config(0, ends, &[&keys], 0)?)
            .env("PROGRAM", PROGRAM)
            .env(systemd::VARIABLE, systemd::find()?);
        let unshare = home.spawn(command, &home.path().join("systemd.log"))?;
        let mut pid = String::new();
        wait_for("the first process", LIMIT, || {
            let id = unshare.id().to_string();
            pid = run(Command::new("pgrep").args(["-P", &id])).unwrap_or_default();
            !pid.is_empty()
        })?;
        Ok(Self {
            network,
            pid: pid.trim().to_owned(),
            _unshare: unshare,
            home,
        })
    }

    /// A path on the host, as it is here.
    fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    fn run_directory(&self) -> PathBuf {
        self.path("/run/culvert")
    }

    /// Runs a command on the host.
    fn run(&self, command: &[&str]) -> Result<String> {
        let mut enter = self.network.command("nsenter");
        enter.args(["--target", &self.pid, "--mount", "--pid", "--cgroup", "--"]);
        run(enter.args(command))
    }

    fn systemctl(&self, arguments: &[&str]) -> Result<String> {
        self.run(&[&["systemctl"], arguments].concat())
    }

    /// Waits until the datapath has its keys, and is not the process `before` any more.
    fn filled(&self, before: u32) -> Result<DatapathStatus> {
        let run = self.run_directory();
        let mut status = None;
        wait_for("a datapath that has its keys", LIMIT, || {
            status = datapath_status(&run)
                .ok()
                .filter(|status| status.pid != before && !status.sas.is_empty());
            status.is_some() && keymgr_status(&run).is_ok_and(|status| status.datapath_in_sync)
        })
        .with_context(|| self.log())?;
        status.context("no status")
    }

    /// What was said, and what runs.
    fn log(&self) -> String {
        let output = std::fs::read_to_string(self.home.path().join("systemd.log"));
        let journal = ["journalctl", "--no-pager", "-o", "cat", "-n", "40"];
        let more: [&[&str]; 3] = [
            &journal,
            &["ps", "-ef"],
            &["sh", "-c", "dmesg | tail -n 40"],
        ];
        let more = more.map(|command| match self.run(command) {
            Ok(text) => text,
            Err(error) => format!("{error:#}"),
        });
        format!("{}\n{}", output.unwrap_or_default(), more.join("\n"))
    }

    /// Sends Geneve to the peer.
    fn send(&self, packets: u64) -> Result<()> {
        self.network.within(|| {
            let socket = UdpSocket::bind("192.0.2.1:0")?;
            let mut packet = [0; 80];
            packet[2..4].copy_from_slice(&[0x65, 0x58]);
            for _ in 0..packets {
                socket.send_to(&packet, "192.0.2.2:6081")?;
            }
            Ok(())
        })
    }

    /// Sends ten packets and waits until they are sealed, the last under the number `last`.
    fn seals(&self, last: u64) -> Result<()> {
        self.send(10)?;
        let sealed =
            || -> Result<u64> { Ok(out(&datapath_status(&self.run_directory())?)?.sequence) };
        wait_for("what was sent to be sealed", LIMIT, || {
            sealed().is_ok_and(|sequence| sequence >= last)
        })?;
        ensure!(sealed()? == last, "{} instead of {last}", sealed()?);
        Ok(())
    }

    fn signal(&self, signal: &str, pid: u32) -> Result<()> {
        self.run(&["kill", signal, &pid.to_string()]).map(drop)
    }
}

const SPIS: [u32; 2] = [0x1001, 0x2001];

fn out(status: &DatapathStatus) -> Result<&SaStatus> {
    let mut sas = status.sas.iter();
    sas.find(|sa| sa.spi.get() == SPIS[0]).context("no SA")
}

fn starts_and_starts_again() -> Result<()> {
    let host = Host::boot()?;
    let socket = host.path("/run/systemd/private");
    wait_for("systemd", LIMIT, || socket.exists()).with_context(|| host.log())?;

    // Started, and nothing that they need is forbidden.
    let first = host.filled(0)?;
    let settled = || host.systemctl(&["is-active", DAEMONS[0], DAEMONS[1]]);
    wait_for("both to be active", LIMIT, || {
        settled().is_ok_and(|text| text == "active\nactive\n")
    })
    .with_context(|| host.log())?;
    ensure!(
        first.ports.iter().all(|port| port.xdp == "native"),
        "{:?}",
        first.ports
    );
    host.seals(10)?;
    host.run(&["culvert", "status"])?;
    ensure!(host.path("/run/charon.culvert").exists(), "no bridge");
    for pid in [first.pid, keymgr_status(&host.run_directory())?.pid] {
        confined(&host, pid)?;
    }

    // Again, by hand, after a crash, and when it hangs. The numbers go on.
    host.systemctl(&["restart", DAEMONS[0]])?;
    let second = host.filled(first.pid)?;
    host.seals(20)?;
    host.signal("-KILL", second.pid)?;
    let third = host.filled(second.pid)?;
    host.seals(30)?;
    host.signal("-STOP", third.pid)?;
    let fourth = host.filled(third.pid)?;
    host.seals(40)?;
    let restarts = host.systemctl(&["show", "-P", "NRestarts", DAEMONS[0]])?;
    ensure!(restarts.trim().parse::<u32>()? >= 2, "restarts: {restarts}");

    // The key manager, too: it finds the state of the SAs.
    host.systemctl(&["reload", DAEMONS[1]])?;
    let keymgr = keymgr_status(&host.run_directory())?.pid;
    host.signal("-KILL", keymgr)?;
    wait_for("another key manager", LIMIT, || {
        keymgr_status(&host.run_directory())
            .is_ok_and(|status| status.pid != keymgr && status.datapath_in_sync)
    })
    .with_context(|| host.log())?;
    host.seals(50)?;

    // Stopped: the guard stays, and the kernel seals until it is started again.
    host.systemctl(&["stop", DAEMONS[0]])?;
    ensure!(!Path::new(&format!("/proc/{}/root/proc/{}", host.pid, fourth.pid)).exists());
    let pins: Vec<_> = std::fs::read_dir(host.path("/sys/fs/bpf/culvert"))?
        .map(|pin| Ok(pin?.file_name().to_string_lossy().into_owned()))
        .collect::<Result<_>>()?;
    for program in ["egress-", "wire-", "host-"] {
        ensure!(pins.iter().any(|pin| pin.starts_with(program)), "{pins:?}");
    }
    let kernel = || keymgr_status(&host.run_directory());
    wait_for("the kernel to serve", LIMIT, || {
        kernel().is_ok_and(|status| status.tunnels.iter().all(|it| it.place == Place::Kernel))
    })
    .with_context(|| host.log())?;
    host.send(10)?;
    let sas = kernel()?.kernel_sas;
    ensure!(sas.iter().any(|sa| sa.sequence == 60), "{sas:?}");
    host.systemctl(&["start", DAEMONS[0]])?;
    host.filled(fourth.pid)?;
    host.seals(70)
}

/// A daemon has few capabilities, a filter of system calls, and memory that is not dumped.
fn confined(host: &Host, pid: u32) -> Result<()> {
    let read = |file: &str| std::fs::read_to_string(host.path(&format!("/proc/{pid}/{file}")));
    let status = read("status")?;
    let value = |name: &str| {
        let mut lines = status.lines();
        lines.find_map(|line| {
            Some(
                line.strip_prefix(name)?
                    .strip_prefix(':')?
                    .trim()
                    .to_owned(),
            )
        })
    };
    let capabilities = u64::from_str_radix(&value("CapBnd").context("CapBnd")?, 16)?;
    ensure!(
        capabilities.count_ones() <= 4
            && value("CapPrm") == value("CapBnd")
            && value("NoNewPrivs").as_deref() == Some("1")
            && value("Seccomp").as_deref() == Some("2"),
        "{status}"
    );
    let limits = read("limits")?;
    let core = limits.lines().find(|line| line.contains("core file"));
    ensure!(
        core.is_some_and(|line| line.split_whitespace().nth(4) == Some("0")),
        "{limits}"
    );
    Ok(())
}

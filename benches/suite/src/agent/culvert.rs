//! Culvert's daemons. Secrets: of each SA in turn, the keys from side 0 to side 1 and back.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culvert_proto::{DATAPATH_SOCKET, KEYMGR_SOCKET};
use culvert_tests::geneve::VNI;
use culvert_tests::keys::write_private;
use culvert_tests::lab::{datapath_status, keymgr_status, tail};
use culvert_tests::netns::{Home, run, wait_for};

use super::usage::{Usage, memory};
use super::{Setup, own_program};
use crate::way::Way;

/// The host port: not that of a Culvert that is installed, which a run between machines must leave alone.
pub(super) const HOST_PORT: &str = "cvbhost0";
/// First SPIs from side 0 to side 1, and back.
const SPIS: [u32; 2] = [0x0100_0000, 0x0200_0000];
/// Time for a daemon to come up, and for ten thousand SAs, on emulated CPUs too.
const LIMIT: Duration = Duration::from_mins(2);

/// The daemons of this side. They end with this, and what they left of eBPF is removed.
pub(super) struct Culvert {
    folder: PathBuf,
    datapath: Child,
    keymgr: Option<Child>,
    started: Instant,
    filled: Option<f64>,
}

impl Culvert {
    /// Starts them.
    pub(super) fn start(setup: &Setup, home: &Home) -> Result<Self> {
        let folder = home.path();
        let mut settings = format!(
            "wire = \"{}\"\nhost_port = \"{}\"\nhost_interface = \"{HOST_PORT}\"\npins = \"{}\"\n",
            setup.wire,
            setup.way.host_port(),
            folder.join("bpf").display()
        );
        if setup.way == Way::CulvertBusy {
            settings += "busy_poll = true\n";
            run(&mut hold_interrupts(&setup.wire))?;
        }
        if !setup.cores.is_empty() {
            let _ = writeln!(
                settings,
                "workers = {}\ncores = {:?}",
                setup.cores.len(),
                setup.cores
            );
        }
        std::fs::write(folder.join("datapath.toml"), settings)?;
        write_private(&folder.join("keymgr.toml"), &keys(setup)?)?;
        let mut datapath = Command::new(own_program("culvert-datapath")?);
        datapath.arg("--config").arg(folder.join("datapath.toml"));
        datapath.arg("--run-dir").arg(&folder);
        let log = folder.join("datapath.log");
        // From here on there is something to be taken away, whatever fails.
        let mut this = Self {
            datapath: home.spawn(datapath, &log)?,
            keymgr: None,
            started: Instant::now(),
            filled: None,
            folder,
        };
        let socket = this.folder.join(DATAPATH_SOCKET);
        wait_for("culvert-datapath", LIMIT, || {
            socket.exists() || matches!(this.datapath.try_wait(), Ok(Some(_)))
        })?;
        if let Some(status) = this.datapath.try_wait()? {
            bail!("culvert-datapath: {status}; {}", tail(&log));
        }
        let mut keymgr = Command::new(own_program("culvert-keymgr")?);
        for (option, name) in [
            ("--config", "keymgr.toml"),
            ("--run-dir", ""),
            ("--state-dir", "state"),
            ("--bridge", "charon.culvert"),
            ("--pins", "bpf"),
        ] {
            keymgr.arg(option).arg(this.folder.join(name));
        }
        this.started = Instant::now();
        this.keymgr = Some(home.spawn(keymgr, &this.folder.join("keymgr.log"))?);
        Ok(this)
    }

    /// Waits until the datapath has all that it is to have.
    pub(super) fn wait(&mut self) -> Result<()> {
        let filled = wait_for("the datapath to be filled", LIMIT, || {
            self.folder.join(KEYMGR_SOCKET).exists()
                && keymgr_status(&self.folder).is_ok_and(|status| status.datapath_in_sync)
        });
        filled.with_context(|| tail(&self.folder.join("keymgr.log")))?;
        self.filled
            .get_or_insert(self.started.elapsed().as_secs_f64());
        Ok(())
    }

    /// Adds what they have used up, and how the ports are bound.
    pub(super) fn usage(&self, usage: &mut Usage) -> Result<()> {
        let status = datapath_status(&self.folder)?;
        for worker in &status.workers {
            let name = match status.workers.len() {
                1 => "worker".to_owned(),
                _ => format!("worker {}", worker.id),
            };
            usage.seconds.insert(name, worker.cpu_seconds);
        }
        usage.process("datapath", self.datapath.id())?;
        usage.sealed = Some(status.workers.iter().map(|worker| worker.sealed).sum());
        usage.datapath_mib = memory(self.datapath.id())?;
        let keymgr = self.keymgr.as_ref().context("no key manager")?;
        usage.keymgr_mib = memory(keymgr.id())?;
        usage.filled_in = self.filled;
        usage.aead = status.aead;
        for port in status.ports.iter().filter(|port| port.role == "wire") {
            usage.xdp.clone_from(&port.xdp);
            usage.af_xdp.clone_from(&port.af_xdp);
        }
        usage.drops = status.drops.into_iter().filter(|(_, n)| *n > 0).collect();
        Ok(())
    }
}

impl Drop for Culvert {
    fn drop(&mut self) {
        for child in self.keymgr.iter_mut().chain([&mut self.datapath]) {
            let _ = child.kill();
            let _ = child.wait();
        }
        let Ok(program) = own_program("culvert-datapath") else {
            return;
        };
        let mut remove = Command::new(program);
        remove
            .arg("--config")
            .arg(self.folder.join("datapath.toml"));
        remove.arg("--run-dir").arg(&self.folder).arg("--remove");
        if let Err(error) = run(&mut remove) {
            eprintln!("culvert-bench: {error:#}");
        }
    }
}

/// Interrupts of a NIC wait while it is polled. In a mount namespace, as sysfs shows the network namespace that it was mounted in.
fn hold_interrupts(wire: &str) -> Command {
    let script = format!(
        "mount -t sysfs sysfs /sys && cd /sys/class/net/{wire} && \
         echo 2 > napi_defer_hard_irqs && echo 200000 > gro_flush_timeout"
    );
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", &script]);
    command
}

/// The key manager's file.
fn keys(setup: &Setup) -> Result<String> {
    let [local, remote] = setup.ends();
    let mut text = String::from("[fallback]\nmode = \"culvert-only\"\n");
    let ends = format!("local = \"{local}\"\nremote = \"{remote}\"\n");
    if setup.way.is_null() {
        // What is guarded passes by the workers, also what a policy lets go in clear.
        write!(
            text,
            "[[policy]]\n{ends}vni = [{VNI}]\naction = \"bypass\"\n[[policy]]\n{ends}action = \"discard\"\n"
        )?;
        return Ok(text);
    }
    let cipher = setup.cipher()?;
    for (number, pair) in (0_u32..).zip(setup.secrets.chunks_exact(2)) {
        for (way, key) in pair.iter().enumerate() {
            write!(
                text,
                "[[sa]]\ndirection = \"{}\"\nspi = {}\nsource = \"{}\"\ndestination = \"{}\"\n\
                 cipher = \"{cipher}\"\nkey = \"{key}\"\n",
                if way == setup.number { "out" } else { "in" },
                SPIS[way] + number,
                setup.outer[way],
                setup.outer[1 - way],
            )?;
        }
        write!(
            text,
            "[[policy]]\n{ends}out = {}\nin = [{}]\n",
            SPIS[setup.number] + number,
            SPIS[1 - setup.number] + number
        )?;
        if setup.sas > 0 {
            writeln!(text, "vni = [{}]", VNI + number)?;
        }
    }
    Ok(text)
}

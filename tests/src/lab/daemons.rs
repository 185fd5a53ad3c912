//! Culvert's daemons in the lab: starting them, waiting for them, killing them.

use std::path::Path;
use std::process::{Child, Command};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use culvert_proto::DATAPATH_SOCKET;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{BRIDGE, HOST_PORT, Lab, Plan, START_LIMIT, Side, WIRE, program, tail};
use crate::keys::write_private;
use crate::netns::{run, wait_for};

/// Longest time until a daemon has ended.
const END_LIMIT: Duration = Duration::from_secs(20);

/// One of Culvert's programs, to be run for a side.
fn daemon(plan: &Plan, side: &Side, name: &str) -> Result<Command> {
    let program = program(name)?;
    if !plan.confined {
        return Ok(side.namespace.command(program));
    }
    let unit = crate::systemd::unit(name)?;
    let line = unit
        .lines()
        .find_map(|line| line.strip_prefix("CapabilityBoundingSet="));
    let names = line.context("no capabilities")?.to_ascii_lowercase();
    // In the place of the unit's LimitMEMLOCK=, which not everyone may raise.
    let set: String = names
        .split(' ')
        .fold("-all,+ipc_lock".to_owned(), |set, name| {
            set + ",+" + name.trim_start_matches("cap_")
        });
    let mut command = side.namespace.command("setpriv");
    command.arg(format!("--bounding-set={set}"));
    command
        .args(["--inh-caps=-all", "--no-new-privs"])
        .arg(program);
    Ok(command)
}

/// Mounts a bpffs, as systemd does: a confined datapath cannot.
fn mount_bpffs(folder: &Path) -> Result<()> {
    if !folder.exists() {
        std::fs::create_dir(folder)?;
        run(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(folder))?;
    }
    Ok(())
}

impl Side {
    /// Has the fixture, if there is one, take Geneve that arrives at `interface`, too.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn listen_on(&mut self, interface: &str) -> Result<()> {
        let Some(geneve) = &mut self.geneve else {
            return Ok(());
        };
        let pins = self.folder.join("lab-bpf");
        let namespace = &self.namespace;
        namespace.within(|| geneve.decap_on(interface, &pins))
    }
}

impl Lab {
    /// Starts the datapath of a side; what it left pinned is taken over.
    ///
    /// # Errors
    /// It does not come up.
    pub fn start_datapath(&mut self, number: usize) -> Result<()> {
        let side = &mut self.sides[number];
        let folder = side.folder.clone();
        let config = folder.join("datapath.toml");
        let (Plan { queues, .. }, xdp) = (self.plan, side.xdp);
        // Each side has its core, as long as there are enough.
        let cores: Vec<_> = (0..queues as usize)
            .map(|worker| Ok((number + worker) % std::thread::available_parallelism()?.get()))
            .collect::<Result<_>>()?;
        let text = format!(
            "wire = \"{WIRE}\"\nhost_port = \"{}\"\nhost_interface = \"{HOST_PORT}\"\nworkers = {queues}\ncores = {cores:?}\n\
             pins = \"{}\"\nxdp = \"{xdp}\"\n",
            self.plan.host_port,
            folder.join("bpf").display()
        );
        std::fs::write(&config, text)?;
        if self.plan.confined {
            mount_bpffs(&folder.join("bpf"))?;
        }
        let mut command = daemon(&self.plan, side, "culvert-datapath")?;
        command
            .arg("--config")
            .arg(config)
            .arg("--run-dir")
            .arg(&folder);
        command.envs(self.log_level.map(|level| ("RUST_LOG", level)));
        let log = folder.join("datapath.log");
        let _ = std::fs::remove_file(folder.join(DATAPATH_SOCKET));
        let datapath = side.datapath.insert(self.home.spawn(command, &log)?);
        let mut ended = None;
        let started = wait_for("culvert-datapath", START_LIMIT, || {
            ended = datapath.try_wait().ok().flatten();
            ended.is_some() || folder.join(DATAPATH_SOCKET).exists()
        });
        started.with_context(|| tail(&log))?;
        if let Some(status) = ended {
            bail!("culvert-datapath: {status}; {}", tail(&log));
        }
        side.listen_on(HOST_PORT)?;
        Ok(())
    }

    /// Starts the key manager of a side.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_keymgr(&mut self, number: usize) -> Result<()> {
        let side = &mut self.sides[number];
        let folder = &side.folder;
        let mut command = daemon(&self.plan, side, "culvert-keymgr")?;
        command
            .arg("--config")
            .arg(folder.join("keymgr.toml"))
            .arg("--run-dir")
            .arg(folder)
            .arg("--state-dir")
            .arg(folder.join("state"))
            .arg("--bridge")
            .arg(folder.join(BRIDGE))
            .arg("--pins")
            .arg(folder.join("bpf"));
        command.envs(self.log_level.map(|level| ("RUST_LOG", level)));
        side.keymgr = Some(self.home.spawn(command, &folder.join("keymgr.log"))?);
        Ok(())
    }

    /// Starts the key manager of a side with no static keys: they come from strongSwan.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start_keymgr_without_keys(&mut self, number: usize) -> Result<()> {
        let text = format!("[fallback]\nhung_after = {}\n", self.plan.hung_after);
        write_private(&self.sides[number].folder.join("keymgr.toml"), &text)?;
        self.start_keymgr(number)
    }

    /// Process id of the key manager of a side.
    #[must_use]
    pub fn keymgr_pid(&self, number: usize) -> Option<u32> {
        self.sides[number].keymgr.as_ref().map(Child::id)
    }

    /// Has daemons that are started from now on log so much, as `RUST_LOG` has it.
    pub fn log_level(&mut self, level: &'static str) {
        self.log_level = Some(level);
    }

    /// Waits until the datapath of a side has everything from its key manager.
    ///
    /// # Errors
    /// It does not; the text has the logs.
    pub fn wait_for_protection(&self, number: usize) -> Result<()> {
        let side = &self.sides[number];
        wait_for("the datapath to be filled", START_LIMIT, || {
            side.keymgr_status()
                .is_ok_and(|status| status.datapath_in_sync)
        })
        .with_context(|| self.logs(number))
    }

    /// Kills the datapath of a side, as a crash would.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_datapath(&mut self, number: usize) -> Result<()> {
        end(&mut self.sides[number].datapath, Signal::SIGKILL)
    }

    /// Ends the datapath of a side in order.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn end_datapath(&mut self, number: usize) -> Result<()> {
        end(&mut self.sides[number].datapath, Signal::SIGTERM)
    }

    /// The ends of the daemons' logs of a side, for error texts.
    #[must_use]
    pub fn logs(&self, number: usize) -> String {
        let folder = &self.sides[number].folder;
        let logs = ["keymgr.log", "datapath.log"].map(|log| tail(&folder.join(log)));
        logs.join("\n")
    }

    /// Ends the key manager of a side in order.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn end_keymgr(&mut self, number: usize) -> Result<()> {
        end(&mut self.sides[number].keymgr, Signal::SIGTERM)
    }

    /// Has the datapath of a side use this XDP mode from its next start on.
    pub fn set_xdp(&mut self, number: usize, mode: &'static str) {
        self.sides[number].xdp = mode;
    }

    /// Removes on purpose what the datapath of a side, which must be dead, has left to protect the host.
    ///
    /// # Errors
    /// It does not go.
    pub fn remove_steering(&mut self, number: usize) -> Result<()> {
        let side = &self.sides[number];
        let mut command = side.namespace.command(program("culvert-datapath")?);
        command
            .arg("--config")
            .arg(side.folder.join("datapath.toml"));
        command.arg("--run-dir").arg(&side.folder).arg("--remove");
        run(&mut command).map(drop)
    }

    /// Kills the key manager of a side, as a crash would.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill_keymgr(&mut self, number: usize) -> Result<()> {
        end(&mut self.sides[number].keymgr, Signal::SIGKILL)
    }

    /// Tells the key manager of a side to read its file again.
    ///
    /// # Errors
    /// It does not run.
    pub fn hup_keymgr(&mut self, number: usize) -> Result<()> {
        let keymgr = self.sides[number]
            .keymgr
            .as_ref()
            .context("no key manager")?;
        kill(Pid::from_raw(keymgr.id().cast_signed()), Signal::SIGHUP)?;
        Ok(())
    }
}

fn end(child: &mut Option<Child>, signal: Signal) -> Result<()> {
    let mut child = child.take().context("it does not run")?;
    kill(Pid::from_raw(child.id().cast_signed()), signal)?;
    let ended = wait_for("a daemon to end", END_LIMIT, || {
        matches!(child.try_wait(), Ok(Some(_)))
    });
    if ended.is_err() {
        child.kill()?;
        child.wait()?;
    }
    ended
}

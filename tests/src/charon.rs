//! strongSwan's daemon on a hypervisor: as `charon-systemd`, which swanctl tells what to do, or as `charon` below
//! `starter`, which reads `ipsec.conf`. Both are Debian's, with Debian's settings, but for a log and Culvert's plugin.

use std::fs;
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::certificates::{Certificates, NAMES};
use crate::hypervisor::World;
use crate::ike::{Auth, CONNECTION, Connection};
use crate::lab::tail;
use crate::netns::{Home, run, running, wait_for};
use crate::settings::Text;

/// Longest time until a daemon is up, and until it has ended.
const LIMIT: Duration = Duration::from_secs(30);

/// The name of the log in a side's folder.
pub const LOG: &str = "charon.log";

/// Where charon listens, for swanctl and for stroke.
const SOCKETS: [&str; 2] = ["/run/charon.vici", "/run/charon.ctl"];

/// Levels of the log that show what becomes of SAs and policies.
pub const LEVELS: &[(&str, i8)] = &[("default", 1), ("knl", 2)];

/// Which of the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// `charon-systemd`, with `swanctl.conf`.
    Systemd,
    /// `starter` and `charon`, with `ipsec.conf`.
    Starter,
}

/// strongSwan on one hypervisor.
#[derive(Debug)]
pub struct Charon {
    world: World,
    number: usize,
    kind: Kind,
    process: Option<Child>,
}

impl Charon {
    /// Prepares it on side `number`, which has the files of `world`. `levels` are those of the log, by subsystem.
    ///
    /// # Errors
    /// Its files cannot be written.
    pub fn new(world: &World, number: usize, kind: Kind, levels: &[(&str, i8)]) -> Result<Self> {
        let this = Self {
            world: world.clone(),
            number,
            kind,
            process: None,
        };
        let mut text = Text::default();
        text.open("charon");
        text.open("filelog");
        text.open("lab");
        text.set("path", this.log().display());
        text.set("time_format", "%T");
        text.set("time_add_ms", "yes");
        text.set("flush_line", "yes");
        for (subsystem, level) in levels {
            text.set(subsystem, level);
        }
        text.close();
        text.close();
        if world.has_plugin() {
            text.open("plugins");
            text.open("kernel-culvert");
            text.set("load", "yes");
            // The key manager sees the side's folder, but not this /run.
            text.set("socket", this.bridge().display());
            text.close();
            text.close();
        }
        text.close();
        world.write("/etc/strongswan.d/zz-lab.conf", &text.done())?;
        Ok(this)
    }

    /// Where the plugin finds the key manager.
    #[must_use]
    pub fn bridge(&self) -> PathBuf {
        self.world.folder().join("charon.culvert")
    }

    /// Its log.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.world.folder().join(LOG)
    }

    /// Gives it a connection, and certificates if that needs some. A daemon that runs is told with [`Charon::load`].
    ///
    /// # Errors
    /// The files cannot be written.
    pub fn configure(
        &self,
        connection: &Connection,
        outer: [IpAddr; 2],
        certificates: Option<&Certificates>,
    ) -> Result<()> {
        match self.kind {
            Kind::Systemd => {
                let text = connection.swanctl(self.number, outer);
                self.world.write("/etc/swanctl/conf.d/lab.conf", &text)?;
            }
            Kind::Starter => {
                let [text, secrets] = connection.ipsec(self.number, outer);
                self.world.write("/etc/ipsec.conf", &text)?;
                self.world.write("/etc/ipsec.secrets", &secrets)?;
            }
        }
        if connection.auth == Auth::Psk {
            return Ok(());
        }
        self.give(certificates.context("no certificates")?, connection.auth)
    }

    fn give(&self, certificates: &Certificates, auth: Auth) -> Result<()> {
        let [own, other] = [NAMES[self.number], NAMES[1 - self.number]];
        let [x509, ca, private] = match self.kind {
            Kind::Systemd => [
                "/etc/swanctl/x509",
                "/etc/swanctl/x509ca",
                "/etc/swanctl/private",
            ],
            Kind::Starter => [
                "/etc/ipsec.d/certs",
                "/etc/ipsec.d/cacerts",
                "/etc/ipsec.d/private",
            ],
        };
        let copy = |from: &Path, folder: &str, name: &str| -> Result<()> {
            let text = fs::read_to_string(from).with_context(|| from.display().to_string())?;
            self.world.write(&format!("{folder}/{name}.pem"), &text)
        };
        copy(&certificates.certificate(own), x509, own)?;
        copy(&certificates.key(own), private, own)?;
        if auth == Auth::Ca {
            copy(&certificates.certificate("ca"), ca, "ca")
        } else {
            copy(&certificates.certificate(other), x509, other)
        }
    }

    /// Starts it, and waits until it listens and has its connections.
    ///
    /// # Errors
    /// It does not come up; the text has its log.
    pub fn start(&mut self, home: &Home) -> Result<()> {
        let [program, arguments, socket] = match self.kind {
            Kind::Systemd => ["charon-systemd", "", SOCKETS[0]],
            Kind::Starter => ["/usr/lib/ipsec/starter", "--nofork", SOCKETS[1]],
        };
        let mut command = self.world.command(program);
        command.args(arguments.split_whitespace());
        self.world.within(|| {
            // What an earlier one that was killed has left would say that this one is up, or that it is there already.
            for file in SOCKETS
                .iter()
                .chain(&["/run/charon.pid", "/run/starter.charon.pid"])
            {
                let _ = fs::remove_file(file);
            }
            Ok(())
        })?;
        let output = self.world.folder().join("charon.out");
        let process = self.process.insert(home.spawn(command, &output)?);
        let mut ended = false;
        let listens = || UnixStream::connect(socket).is_ok();
        wait_for(program, LIMIT, || {
            ended = !matches!(process.try_wait(), Ok(None));
            ended || self.world.within(|| Ok(listens())).unwrap_or(false)
        })
        .and_then(|()| {
            ensure!(!ended, "{program} has ended");
            Ok(())
        })
        .with_context(|| format!("{}\n{}", tail(&output), tail(&self.log())))?;
        self.load()
    }

    /// Has it read its connections.
    ///
    /// # Errors
    /// It refuses them.
    pub fn load(&self) -> Result<()> {
        match self.kind {
            Kind::Systemd => self.swanctl(&["--load-all"]).map(drop),
            Kind::Starter => self
                .ipsec(&["rereadall"])
                .and_then(|_| self.ipsec(&["update"]))
                .map(drop),
        }
    }

    /// Makes the connection's IKE SA.
    ///
    /// # Errors
    /// They do not agree; the text says why.
    pub fn initiate(&self) -> Result<()> {
        match self.kind {
            Kind::Systemd => self.swanctl(&["--initiate", "--ike", CONNECTION]).map(drop),
            Kind::Starter => bail!("starter has children only"),
        }
    }

    /// Makes one of the [children](crate::ike::CHILDREN).
    ///
    /// # Errors
    /// They do not agree; the text says why.
    pub fn initiate_child(&self, name: &str) -> Result<()> {
        match self.kind {
            Kind::Systemd => self.swanctl(&["--initiate", "--child", name]).map(drop),
            Kind::Starter => self.ipsec(&["up", name]).map(drop),
        }
    }

    /// What `swanctl` prints.
    ///
    /// # Errors
    /// It fails.
    pub fn swanctl(&self, arguments: &[&str]) -> Result<String> {
        run(self.world.command("swanctl").args(arguments))
    }

    /// What `ipsec` prints.
    ///
    /// # Errors
    /// It fails.
    pub fn ipsec(&self, arguments: &[&str]) -> Result<String> {
        run(self.world.command("ipsec").args(arguments))
    }

    /// Ends it as its user would, so that it tells its peer.
    ///
    /// # Errors
    /// It does not run, or does not end.
    pub fn stop(&mut self) -> Result<()> {
        let mut process = self.process.take().context("charon does not run")?;
        kill(Pid::from_raw(process.id().cast_signed()), Signal::SIGTERM)?;
        wait_for("charon to end", LIMIT, || {
            !matches!(process.try_wait(), Ok(None))
        })
        .with_context(|| tail(&self.log()))
    }

    /// Kills it, as a crash would. What starter has started dies before starter, which would start another.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        let mut process = self.process.take().context("charon does not run")?;
        if self.kind == Kind::Starter {
            let starter = Pid::from_raw(process.id().cast_signed());
            let charon = self.pid()?;
            kill(starter, Signal::SIGSTOP)?;
            kill(charon, Signal::SIGKILL)?;
            kill(starter, Signal::SIGKILL)?;
            process.wait()?;
            return wait_for("charon to die", LIMIT, || !running(charon));
        }
        process.kill()?;
        process.wait()?;
        Ok(())
    }

    /// Process id of charon itself, which has the plugin.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<Pid> {
        let id = match (&self.process, self.kind) {
            (Some(process), Kind::Systemd) => process.id().cast_signed(),
            _ => self.world.read("/run/charon.pid")?.trim().parse()?,
        };
        Ok(Pid::from_raw(id))
    }
}

//! Doing what happens: hurting a side, and making it whole again. Traffic is to flow again from the second on.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::events::{Event, Kind};
use super::keys::Keys;
use super::load::Load;
use super::scarce::{self, Descriptors, Disk};
use crate::lab::{HOST_PORT, Lab, WIRE};

/// What is wrong with a side, and is to be put right.
pub(super) enum Wound {
    /// Something to start.
    Dead { datapath: bool, keymgr: bool },
    /// A process to wake.
    Frozen(Pid),
    /// A link to take up.
    Down,
    /// Nothing.
    Nothing,
    /// Keys to change.
    OldKeys,
    /// A file system to make room in, and the keys that were refused.
    Full(Disk, Box<crate::keys::Generation>),
    /// Descriptors to give back.
    Descriptors(Descriptors),
}

/// What an event may need.
pub(super) struct Scene<'a> {
    pub(super) lab: &'a mut Lab,
    pub(super) keys: &'a mut Keys,
    pub(super) load: &'a Load,
    /// How long anything may take.
    pub(super) limit: Duration,
}

impl Scene<'_> {
    /// Does what happens.
    pub(super) fn hurt(&mut self, event: &Event) -> Result<Wound> {
        let Event { kind, side, .. } = *event;
        let dead = |datapath, keymgr| Wound::Dead { datapath, keymgr };
        Ok(match kind {
            Kind::KillDatapath => {
                self.lab.kill_datapath(side)?;
                dead(true, false)
            }
            Kind::KillKeymgr => {
                self.lab.kill_keymgr(side)?;
                dead(false, true)
            }
            Kind::KillBoth => {
                self.lab.kill_datapath(side)?;
                self.lab.kill_keymgr(side)?;
                dead(true, true)
            }
            Kind::RestartDatapath => {
                self.lab.end_datapath(side)?;
                dead(true, false)
            }
            Kind::RestartKeymgr => {
                self.lab.end_keymgr(side)?;
                dead(false, true)
            }
            Kind::OtherXdpMode => {
                let mode = match self.xdp_mode(side)?.as_str() {
                    "native" => "generic",
                    _ => "native",
                };
                self.lab.end_datapath(side)?;
                self.lab.set_xdp(side, mode);
                dead(true, false)
            }
            Kind::FreezeDatapath | Kind::FreezeKeymgr => {
                let pid = self.pid(side, kind == Kind::FreezeDatapath)?;
                kill(pid, Signal::SIGSTOP)?;
                std::thread::sleep(event.length);
                Wound::Frozen(pid)
            }
            Kind::NicDown | Kind::CarrierLost => {
                self.set_link(event, "down")?;
                std::thread::sleep(event.length);
                Wound::Down
            }
            Kind::DetachXdp => {
                self.detach_xdp(side)?;
                Wound::Nothing
            }
            Kind::DiskFull => self.fill_disk(event)?,
            Kind::DatapathDescriptors | Kind::KeymgrDescriptors => {
                let datapath = kind == Kind::DatapathDescriptors;
                let pid = self.pid(side, datapath)?;
                let taken = Descriptors::exhaust(pid, &self.lab.sides[side], datapath)?;
                std::thread::sleep(event.length);
                self.load
                    .flows(self.limit)
                    .context("while a daemon has no descriptors left")?;
                Wound::Descriptors(taken)
            }
            Kind::Rekey => Wound::OldKeys,
        })
    }

    /// Puts it right.
    pub(super) fn heal(&mut self, event: &Event, wound: Wound) -> Result<()> {
        let side = event.side;
        match wound {
            Wound::Dead { datapath, keymgr } => {
                if datapath {
                    self.lab.start_datapath(side)?;
                }
                if keymgr {
                    self.lab.start_keymgr(side)?;
                }
                Ok(())
            }
            Wound::Frozen(pid) => Ok(kill(pid, Signal::SIGCONT)?),
            Wound::Down => self.set_link(event, "up"),
            Wound::OldKeys => {
                let next = self.keys.fresh()?;
                self.keys.change(self.lab, next)
            }
            Wound::Nothing => Ok(()),
            Wound::Full(disk, next) => {
                disk.free()?;
                self.keys.change(self.lab, *next)
            }
            Wound::Descriptors(taken) => taken.give_back(&self.lab.sides[side], self.limit),
        }
    }

    fn pid(&self, side: usize, datapath: bool) -> Result<Pid> {
        let pid = if datapath {
            self.lab.sides[side].datapath_pid()
        } else {
            self.lab.keymgr_pid(side)
        };
        Ok(Pid::from_raw(pid.context("it does not run")?.cast_signed()))
    }

    fn xdp_mode(&self, side: usize) -> Result<String> {
        let ports = self.lab.sides[side].datapath_status()?.ports;
        let wire = ports.into_iter().find(|port| port.role == "wire");
        Ok(wire.context("no wire port")?.xdp)
    }

    fn set_link(&self, event: &Event, state: &str) -> Result<()> {
        let (namespace, link) = if event.kind == Kind::NicDown {
            (&self.lab.sides[event.side].namespace, WIRE)
        } else {
            (&self.lab.underlay, ["a0", "b0"][event.side])
        };
        namespace.ip(&format!("link set {link} {state}")).map(drop)
    }

    /// The kernel refuses to detach what a link holds, and what there is stays.
    fn detach_xdp(&self, side: usize) -> Result<()> {
        let namespace = &self.lab.sides[side].namespace;
        let inner = format!("{HOST_PORT}i");
        let mode = self.xdp_mode(side)?;
        let mut all = vec![(WIRE, mode.as_str())];
        // A TAP has no inner end.
        if namespace.ip(&format!("link show dev {inner}")).is_ok() {
            all.push((&inner, "native"));
        }
        for (interface, mode) in all {
            let attached = || -> Result<String> {
                let text = namespace.ip(&format!("-o -d link show dev {interface}"))?;
                let (_, programs) = text.split_once("prog/xdp").context("no XDP program")?;
                Ok(programs.split_whitespace().take(2).collect())
            };
            let before = attached()?;
            let [held, other] = if mode == "native" {
                ["xdpdrv", "xdpgeneric"]
            } else {
                ["xdpgeneric", "xdpdrv"]
            };
            let tried = namespace.ip(&format!("link set dev {interface} {held} off"));
            ensure!(tried.is_err(), "{interface}: {held} off was not refused");
            // There is none in this mode: whatever the kernel says, it has nothing to detach.
            for other in ["xdp", other] {
                let _ = namespace.ip(&format!("link set dev {interface} {other} off"));
            }
            let after = attached()?;
            ensure!(before == after, "{interface} had {before} and has {after}");
        }
        Ok(())
    }

    /// New keys cannot be written down, so they are refused, by a text that says why; what ran goes on.
    fn fill_disk(&mut self, event: &Event) -> Result<Wound> {
        let side = event.side;
        let next = self.keys.fresh()?;
        let disk = Disk::fill(
            &scarce::state_directory(self.lab, side),
            event.length.as_millis() as usize,
        )?;
        match self.keys.offer(self.lab, side, &next) {
            Ok(()) => bail!("keys were taken that cannot be written down"),
            Err(error) => {
                let text = format!("{error:#}");
                ensure!(
                    text.contains("list of used keys in") && text.contains("No space left"),
                    "refused without saying why: {text}"
                );
            }
        }
        let status = self.lab.sides[side].keymgr_status()?;
        ensure!(
            status
                .refused
                .is_some_and(|text| text.contains("No space left")),
            "the status says nothing of it"
        );
        self.load
            .flows(self.limit)
            .context("while the list of used keys cannot grow")?;
        Ok(Wound::Full(disk, Box::new(next)))
    }
}

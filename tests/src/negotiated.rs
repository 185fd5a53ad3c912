//! The lab with keys from strongSwan: a charon with Culvert's plugin on each side.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_proto::sa::{Action, Direction};
use culvert_proto::status::SaStatus;

use crate::certificates::Certificates;
use crate::charon::{Charon, Kind};
use crate::hypervisor::{World, parts, plugin};
use crate::ike::{Auth, CHILDREN, Connection, Start};
use crate::lab::{Lab, Plan, Side, tail};
use crate::load;
use crate::netns::wait_for;

/// Longest time until both sides have the SAs of a child.
pub const LIMIT: Duration = Duration::from_secs(20);

/// The version of strongSwan that the plugin knows.
const KNOWN: &str = "5.9.8";

/// Why there can be no keys from this machine's strongSwan, if so.
#[must_use]
pub fn missing() -> Option<String> {
    let parts = parts().ok()?;
    // The program says its version to nobody but those who read it.
    let program = "usr/sbin/charon-systemd";
    let own = parts.join(program);
    let path = if own.exists() {
        own
    } else {
        Path::new("/").join(program)
    };
    let text = format!("\0{KNOWN}\0");
    let known = std::fs::read(path).is_ok_and(|bytes| {
        bytes
            .windows(text.len())
            .any(|window| window == text.as_bytes())
    });
    (!known).then(|| format!("this machine's strongSwan is not {KNOWN}, which the plugin knows"))
}

/// Both hypervisors with all that runs on them. The lab is last, so that it is removed last.
#[derive(Debug)]
pub struct Negotiated {
    /// charon on a and b.
    pub charons: [Charon; 2],
    /// Their files.
    pub worlds: [World; 2],
    /// Certificates, if the connection needs some.
    pub certificates: Option<Certificates>,
    /// The rest.
    pub lab: Lab,
}

impl Negotiated {
    /// Builds it and starts nothing.
    ///
    /// # Errors
    /// The machine lacks something.
    pub fn new(
        plan: Plan,
        kind: Kind,
        connection: &Connection,
        levels: &[(&str, i8)],
    ) -> Result<Self> {
        let lab = Lab::new(plan)?;
        let parts = parts()?;
        let plugin = plugin()?;
        let world = |number: usize| World::new(&lab, number, &parts, Some(&plugin));
        let worlds = [world(0)?, world(1)?];
        let certificates = match connection.auth {
            Auth::Psk => None,
            auth => Some(Certificates::new(&lab.home.path(), auth == Auth::Ca)?),
        };
        let charons = [
            Charon::new(&worlds[0], 0, kind, levels)?,
            Charon::new(&worlds[1], 1, kind, levels)?,
        ];
        for charon in &charons {
            charon.configure(connection, lab.outer(), certificates.as_ref())?;
        }
        Ok(Self {
            charons,
            worlds,
            certificates,
            lab,
        })
    }

    /// Builds it and starts everything. Children that no start action asks for are initiated by a.
    ///
    /// # Errors
    /// Something does not come up; the text has the logs.
    pub fn start(plan: Plan, kind: Kind, connection: &Connection) -> Result<Self> {
        let mut this = Self::new(plan, kind, connection, &[])?;
        this.start_all()?;
        if connection.start == [Start::None; 2] {
            this.initiate()?;
        }
        Ok(this)
    }

    /// Starts Culvert and charon on both sides.
    ///
    /// # Errors
    /// Something does not come up; the text has the logs.
    pub fn start_all(&mut self) -> Result<()> {
        for number in 0..2 {
            self.start_culvert(number)?;
        }
        for number in 0..2 {
            self.start_charon(number)?;
        }
        Ok(())
    }

    /// Has a's charon make both children, and waits until both sides have the SAs.
    ///
    /// # Errors
    /// They do not agree.
    pub fn initiate(&self) -> Result<()> {
        for child in CHILDREN {
            self.charons[0].initiate_child(child)?;
        }
        self.wait_for_sas(CHILDREN.len())
    }

    /// Sends packets until one comes back, as SAs that a trap makes are there.
    ///
    /// # Errors
    /// None does; the text has the logs.
    pub fn first_packet(&self) -> Result<()> {
        load::wait_for_reply(&self.lab, LIMIT)
            .with_context(|| format!("{}\n{}", self.logs(0), self.logs(1)))
    }

    /// Starts both of Culvert's daemons on a side, without static keys.
    ///
    /// # Errors
    /// They do not come up.
    pub fn start_culvert(&mut self, number: usize) -> Result<()> {
        self.lab.start_datapath(number)?;
        self.lab.start_keymgr_without_keys(number)?;
        self.lab.wait_for_protection(number)
    }

    /// Starts charon on a side.
    ///
    /// # Errors
    /// It does not come up, or does not find the key manager.
    pub fn start_charon(&mut self, number: usize) -> Result<()> {
        self.charons[number].start(&self.lab.home)?;
        self.wait_for_session(number)
    }

    /// Waits until charon and the key manager of a side have found each other.
    ///
    /// # Errors
    /// They do not; the text has their logs.
    pub fn wait_for_session(&self, number: usize) -> Result<()> {
        let side = &self.lab.sides[number];
        wait_for("charon's session", LIMIT, || {
            side.keymgr_status()
                .is_ok_and(|status| status.charon.is_some_and(|charon| charon.connected))
        })
        .with_context(|| self.logs(number))
    }

    /// Waits until both sides have `children` policies with SAs both ways.
    ///
    /// # Errors
    /// They do not; the text has the logs.
    pub fn wait_for_sas(&self, children: usize) -> Result<()> {
        for number in 0..2 {
            let there = || protected(&self.lab.sides[number]).is_ok_and(|count| count == children);
            wait_for("SAs", LIMIT, there).with_context(|| self.logs(number))?;
        }
        Ok(())
    }

    /// The ends of the logs of a side.
    #[must_use]
    pub fn logs(&self, number: usize) -> String {
        let side = &self.lab.sides[number];
        ["charon.out", "charon.log", "keymgr.log", "datapath.log"]
            .map(|log| tail(&side.folder.join(log)))
            .join("\n")
    }

    /// The SAs of a side in one direction that its policies name.
    ///
    /// # Errors
    /// The datapath does not answer.
    pub fn sas(&self, number: usize, direction: Direction) -> Result<Vec<SaStatus>> {
        let sas = self.lab.sides[number].datapath_status()?.sas;
        Ok(sas
            .into_iter()
            .filter(|sa| sa.direction == direction)
            .collect())
    }
}

/// Policies of a side that have SAs both ways.
///
/// # Errors
/// The datapath does not answer.
pub fn protected(side: &Side) -> Result<usize> {
    let policies = side.datapath_status()?.policies;
    let protected = policies.iter().filter(|policy| {
        matches!(&policy.action, Action::Protect { outbound: Some(_), inbound } if !inbound.is_empty())
    });
    Ok(protected.count())
}

//! The lab with Open vSwitch: its tunnels between the hypervisors, its ovs-monitor-ipsec to tell strongSwan, Culvert to seal.

use std::time::Duration;

use anyhow::{Context, Result};

use crate::certificates::Certificates;
use crate::charon::{Charon, Kind};
use crate::hypervisor::{World, parts, plugin};
use crate::ike::Auth;
use crate::lab::{Lab, Plan, tail};
use crate::load;
use crate::negotiated::LIMIT;
use crate::netns::wait_for;
use crate::ovs::Ovs;

/// How long a tunnel may take until it carries something.
const PATIENCE: Duration = Duration::from_secs(8);

/// Both hypervisors with all that runs on them. The lab is last, so that it is removed last.
#[derive(Debug)]
pub struct Switched {
    /// Open vSwitch on a and b.
    pub switches: [Ovs; 2],
    /// strongSwan, which ovs-monitor-ipsec starts.
    pub charons: [Charon; 2],
    worlds: [World; 2],
    /// The rest.
    pub lab: Lab,
}

impl Switched {
    /// Builds it with a tunnel in clear. On a busy machine Open vSwitch now and then never begins to send by a tunnel: then it
    /// is built again, as what does not go in clear is not Culvert's fault.
    ///
    /// # Errors
    /// Something does not come up; the text has the logs.
    pub fn new(plan: Plan) -> Result<Self> {
        for _ in 0..2 {
            let this = Self::build(plan)?;
            if this.wait_for_clear().is_ok() {
                return Ok(this);
            }
        }
        let this = Self::build(plan)?;
        this.wait_for_clear()?;
        Ok(this)
    }

    fn wait_for_clear(&self) -> Result<()> {
        load::wait_for_reply(&self.lab, PATIENCE).with_context(|| self.switches[0].story())
    }

    fn build(plan: Plan) -> Result<Self> {
        let lab = Lab::new(Plan {
            tunnel: false,
            // See `ovs`.
            host_port: "veth",
            ..plan
        })?;
        let parts = parts()?;
        let plugin = plugin()?;
        let world = |number: usize| World::new(&lab, number, &parts, Some(&plugin));
        let worlds = [world(0)?, world(1)?];
        let charon = |number: usize| Charon::new(&worlds[number], number, Kind::Starter, &[]);
        let charons = [charon(0)?, charon(1)?];
        let switch = |number: usize| -> Result<Ovs> {
            let ovs = Ovs::start(&lab.home, &worlds[number], number)?;
            ovs.connect(&lab)?;
            ovs.add_tunnel(&lab, "")?;
            Ok(ovs)
        };
        let switches = [switch(0)?, switch(1)?];
        Ok(Self {
            switches,
            charons,
            worlds,
            lab,
        })
    }

    /// Builds it with a pre-shared key, or another way, and starts everything.
    ///
    /// # Errors
    /// Something does not come up; the text has the logs.
    pub fn start(auth: Auth) -> Result<Self> {
        let mut this = Self::new(Plan::default())?;
        this.protect(auth)?;
        Ok(this)
    }

    /// Starts Culvert and ovs-monitor-ipsec, and gives the tunnel its options.
    ///
    /// # Errors
    /// Something does not come up; the text has the logs.
    pub fn protect(&mut self, auth: Auth) -> Result<()> {
        for number in 0..2 {
            self.lab.start_datapath(number)?;
            self.lab.start_keymgr_without_keys(number)?;
            self.lab.wait_for_protection(number)?;
        }
        for ovs in &mut self.switches {
            ovs.start_ipsec(&self.lab.home)?;
        }
        self.authenticate(1, auth, None)
    }

    /// Gives the tunnel other options, as its version `version`.
    ///
    /// # Errors
    /// strongSwan does not get them.
    pub fn authenticate(
        &self,
        version: u32,
        auth: Auth,
        certificates: Option<&Certificates>,
    ) -> Result<()> {
        for ovs in &self.switches {
            ovs.authenticate(auth, certificates)?;
        }
        for (number, ovs) in self.switches.iter().enumerate() {
            ovs.wait_for_ipsec(version)
                .with_context(|| self.logs(number))?;
            self.wait_for_session(number)?;
        }
        Ok(())
    }

    fn wait_for_session(&self, number: usize) -> Result<()> {
        wait_for("charon's session", LIMIT, || {
            self.lab.sides[number]
                .keymgr_status()
                .is_ok_and(|status| status.charon.is_some_and(|charon| charon.connected))
        })
        .with_context(|| self.logs(number))
    }

    /// Ends ovs-monitor-ipsec of a side, and starts another, which starts strongSwan anew.
    ///
    /// # Errors
    /// It does not come up.
    pub fn restart_ipsec(&mut self, number: usize) -> Result<()> {
        self.switches[number].stop_ipsec()?;
        self.switches[number].start_ipsec(&self.lab.home)?;
        self.switches[number]
            .wait_for_ipsec(1)
            .with_context(|| self.logs(number))?;
        self.wait_for_session(number)
    }

    /// The ends of the logs of a side.
    #[must_use]
    pub fn logs(&self, number: usize) -> String {
        let folder = self.worlds[number].folder();
        ["ovs-monitor-ipsec.log", "charon.log", "keymgr.log"]
            .map(|log| tail(&folder.join(log)))
            .join("\n")
    }
}

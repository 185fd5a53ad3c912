//! The fault campaign: under UDP and TCP both ways, one side after the other is hurt, at random. Whatever happens: nothing in
//! clear, no sequence number and no IV twice under a key, no packet twice, and traffic flows again.
//!
//! [`events`] is what happens, which a seed stands for; [`harm`] does it, with [`scarce`] for what runs out; [`keys`] are changed
//! in between; [`load`] is the traffic; [`judge`] looks at every packet on the wire, and keeps [`numbers`]; [`record`] says how
//! long it took; [`settings`] are the environment's. What serves a side beside Culvert does not matter: that traffic flows again is all that counts.

pub mod events;
mod harm;
pub mod judge;
pub mod keys;
pub mod load;
pub mod numbers;
pub mod record;
mod scarce;
pub mod settings;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};

use self::events::{Event, Kind};
use self::harm::Scene;
use self::judge::Judge;
use self::keys::Keys;
use self::load::{Load, Recovery};
use self::record::{Outcome, Report};
pub use self::scarce::{Descriptors, mount_state};
use crate::lab::{Lab, tail};

/// A campaign, ready to be run in a lab in which traffic flows.
pub struct Campaign<'a> {
    /// Where.
    pub lab: &'a mut Lab,
    /// What stands for all that happens.
    pub seed: u64,
    /// How much happens.
    pub events: usize,
    /// What may happen.
    pub kinds: &'a [Kind],
    /// To whom: sides that have Culvert, whose key managers have their state where [`mount_state`] has put it.
    pub sides: &'a [usize],
    /// UDP packets a second, each way.
    pub rate: u32,
    /// How long traffic may take to flow again.
    pub limit: Duration,
    /// The keys that both sides have.
    pub keys: Keys,
    /// Who looks at the wire.
    pub judge: Judge,
}

impl Campaign<'_> {
    /// Runs it. Every error says the seed.
    ///
    /// # Errors
    /// Something happened that must not, or did not in time.
    pub fn run(self) -> Result<Report> {
        let seed = self.seed;
        self.run_all().with_context(|| format!("seed {seed}"))
    }

    fn run_all(mut self) -> Result<Report> {
        let load = Load::start(self.lab, self.rate)?;
        load.flows(self.limit).context("before anything happens")?;
        let mut outcomes = Vec::new();
        for (number, event) in
            (1..).zip(events::plan(self.seed, self.events, self.kinds, self.sides))
        {
            std::thread::sleep(event.pause);
            let recovery = self
                .happen(&event, &load)
                .and_then(|recovery| {
                    self.judge.judge(self.lab)?;
                    load.judge()?;
                    Ok(recovery)
                })
                .with_context(|| {
                    let logs = self.logs();
                    format!("event {number}, {event}, {:?}\n{logs}\n", load.totals())
                })?;
            outcomes.push(Outcome { event, recovery });
        }
        let totals = load.finish()?;
        let seen = self.judge.finish(self.lab)?;
        Ok(Report {
            seed: self.seed,
            outcomes,
            totals,
            esp_packets: seen.packets,
            sas: seen.sas(),
            peer: BTreeMap::new(),
        })
    }

    fn happen(&mut self, event: &Event, load: &Load) -> Result<Recovery> {
        let mut scene = Scene {
            lab: self.lab,
            keys: &mut self.keys,
            load,
            limit: self.limit,
        };
        load.begin();
        let wound = scene.hurt(event)?;
        let mark = load.mark();
        scene.heal(event, wound)?;
        let recovery = load.wait(mark, self.limit)?;
        // What happens next may need daemons that answer.
        for &side in self.sides {
            self.lab.wait_for_protection(side)?;
        }
        Ok(recovery)
    }

    fn logs(&self) -> String {
        let files = self
            .lab
            .sides
            .iter()
            .flat_map(|side| ["datapath.log", "keymgr.log"].map(|log| side.folder.join(log)));
        let tails: Vec<String> = files
            .filter(|file| file.exists())
            .map(|file| tail(&file))
            .collect();
        tails.join("\n")
    }
}

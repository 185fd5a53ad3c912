//! Measuring: which steps there are, in which order, what is said meanwhile, and what is kept.
//!
//! [`iperf`] and [`scale`] take steps on a [`stage`], one after the other, and tell each as an [`Event`]; [`looped`] does so with workers in this
//! process. A [`collect::Collector`] shows how far it is and makes the record; in a guest, events go to who has started the guest instead ([`guest`]). What was
//! measured until ^C is kept.

pub mod collect;
pub mod guest;
pub mod iperf;
pub mod looped;
pub mod micro;
pub mod scale;
pub mod stage;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Result, bail};
use culvert_tests::record::{Host, Place, Point, Round, Wire};
use serde::{Deserialize, Serialize};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

/// What happens in the course of a run.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Event {
    /// It begins.
    Begin {
        /// Where.
        place: Place,
        /// The machine, and the other one.
        hosts: Vec<Host>,
        /// The underlay.
        wire: Wire,
        /// Number of steps.
        steps: usize,
        /// What is not measured, and why.
        left_out: Vec<String>,
    },
    /// A step begins.
    Step(String),
    /// A step of [`iperf`] or [`looped`] is done.
    Round {
        /// Who protects.
        side: String,
        /// The cipher.
        cipher: Option<String>,
        /// The load.
        load: String,
        /// What was seen.
        round: Box<Round>,
        /// How Culvert served, if it did.
        served: Option<Served>,
    },
    /// A step of [`scale`] is done.
    Point(Box<Point>),
    /// A step failed.
    Failed(String),
}

/// How Culvert served.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Served {
    /// XDP mode of the wire port.
    pub xdp: String,
    /// Its `AF_XDP` mode.
    pub af_xdp: String,
    /// Backend of each cipher.
    pub aead: BTreeMap<String, String>,
}

/// Whether somebody wants us to end.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Set by ^C and its like; by the second one the process ends at once.
    ///
    /// # Errors
    /// Signals cannot be caught.
    pub fn on_signal() -> Result<Self> {
        let flag = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM, SIGHUP] {
            signal_hook::flag::register_conditional_shutdown(signal, 130, Arc::clone(&flag))?;
            signal_hook::flag::register(signal, Arc::clone(&flag))?;
        }
        Ok(Self(flag))
    }

    /// Whether it is set.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    /// Goes on, or not.
    ///
    /// # Errors
    /// It is set.
    pub fn check(&self) -> Result<()> {
        if self.is_set() {
            bail!("interrupted");
        }
        Ok(())
    }
}

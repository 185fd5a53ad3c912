//! What there is of Culvert on this machine.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use culvert_datapath::settings::{self, Settings};
use culvert_keymgr::leftovers::{self, Leftovers};
use culvert_proto::policy::{Action, Selector};
use culvert_proto::status::{DatapathStatus, KeymgrStatus};
use nix::net::if_::if_nametoindex;

use crate::ask::{self, DATAPATH, KEYMGR, Trouble};

/// What there is.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) keymgr: Option<KeymgrStatus>,
    pub(super) datapath: Option<DatapathStatus>,
    /// The datapath's settings, by which it is told what to take away.
    pub(super) settings: PathBuf,
    /// What a key manager leaves.
    pub(super) left: Leftovers,
    /// Whether there are eBPF programs, or what they need.
    pub(super) pins: bool,
    /// Whether there is the host port.
    pub(super) host_port: bool,
}

impl Found {
    /// Looks, and changes nothing. `settings` are those that were named: they must be there.
    ///
    /// # Errors
    /// A daemon runs and does not answer, or what there is cannot be taken away as things are.
    pub(super) fn look(settings: Option<&Path>, run: &Path) -> Result<Self> {
        let (keymgr, datapath) = (ask::keymgr_status(run), ask::datapath_status(run));
        let (keymgr, datapath) = (answer(KEYMGR, keymgr)?, answer(DATAPATH, datapath)?);
        let named = settings.is_some();
        let settings = settings.unwrap_or(Path::new(settings::PATH));
        let known = named || settings.exists();
        let read = if known {
            Settings::load(settings)?
        } else {
            // Where things are unless told otherwise.
            toml::from_str("wire = \"?\"").context("defaults")?
        };
        let entries = std::fs::read_dir(&read.pins).map(Iterator::count);
        let found = Self {
            keymgr,
            datapath,
            settings: settings.to_owned(),
            left: leftovers::look(run)?,
            pins: entries.is_ok_and(|count| count > 0),
            host_port: if_nametoindex(read.host_interface.as_str()).is_ok(),
        };
        if found.is_guarded() && !known {
            bail!(
                "{} is not there, and without it nobody knows what {DATAPATH} has to take away; name its settings by \
                 --datapath-config",
                settings.display()
            );
        }
        Ok(found)
    }

    /// Whether there is nothing to take away.
    pub(super) fn is_nothing(&self) -> bool {
        !self.answers() && !self.is_guarded() && !self.left.held && self.left.kernel == 0
    }

    /// Whether a daemon says what is protected.
    pub(super) fn answers(&self) -> bool {
        self.keymgr.is_some() || self.datapath.is_some()
    }

    /// Whether there is something of the datapath.
    pub(super) fn is_guarded(&self) -> bool {
        self.datapath.is_some() || self.pins || self.host_port
    }

    pub(super) fn has_charon(&self) -> bool {
        let charon = self
            .keymgr
            .as_ref()
            .and_then(|status| status.charon.as_ref());
        charon.is_some_and(|charon| charon.connected)
    }

    /// What there is, in words.
    pub(super) fn parts(&self) -> Vec<String> {
        let kernel = match self.left.kernel {
            0 => String::new(),
            count => format!("{count} SAs and policies in the kernel"),
        };
        [
            (self.keymgr.is_some(), KEYMGR),
            (self.datapath.is_some(), DATAPATH),
            (!kernel.is_empty(), &*kernel),
            (
                self.left.held,
                "the list of peers that strongSwan protected",
            ),
            (self.pins, "the eBPF programs that guard the NIC"),
            (self.host_port, "the host port"),
        ]
        .into_iter()
        .filter(|(there, _)| *there)
        .map(|(_, what)| what.to_owned())
        .collect()
    }

    /// Geneve that is protected or blocked, as far as a daemon says: what the datapath lets bypass is neither.
    pub(super) fn tunnels(&self) -> Vec<String> {
        let datapath = self.datapath.iter().flat_map(|status| &status.policies);
        let actions: BTreeMap<&Selector, &Action> = datapath
            .map(|policy| (&policy.selector, &policy.action))
            .collect();
        let keymgr = self.keymgr.iter().flat_map(|status| &status.tunnels);
        let selectors = keymgr.map(|tunnel| &tunnel.selector);
        let all: BTreeSet<&Selector> = selectors.chain(actions.keys().copied()).collect();
        let is_clear = |selector: &Selector| {
            let action = actions.get(selector);
            action.is_some_and(|action| matches!(action, Action::Bypass))
        };
        all.into_iter()
            .filter(|selector| !is_clear(selector))
            .map(ToString::to_string)
            .collect()
    }
}

/// What a daemon said; `None`: it does not run.
fn answer<T>(program: &str, answer: Result<T, Trouble>) -> Result<Option<T>> {
    match answer {
        Ok(status) => Ok(Some(status)),
        Err(Trouble::Down { .. }) => Ok(None),
        Err(trouble) => Err(anyhow!(
            "{trouble}; stop it first, as in \"systemctl stop {program}\""
        )),
    }
}

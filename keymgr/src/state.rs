//! Giving each SA its state: the words that its key had, or fresh ones, but never fresh ones to a key that
//! was used.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use culvert_proto::sa::{Direction, SaSpec, StateRef};
use culvert_state::Region;
use culvert_state::region::Kind;

use crate::config::Config;
use crate::entry::sa_name;
use crate::keys::fingerprint;
use crate::used_keys::UsedKeys;
use crate::wanted::Wanted;

/// The region, and what a reboot must not make us forget.
#[derive(Debug)]
pub(crate) struct State {
    region: Region,
    used: UsedKeys,
    directory: PathBuf,
}

impl State {
    pub(crate) fn new(region: Region, directory: &Path) -> Result<Self> {
        let used = UsedKeys::open(directory)
            .with_context(|| format!("list of used keys in {}", directory.display()))?;
        Ok(Self {
            region,
            used,
            directory: directory.to_owned(),
        })
    }

    /// Gives the SAs of `config` their state. Those of `before` that are gone give theirs up.
    ///
    /// # Errors
    /// Every SA whose key must not be used, or not so. Then nothing has changed.
    pub(crate) fn give(&mut self, config: Config, before: &Wanted) -> Result<Wanted> {
        let problems: Vec<String> = config
            .sas
            .iter()
            .filter_map(|sa| self.problem(sa).map(|text| format!("{}: {text}", sa_name(sa))))
            .collect();
        if !problems.is_empty() {
            bail!(problems.join("\n"));
        }
        let fingerprints: Vec<_> = config.sas.iter().map(fingerprint).collect();
        let mut wanted = Wanted::default();
        for mut sa in config.sas {
            let claim = self
                .region
                .claim(fingerprint(&sa), kind(&sa))
                .with_context(|| sa_name(&sa))?;
            sa.state = StateRef {
                offset: claim.offset,
                words: claim.words,
            };
            wanted.sas.insert(sa.id, sa);
        }
        // On disk before anybody can use them, but after they have state: whoever dies in between has
        // not made a key unusable that was never used.
        self.used
            .add(fingerprints)
            .with_context(|| format!("list of used keys in {}", self.directory.display()))?;
        for policy in config.policies {
            wanted.policies.insert(policy.id(), policy);
        }
        for (id, sa) in &before.sas {
            let now = wanted.sas.get(id);
            if now.is_none_or(|now| now.keymat != sa.keymat) {
                self.region.retire(&fingerprint(sa));
            }
        }
        Ok(wanted)
    }

    fn problem(&self, sa: &SaSpec) -> Option<String> {
        let fingerprint = fingerprint(sa);
        match self.region.running_window(&fingerprint) {
            Some(window) => (sa.id.direction == Direction::In
                && window != u64::from(sa.replay_window))
            .then(|| {
                format!(
                    "its key is in use with a replay window of {window} packets, which cannot change while \
                     the key lives; keep it, or give the SA a new key"
                )
            }),
            None => self.used.contains(&fingerprint).then(|| {
                "its key was in use before, and its sequence numbers are lost since (by a reboot, most \
                 likely); under the same key they must not come twice, so give it a new key on both hosts"
                    .to_owned()
            }),
        }
    }
}

fn kind(sa: &SaSpec) -> Kind {
    match sa.id.direction {
        Direction::Out => Kind::Outbound,
        Direction::In => Kind::Inbound {
            window: sa.replay_window,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::sa::{Cipher, Keymat, SaId, Spi};

    fn sa(direction: Direction, key: u8, window: u32) -> SaSpec {
        SaSpec {
            id: SaId {
                direction,
                spi: Spi::new(0x1001).unwrap(),
                destination: "192.0.2.2".parse().unwrap(),
            },
            source: "192.0.2.1".parse().unwrap(),
            cipher: Cipher::Aes128Gcm16,
            keymat: Keymat::new(vec![key; 20]),
            esn: true,
            replay_window: window,
            encapsulation: None,
            state: StateRef { offset: 0, words: 0 },
        }
    }

    fn config(sas: &[SaSpec]) -> Config {
        Config {
            sas: sas.to_vec(),
            policies: Vec::new(),
        }
    }

    fn state(run: &Path, state: &Path) -> State {
        let (region, _) = Region::open_or_create(&run.join("sa-state")).unwrap();
        State::new(region, state).unwrap()
    }

    #[test]
    fn a_key_whose_numbers_are_lost_is_refused() {
        let [run, kept] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let both = config(&[sa(Direction::Out, 1, 64)]);
        let first = state(run.path(), kept.path())
            .give(both.clone(), &Wanted::default())
            .unwrap();
        // A key manager that starts again finds the same words.
        let again = state(run.path(), kept.path())
            .give(both.clone(), &Wanted::default())
            .unwrap();
        assert_eq!(first, again);
        // A reboot clears the run directory.
        std::fs::remove_file(run.path().join("sa-state")).unwrap();
        let mut rebooted = state(run.path(), kept.path());
        let error = rebooted.give(both, &Wanted::default()).unwrap_err();
        assert!(error.to_string().contains("give it a new key"), "{error}");
        let fresh = config(&[sa(Direction::Out, 2, 64)]);
        rebooted.give(fresh, &Wanted::default()).unwrap();
    }

    #[test]
    fn a_removed_sa_that_comes_back_goes_on() {
        let [run, kept] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let mut state = state(run.path(), kept.path());
        let one = config(&[sa(Direction::Out, 1, 64)]);
        let first = state.give(one.clone(), &Wanted::default()).unwrap();
        let none = state.give(config(&[]), &first).unwrap();
        assert_eq!(state.give(one, &none).unwrap(), first);
    }

    #[test]
    fn the_window_of_a_running_key_stays() {
        let [run, kept] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let mut state = state(run.path(), kept.path());
        let first = state
            .give(config(&[sa(Direction::In, 1, 64)]), &Wanted::default())
            .unwrap();
        let wider = config(&[sa(Direction::In, 1, 128)]);
        let error = state.give(wider, &first).unwrap_err();
        assert!(error.to_string().contains("64 packets"), "{error}");
        state
            .give(config(&[sa(Direction::In, 2, 128)]), &first)
            .unwrap();
    }
}

//! Giving each SA its state: the words that its key had, or fresh ones, but never fresh ones to a key that
//! was used.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;

use anyhow::{Context, Result, bail};
use culvert_proto::sa::{Action, Direction, SaId, SaSpec, StateRef};
use culvert_state::Region;
use culvert_state::layout::both;
use culvert_state::region::{Fingerprint, Kind};

use crate::config::Config;
use crate::entry::sa_name;
use crate::goal::KernelOnly;
use crate::keys::fingerprint;
use crate::used_keys::UsedKeys;
use crate::wanted::Wanted;

/// The region, and what a reboot must not make us forget.
#[derive(Debug)]
pub(crate) struct State {
    region: Region,
    used: UsedKeys,
    directory: PathBuf,
    /// Keys whose SAs are wanted.
    claimed: HashSet<Fingerprint>,
    /// Keys whose SAs are gone, with the generation that is without them; none yet for the newest.
    gone: Vec<(Fingerprint, Option<u64>)>,
    /// Whether the state of SAs that a key manager before this one had is given up.
    swept: bool,
}

/// SAs that cannot be had as they are wanted, and why.
#[derive(Default)]
struct Refused {
    /// Their keys must not be used any more.
    lost: HashSet<SaId>,
    /// Whether there are others: they run, and can go on, otherwise than is wanted.
    others: bool,
    texts: Vec<String>,
}

impl State {
    pub(crate) fn new(region: Region, directory: &Path) -> Result<Self> {
        let used = UsedKeys::open(directory)
            .with_context(|| format!("list of used keys in {}", directory.display()))?;
        Ok(Self {
            region,
            used,
            directory: directory.to_owned(),
            claimed: HashSet::new(),
            gone: Vec::new(),
            swept: false,
        })
    }

    /// Gives the SAs of `config` their state. Those of `before` that are gone give theirs up.
    ///
    /// # Errors
    /// Every SA whose key must not be used, or not so. Then nothing has changed.
    pub(crate) fn give(&mut self, config: Config, before: &Wanted) -> Result<Wanted> {
        let refused = self.refused(&config);
        if !refused.texts.is_empty() {
            bail!(refused.texts.join("\n"));
        }
        self.give_checked(config, before)
    }

    /// As [`State::give`], for a start, when nothing runs that could go on: SAs whose keys must not be used are
    /// left out, and said in the text. The policies stand all the same: what they protect is blocked, and
    /// not in clear.
    ///
    /// # Errors
    /// Every SA that runs otherwise than is wanted: the datapath may be going on with it.
    pub(crate) fn give_at_start(&mut self, mut config: Config) -> Result<(Wanted, Option<String>)> {
        let refused = self.refused(&config);
        let text = refused.texts.join("\n");
        if refused.others {
            bail!(text);
        }
        config.sas.retain(|sa| !refused.lost.contains(&sa.id));
        for policy in &mut config.policies {
            if let Action::Protect { outbound, inbound } = &mut policy.action {
                outbound.take_if(|sa| refused.lost.contains(sa));
                inbound.retain(|sa| !refused.lost.contains(sa));
            }
        }
        let wanted = self.give_checked(config, &Wanted::default())?;
        Ok((wanted, (!text.is_empty()).then_some(text)))
    }

    /// Gives a negotiated SA its state, which no key before it has had. Its key is in no file, so that a reboot
    /// forgets it and its numbers together.
    ///
    /// # Errors
    /// The key was in use before; there is no room.
    pub(crate) fn claim_fresh(&mut self, sa: &mut SaSpec) -> Result<()> {
        let fingerprint = fingerprint(sa);
        if self.region.knows(&fingerprint) || self.used.contains(&fingerprint) {
            bail!("its key was in use before; under one key no sequence number may come twice");
        }
        let claim = self.region.claim(fingerprint, kind(sa))?;
        self.claimed.insert(fingerprint);
        let words = self.region.words(claim.offset, claim.words)?;
        words[both::ADDED].store(now(), Ordering::Relaxed);
        sa.state = StateRef {
            offset: claim.offset,
            words: claim.words,
        };
        Ok(())
    }

    /// Gives an SA that only the kernel can serve a place where it is counted, and by which it is known to be ours.
    ///
    /// # Errors
    /// The key was in use before; there is no room.
    pub(crate) fn claim_for_kernel(&mut self, only: &mut KernelOnly) -> Result<()> {
        let fingerprint = only.sa.fingerprint();
        if self.region.knows(&fingerprint) {
            bail!("its key was in use before; under one key no sequence number may come twice");
        }
        let claim = self.region.claim(fingerprint, Kind::Outbound)?;
        self.claimed.insert(fingerprint);
        let words = self.region.words(claim.offset, claim.words)?;
        words[both::ADDED].store(now(), Ordering::Relaxed);
        only.state = StateRef {
            offset: claim.offset,
            words: claim.words,
        };
        Ok(())
    }

    /// An SA is not wanted any more. Its words stay its own until the datapath has let go of it: whoever got them before
    /// would begin anew under its key.
    pub(crate) fn retire(&mut self, fingerprint: Fingerprint) {
        self.claimed.remove(&fingerprint);
        self.gone.push((fingerprint, None));
    }

    /// What is gone by now, is gone with this generation of what is wanted.
    pub(crate) fn gone_with(&mut self, generation: u64) {
        for (_, gone) in &mut self.gone {
            gone.get_or_insert(generation);
        }
    }

    /// The datapath, or the kernel in its place, has a generation: gives up the state of what is gone with it, and at first of all that nobody here
    /// has, such as negotiated SAs of a key manager before this one.
    pub(crate) fn let_go(&mut self, served: u64) {
        if !std::mem::replace(&mut self.swept, true) {
            self.region.retire_all_but(&self.claimed);
        }
        let region = &mut self.region;
        let claimed = &self.claimed;
        self.gone.retain(|(fingerprint, generation)| {
            let gone = generation.is_some_and(|generation| generation <= served);
            // A static key may have come back.
            if gone && !claimed.contains(fingerprint) {
                region.retire(fingerprint);
            }
            !gone
        });
    }

    /// How many keys are gone whose state is kept for the datapath.
    #[cfg(test)]
    pub(crate) fn waiting(&self) -> usize {
        self.gone.len()
    }

    /// Packets and bytes that went under an SA with this state.
    pub(crate) fn counts(&self, state: StateRef) -> (u64, u64) {
        let Ok(words) = self.region.words(state.offset, state.words) else {
            return (0, 0);
        };
        let read = |at: usize| words[at].load(Ordering::Relaxed);
        (read(both::PACKETS), read(both::BYTES))
    }

    fn refused(&self, config: &Config) -> Refused {
        let mut refused = Refused::default();
        for sa in &config.sas {
            let fingerprint = fingerprint(sa);
            let inbound = sa.id.direction == Direction::In;
            let text = match self.region.running_window(&fingerprint) {
                Some(window) if (window != 0) != inbound => {
                    refused.others = true;
                    "its key was used in the other direction, and the peer's numbers under it must not come \
                     again; give the SA a new key on both hosts"
                        .to_owned()
                }
                Some(window) if inbound && window != u64::from(sa.replay_window) => {
                    refused.others = true;
                    format!(
                        "its key is in use with a replay window of {window} packets, which cannot change while \
                         the key lives; keep it, or give the SA a new key"
                    )
                }
                None if self.used.contains(&fingerprint) => {
                    refused.lost.insert(sa.id);
                    "its key was in use before, and its sequence numbers are lost since (by a reboot, most \
                     likely); under the same key they must not come twice, so give it a new key on both hosts"
                        .to_owned()
                }
                _ => continue,
            };
            refused.texts.push(format!("{}: {text}", sa_name(sa)));
        }
        refused
    }

    fn give_checked(&mut self, config: Config, before: &Wanted) -> Result<Wanted> {
        let fingerprints: HashSet<_> = config.sas.iter().map(fingerprint).collect();
        let mut wanted = Wanted::default();
        for mut sa in config.sas {
            let fingerprint = fingerprint(&sa);
            let claim = self
                .region
                .claim(fingerprint, kind(&sa))
                .with_context(|| sa_name(&sa))?;
            // Its words may have been given to another just now, for want of room.
            if claim.fresh && self.used.contains(&fingerprint) {
                bail!(
                    "{}: its key was in use before, give it a new one",
                    sa_name(&sa)
                );
            }
            if claim.fresh {
                let words = self.region.words(claim.offset, claim.words)?;
                words[both::ADDED].store(now(), Ordering::Relaxed);
            }
            sa.state = StateRef {
                offset: claim.offset,
                words: claim.words,
            };
            wanted.sas.insert(sa.id, sa);
        }
        // On disk before anybody can use them, but after they have state: whoever dies in between has
        // not made a key unusable that was never used.
        self.used
            .add(fingerprints.iter().copied())
            .with_context(|| format!("list of used keys in {}", self.directory.display()))?;
        for policy in config.policies {
            wanted.policies.insert(policy.selector.clone(), policy);
        }
        self.claimed.extend(&fingerprints);
        for sa in before.sas.values() {
            if !fingerprints.contains(&fingerprint(sa)) {
                self.retire(fingerprint(sa));
            }
        }
        Ok(wanted)
    }
}

/// Milliseconds of the monotonic clock, which the datapath's lifetimes count in.
pub(crate) fn now() -> u64 {
    use nix::time::{ClockId, clock_gettime};
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(1, |time| {
        let milliseconds = std::time::Duration::from(time).as_millis();
        u64::try_from(milliseconds).unwrap_or(u64::MAX).max(1)
    })
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
    use culvert_proto::sa::{Cipher, Keymat, Lifetime, PolicySpec, SaId, Selector, Spi};

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
            tfc: 0,
            lifetime: Lifetime::default(),
            state: StateRef {
                offset: 0,
                words: 0,
            },
        }
    }

    fn config(sas: &[SaSpec]) -> Config {
        Config {
            sas: sas.to_vec(),
            ..Config::default()
        }
    }

    fn state(run: &Path, state: &Path) -> State {
        let (region, _) = Region::open_or_create(&run.join("sa-state")).unwrap();
        State::new(region, state).unwrap()
    }

    #[test]
    fn a_key_whose_numbers_are_lost_is_refused() {
        // RFC 4303 §3.3.3 [3.3.3-manual-counter]
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
    fn after_a_reboot_what_has_no_sa_is_blocked_and_not_in_clear() {
        let [run, kept] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let (out, into) = (sa(Direction::Out, 1, 64), sa(Direction::In, 2, 64));
        let first = config(&[out.clone(), into.clone()]);
        state(run.path(), kept.path())
            .give(first, &Wanted::default())
            .unwrap();
        std::fs::remove_file(run.path().join("sa-state")).unwrap();

        let mut both = config(&[out, sa(Direction::In, 3, 64), into]);
        both.sas[1].id.spi = Spi::new(0x1002).unwrap();
        both.policies = vec![PolicySpec {
            selector: Selector::hosts(both.sas[2].id.destination, both.sas[0].id.destination),
            order: 0,
            action: Action::Protect {
                outbound: Some(both.sas[0].id),
                inbound: vec![both.sas[1].id, both.sas[2].id],
            },
        }];
        let fresh = both.sas[1].id;
        let mut rebooted = state(run.path(), kept.path());
        let (wanted, problem) = rebooted.give_at_start(both).unwrap();
        assert_eq!(problem.unwrap().lines().count(), 2);
        assert_eq!(wanted.sas.len(), 1);
        let policy = wanted.policies.values().next().unwrap();
        assert_eq!(
            policy.action,
            Action::Protect {
                outbound: None,
                inbound: vec![fresh],
            }
        );
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
    fn a_key_does_not_change_its_direction() {
        let [run, kept] = [(); 2].map(|()| tempfile::tempdir().unwrap());
        let mut state = state(run.path(), kept.path());
        let pair = |out, into| config(&[sa(Direction::Out, out, 64), sa(Direction::In, into, 64)]);
        let first = state.give(pair(1, 2), &Wanted::default()).unwrap();
        // The keys exchanged: the peer has sent under the one that we would send under.
        let error = state.give(pair(2, 1), &first).unwrap_err().to_string();
        assert_eq!(error.matches("other direction").count(), 2, "{error}");
        // Also when they were gone in between, and after a reboot.
        let none = state.give(config(&[]), &first).unwrap();
        assert!(state.give(pair(2, 1), &none).is_err());
        std::fs::remove_file(run.path().join("sa-state")).unwrap();
        let mut rebooted = self::state(run.path(), kept.path());
        assert!(rebooted.give(pair(2, 1), &Wanted::default()).is_err());
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
        // A datapath may run with it: a start with another window must not take it away.
        assert!(
            state
                .give_at_start(config(&[sa(Direction::In, 1, 128)]))
                .is_err()
        );
        state
            .give(config(&[sa(Direction::In, 2, 128)]), &first)
            .unwrap();
    }
}

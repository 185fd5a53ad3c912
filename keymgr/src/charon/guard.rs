//! Peers that a charon has protected once: Geneve to them stays blocked when their policies are gone, until it is known
//! that they are to go in clear. Policies go for many reasons (a peer that does not answer, a charon that is restarted
//! or has crashed, a key manager that was killed), and only one of them is that somebody wants it so: a trap that is
//! taken out of a charon that runs on, as ovs-monitor-ipsec does when a tunnel needs no IPsec any more.
//!
//! The list is kept in a file of the run directory, so that a key manager that starts again knows it before any
//! charon has spoken.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ipnet::IpNet;
use log::warn;

/// How long after the last change of any policy a peer is let go: a configuration that is loaded anew, or a charon that
/// ends without saying so, takes policies out one by one, which must not look like a decision.
const LINGER: Duration = Duration::from_secs(5);

/// What is known of a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Known {
    /// Whether a trap stands for it, or did until it was taken out.
    trapped: bool,
    /// When it is let go.
    leaves: Option<Instant>,
}

/// The peers that are, or were, protected.
#[derive(Debug)]
pub(super) struct Guard {
    path: PathBuf,
    known: BTreeMap<IpNet, Known>,
    /// Those that have policies.
    present: BTreeSet<IpNet>,
    /// What the file says.
    saved: String,
}

impl Guard {
    /// Takes up the list at `path`.
    ///
    /// # Errors
    /// It cannot be read.
    pub(super) fn open(path: PathBuf) -> io::Result<Self> {
        let text = match std::fs::read_to_string(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => String::new(),
            other => other?,
        };
        let known = text.lines().filter_map(|line| {
            let net = line.parse().ok();
            if net.is_none() {
                warn!("{}: \"{line}\" is no prefix", path.display());
            }
            Some((net?, Known::default()))
        });
        Ok(Self {
            known: known.collect(),
            present: BTreeSet::new(),
            path,
            saved: text,
        })
    }

    /// What has policies now that protect or discard, and whether with a trap. `taken_out`: a charon that runs has
    /// taken out what is missing.
    pub(super) fn update(
        &mut self,
        present: &BTreeMap<IpNet, bool>,
        taken_out: bool,
        now: Instant,
    ) {
        for (net, trap) in present {
            let known = self.known.entry(*net).or_default();
            known.trapped |= trap;
            known.leaves = None;
        }
        for (net, known) in &mut self.known {
            if self.present.contains(net) && !present.contains_key(net) {
                known.leaves = (taken_out && known.trapped).then_some(now);
                known.trapped = false;
            }
            // There may be more to come.
            known.leaves = known.leaves.map(|_| now + LINGER);
        }
        self.present = present.keys().copied().collect();
        self.save();
    }

    /// The charon is gone: nobody leaves whom it has just taken out.
    pub(super) fn hold_all(&mut self) {
        for known in self.known.values_mut() {
            known.leaves = None;
        }
    }

    /// Lets go those whose time has come, and says whether there were any.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.known.len();
        self.known
            .retain(|_, known| known.leaves.is_none_or(|leaves| now < leaves));
        self.save();
        self.known.len() != before
    }

    /// Those without policies.
    pub(super) fn held(&self) -> impl Iterator<Item = IpNet> {
        self.known
            .keys()
            .copied()
            .filter(|net| !self.present.contains(net))
    }

    /// Lets go of one that is held, or of all, and says of which.
    pub(super) fn release(&mut self, which: Option<IpNet>) -> Vec<IpNet> {
        let held = self.held();
        let released: Vec<IpNet> = held
            .filter(|net| which.is_none_or(|which| which == *net))
            .collect();
        for net in &released {
            self.known.remove(net);
        }
        self.save();
        released
    }

    /// Holds a peer that has no policy, and should have had one.
    pub(super) fn hold(&mut self, net: IpNet) {
        self.known.entry(net).or_default();
        self.save();
    }

    /// Writes the list, if it has changed.
    fn save(&mut self) {
        let text: String = self.known.keys().map(|net| format!("{net}\n")).collect();
        if text == self.saved {
            return;
        }
        let write = || -> io::Result<()> {
            let hidden = self.path.with_extension("new");
            let mut file = std::fs::File::options()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&hidden)?;
            file.write_all(text.as_bytes())?;
            std::fs::rename(&hidden, &self.path)
        };
        if let Err(error) = write() {
            warn!(
                "{}: {error}: peers that strongSwan protects are not guarded over a restart of the key manager",
                self.path.display()
            );
        }
        // Also if it could not be written: it is said once.
        self.saved = text;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn guard(folder: &tempfile::TempDir) -> Guard {
        Guard::open(folder.path().join("held")).unwrap()
    }

    fn some(trap: bool) -> BTreeMap<IpNet, bool> {
        BTreeMap::from([(net("192.0.2.2/32"), trap)])
    }

    #[test]
    fn a_trap_that_is_taken_out_lets_go_after_a_while() {
        let folder = tempfile::tempdir().unwrap();
        let (mut guard, now) = (guard(&folder), Instant::now());
        guard.update(&some(true), true, now);
        // The trap goes first, the SA's policy later.
        guard.update(&some(false), true, now);
        assert_eq!(guard.held().count(), 0);
        guard.update(&BTreeMap::new(), true, now);
        assert_eq!(guard.held().count(), 1);
        assert!(!guard.expire(now + LINGER / 2));
        // As long as something changes, nobody is let go.
        guard.update(&BTreeMap::new(), true, now + LINGER / 2);
        assert!(!guard.expire(now + LINGER));
        assert!(guard.expire(now + LINGER * 2));
        assert_eq!(guard.held().count(), 0);
    }

    #[test]
    fn without_a_trap_or_without_a_charon_it_is_held() {
        for (trap, ends) in [(false, false), (true, true)] {
            let folder = tempfile::tempdir().unwrap();
            let (mut guard, now) = (guard(&folder), Instant::now());
            guard.update(&some(trap), true, now);
            guard.update(&BTreeMap::new(), true, now);
            if ends {
                guard.hold_all();
            }
            assert!(!guard.expire(now + LINGER * 100));
            assert_eq!(guard.held().collect::<Vec<_>>(), [net("192.0.2.2/32")]);
            // It may come back, and be released.
            guard.update(&some(trap), true, now);
            assert_eq!(guard.held().count(), 0);
            assert!(guard.release(None).is_empty());
            guard.update(&BTreeMap::new(), false, now);
            assert!(guard.release(Some(net("192.0.2.3/32"))).is_empty());
            assert_eq!(guard.release(Some(net("192.0.2.2/32"))).len(), 1);
            assert_eq!(guard.held().count(), 0);
        }
    }

    #[test]
    fn a_restart_knows_whom_to_hold() {
        let folder = tempfile::tempdir().unwrap();
        guard(&folder).update(&some(true), true, Instant::now());
        let mut again = guard(&folder);
        assert_eq!(again.held().count(), 1);
        // The charon comes back with less.
        again.update(&BTreeMap::new(), false, Instant::now());
        assert_eq!(again.held().count(), 1);
        assert_eq!(again.release(None).len(), 1);
        assert_eq!(guard(&folder).held().count(), 0);
    }
}

//! Arbitrary text as the key manager's configuration: no panic, problems have their lines, and what is accepted is
//! fit for use: SAs that compile, names and keys that come once, policies whose SAs are there.
#![no_main]

use std::collections::HashSet;
use std::path::Path;

use config::{Config, parse};
use culvert_esp::{Backend, InboundSa, OutboundSa};
use culvert_proto::policy::{VNI, VniRange};
use culvert_proto::sa::{Action, Direction, PolicySpec, SaId, SaSpec};
use culvert_state::Words;
use culvert_state::layout::{inbound, outbound};
use libfuzzer_sys::fuzz_target;

// The code under test as it stands in the key manager, which would want aws-lc built with sanitizers.
#[path = "../../../keymgr/src/config.rs"]
#[allow(dead_code, reason = "the target does not read files")]
mod config;
#[path = "../../../keymgr/src/entry.rs"]
mod entry;
#[path = "../../../keymgr/src/fallback_entry.rs"]
mod fallback_entry;
#[path = "../../../keymgr/src/keys/hex.rs"]
mod hex;
#[path = "../../../keymgr/src/policy_entry.rs"]
mod policy_entry;

/// What the code takes from the key manager's `keys` module; no file is opened, wherever the text says it is.
mod keys {
    use std::path::Path;

    use culvert_proto::sa::Keymat;

    pub(crate) use crate::hex::from_hex;

    pub(crate) fn from_file(path: &Path) -> Result<Keymat, String> {
        from_hex(&path.file_name().unwrap_or_default().to_string_lossy())
    }

    pub(crate) fn check_private(_: &Path) -> Result<(), String> {
        Ok(())
    }
}

fn check_sa(sa: &SaSpec) {
    let compiled = match sa.id.direction {
        Direction::In => {
            assert_eq!(sa.tfc, 0);
            let words = Words::on_heap(inbound::words(sa.replay_window));
            InboundSa::new(sa, words, Backend::RustCrypto).map(drop)
        }
        Direction::Out => {
            let words = Words::on_heap(outbound::WORDS);
            OutboundSa::new(sa, words, Backend::RustCrypto).map(drop)
        }
    };
    compiled.unwrap();
    assert_ne!(sa.source, sa.id.destination);
    if let Some(ports) = sa.encapsulation {
        assert!(ports.source_port > 0 && ports.destination_port > 0);
    }
    let (soft, hard) = (sa.lifetime.soft, sa.lifetime.hard);
    for (soft, hard) in [
        (soft.bytes, hard.bytes),
        (soft.packets, hard.packets),
        (soft.seconds, hard.seconds),
        (soft.seconds_in_use, hard.seconds_in_use),
    ] {
        assert!(soft.unwrap_or(1) > 0 && hard.unwrap_or(1) > 0);
        assert!(soft.zip(hard).is_none_or(|(soft, hard)| soft < hard));
    }
}

fn check_policy(policy: &PolicySpec, sas: &[SaSpec]) {
    let (local, remote) = (&policy.selector.local, &policy.selector.remote);
    assert_eq!(local.addr().is_ipv4(), remote.addr().is_ipv4());
    assert_eq!((*local, *remote), (local.trunc(), remote.trunc()));
    let vnis = &policy.selector.vnis;
    let ordered = |range: &VniRange| range.first <= range.last;
    assert!(
        vnis.iter()
            .all(|range| ordered(range) && VNI.contains(&range.last))
    );
    assert!(vnis.windows(2).all(|pair| pair[0].last + 1 < pair[1].first));
    let named = |id: &SaId, direction| {
        assert_eq!(id.direction, direction);
        let sa = sas.iter().find(|sa| sa.id == *id).unwrap();
        let (here, there) = match direction {
            Direction::Out => (sa.source, sa.id.destination),
            Direction::In => (sa.id.destination, sa.source),
        };
        assert!(local.contains(&here) && remote.contains(&there));
    };
    if let Action::Protect { outbound, inbound } = &policy.action {
        outbound.iter().for_each(|id| named(id, Direction::Out));
        inbound.iter().for_each(|id| named(id, Direction::In));
        assert_eq!(inbound.iter().collect::<HashSet<_>>().len(), inbound.len());
    }
}

fn check(config: &Config) {
    let Config {
        sas,
        policies,
        modes,
        fallback,
    } = config;
    sas.iter().for_each(check_sa);
    let ids: HashSet<_> = sas
        .iter()
        .map(|sa| (sa.id.spi, sa.id.destination))
        .collect();
    let keys: HashSet<_> = sas.iter().map(|sa| sa.keymat.bytes()).collect();
    assert_eq!((ids.len(), keys.len()), (sas.len(), sas.len()));
    policies.iter().for_each(|policy| check_policy(policy, sas));
    assert!(policies.is_sorted_by(|one, next| one.order < next.order));
    let selectors: HashSet<_> = policies.iter().map(|policy| &policy.selector).collect();
    assert_eq!(selectors.len(), policies.len());
    // Who may serve is said of policies that there are, and that are served.
    let protects = |policy: &&PolicySpec| matches!(policy.action, Action::Protect { .. });
    let served: HashSet<_> = policies
        .iter()
        .filter(protects)
        .map(|policy| &policy.selector)
        .collect();
    assert!(modes.keys().all(|selector| served.contains(selector)));
    assert!((50..=60_000).contains(&fallback.hung_after.as_millis()));
    let peers: HashSet<_> = fallback.peers.iter().map(|(remote, _)| remote).collect();
    assert_eq!(peers.len(), fallback.peers.len());
    for (remote, mode) in &fallback.peers {
        assert_eq!(*remote, remote.trunc());
        assert_eq!(fallback.mode_for(remote), *mode);
    }
}

fuzz_target!(|text: &str| {
    match parse(text, Path::new("keymgr.toml")) {
        Ok((config, _)) => check(&config),
        Err(problems) => {
            let lines = text.matches('\n').count() + 1;
            assert!(!problems.list.is_empty());
            assert!(problems.list.iter().all(|problem| problem.line <= lines));
            assert!(problems.to_string().contains("keymgr.toml"));
        }
    }
});

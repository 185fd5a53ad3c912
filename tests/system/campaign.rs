//! The fault campaign with Culvert on both sides. `CULVERT_CAMPAIGN_SEED` repeats one, `CULVERT_CAMPAIGN_EVENTS` says how much
//! happens, and `CULVERT_RECORD` names a file for what was measured.

use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};
use culvert_tests::campaign::events::Kind;
use culvert_tests::campaign::judge::Judge;
use culvert_tests::campaign::keys::Keys;
use culvert_tests::campaign::{Campaign, mount_state};
use culvert_tests::lab::{Lab, Plan};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[("fault_campaign", fault_campaign)];

/// Longest time until traffic flows again.
const LIMIT: Duration = Duration::from_secs(10);

/// UDP packets a second, each way.
const RATE: u32 = 5000;

/// Longest time for a campaign: no event takes as long as this without failing.
pub(crate) fn limit() -> Duration {
    let events = u32::try_from(events().unwrap_or_default()).unwrap_or(u32::MAX);
    crate::LIMIT.saturating_add(Duration::from_secs(5).saturating_mul(events))
}

fn setting<T: FromStr>(name: &str) -> Result<Option<T>>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    match std::env::var(name) {
        Ok(text) => Ok(Some(
            text.parse().with_context(|| format!("{name}={text}"))?,
        )),
        Err(_) => Ok(None),
    }
}

/// As many as all continuous integration has time for, unless every case is wanted.
fn events() -> Result<usize> {
    let every = std::env::var_os("CULVERT_EVERY_CASE").is_some();
    let usual = if every { 100 } else { 25 };
    Ok(setting("CULVERT_CAMPAIGN_EVENTS")?.unwrap_or(usual))
}

fn seed() -> Result<u64> {
    if let Some(seed) = setting("CULVERT_CAMPAIGN_SEED")? {
        return Ok(seed);
    }
    let mut bytes = [0; 4];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(u32::from_ne_bytes(bytes).into())
}

fn fault_campaign() -> Result<()> {
    let (seed, events) = (seed()?, events()?);
    eprintln!("fault_campaign: seed {seed}, {events} events");
    let mut lab = Lab::new(Plan::default())?;
    let give = Box::new(Lab::rekey);
    let keys = Keys::new(lab.plan().cipher, give)?;
    for side in 0..2 {
        mount_state(&lab, side)?;
        lab.start_side(side, keys.current())?;
    }
    for side in 0..2 {
        lab.wait_for_protection(side)?;
    }
    let judge = Judge::start(&lab)?;
    let campaign = Campaign {
        lab: &mut lab,
        seed,
        events,
        kinds: &Kind::ALL,
        sides: &[0, 1],
        rate: RATE,
        limit: LIMIT,
        keys,
        judge,
    };
    let report = campaign.run()?;
    eprintln!("{}", report.table());
    if let Some(file) = setting::<String>("CULVERT_RECORD")? {
        report.write(&file)?;
    }
    Ok(())
}

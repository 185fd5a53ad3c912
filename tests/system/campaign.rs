//! The fault campaign with Culvert on both sides.

use std::time::Duration;

use anyhow::Result;
use culvert_tests::campaign::events::Kind;
use culvert_tests::campaign::judge::Judge;
use culvert_tests::campaign::keys::Keys;
use culvert_tests::campaign::settings::Settings;
use culvert_tests::campaign::{Campaign, mount_state};
use culvert_tests::lab::{Lab, Plan};

pub(crate) const TESTS: &[(&str, crate::Test)] = &[("fault_campaign", fault_campaign)];

/// Longest time until traffic flows again.
const LIMIT: Duration = Duration::from_secs(10);

/// UDP packets a second, each way.
const RATE: u32 = 5000;

/// As many as all continuous integration has time for, and if every case is wanted.
const EVENTS: [usize; 2] = [25, 100];

/// Longest time for a campaign: no event takes as long as this without failing.
pub(crate) fn limit() -> Duration {
    let events = Settings::events(EVENTS[0], EVENTS[1]).unwrap_or_default();
    let events = u32::try_from(events).unwrap_or(u32::MAX);
    crate::LIMIT.saturating_add(Duration::from_secs(5).saturating_mul(events))
}

fn fault_campaign() -> Result<()> {
    let settings = Settings::read("fault_campaign", EVENTS[0], EVENTS[1])?;
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
        seed: settings.seed,
        events: settings.events,
        kinds: &Kind::ALL,
        sides: &[0, 1],
        rate: RATE,
        limit: LIMIT,
        keys,
        judge,
    };
    settings.keep(&campaign.run()?, "system")
}

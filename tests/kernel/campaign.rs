//! The fault campaign with the kernel's IPsec as the peer, and behind Culvert: only a is hurt, and both get new keys.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use culvert_proto::sa::Cipher;
use culvert_tests::campaign::events::Kind;
use culvert_tests::campaign::judge::Judge;
use culvert_tests::campaign::keys::Keys;
use culvert_tests::campaign::settings::Settings;
use culvert_tests::campaign::{Campaign, mount_state};
use culvert_tests::lab::Lab;

use crate::fallback::plan;
use crate::xfrm::{Algorithm, Xfrm};

/// Longest time until traffic flows again, on emulated CPUs that start five processes a second.
const LIMIT: Duration = Duration::from_mins(2);

/// UDP packets a second, each way.
const RATE: u32 = 200;

const ALGORITHM: Algorithm = Algorithm {
    name: "rfc4106(gcm(aes))",
    icv_bits: 128,
};

pub(crate) fn against_the_kernel() -> Result<()> {
    // Little, as an event takes its time here, unless every case is wanted.
    let settings = Settings::read("fault_campaign_with_the_kernel_behind", 3, 30)?;
    let mut lab = Lab::new(plan())?;
    ensure!(lab.endpoint == "kernel", "the kernel has no Geneve");
    let xfrm = Arc::new(Xfrm::new(&lab)?);
    let peer = Arc::clone(&xfrm);
    let mut installed = Vec::new();
    let mut keys = Keys::new(
        Cipher::Aes256Gcm16,
        Box::new(move |lab, side, generations, out| match side {
            0 => lab.rekey(0, generations, out),
            _ => peer.change(&mut installed, generations, out, ALGORITHM),
        }),
    )?;
    mount_state(&lab, 0)?;
    lab.start_side(0, keys.current())?;
    keys.give_current(&lab, 1)?;
    lab.wait_for_protection(0)?;
    let judge = Judge::start(&lab)?;
    let campaign = Campaign {
        lab: &mut lab,
        seed: settings.seed,
        events: settings.events,
        kinds: &Kind::ALL,
        sides: &[0],
        rate: RATE,
        limit: LIMIT,
        keys,
        judge,
    };
    let mut report = campaign.run()?;
    // Whatever happened, the peer has seen no replay and no forgery.
    report.peer = xfrm.errors()?.into_iter().collect();
    let errors: Vec<_> = report
        .peer
        .iter()
        .filter(|(name, _)| name.ends_with("SeqError") || name.ends_with("ProtoError"))
        .collect();
    ensure!(errors.is_empty(), "the peer counts {errors:?}");
    settings.keep(&report, "kernel")
}

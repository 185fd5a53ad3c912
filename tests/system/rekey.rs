//! New keys under traffic: nothing lost, nothing in clear.

use anyhow::{Result, ensure};
use culvert_proto::sa::Cipher;
use culvert_tests::keys::Generation;
use culvert_tests::lab::{Lab, Plan};
use culvert_tests::load;
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[("rekey_loses_nothing", rekey_loses_nothing)];

fn generation(number: u32) -> Result<Generation> {
    Generation::new(Cipher::Aes256Gcm16, [0x1100 + number, 0x2100 + number])
}

/// Gives both sides a new file, one after the other.
fn load_on_both(lab: &Lab, generations: &[&Generation], out: usize) -> Result<()> {
    for number in 0..2 {
        lab.rekey(number, generations, out)?;
    }
    Ok(())
}

fn rekey_loses_nothing() -> Result<()> {
    let plan = Plan::default();
    let mut lab = Lab::new(plan)?;
    lab.start_culvert()?;
    let mut old = generation(0)?;
    load_on_both(&lab, &[&old], 0)?;
    take_counts(&lab.underlay)?;
    std::thread::scope(|scope| -> Result<()> {
        // 3 s of traffic, in which the keys are changed again and again.
        let ping = scope.spawn(|| load::ping(&lab, 300));
        let mut changes = 0;
        while !ping.is_finished() {
            changes += 1;
            let new = generation(changes)?;
            // Accepted everywhere before it is used anywhere; dropped only when it is used nowhere.
            load_on_both(&lab, &[&old, &new], 0)?;
            load_on_both(&lab, &[&old, &new], 1)?;
            load_on_both(&lab, &[&new], 0)?;
            old = new;
        }
        let ping = ping
            .join()
            .map_err(|_| anyhow::anyhow!("ping panicked"))??;
        ensure!(changes > 3, "only {changes} changes of keys");
        ensure!(
            ping.received == ping.sent,
            "lost by {changes} changes of keys: {ping:?}"
        );
        Ok(())
    })?;
    let counts = take_counts(&lab.underlay)?;
    ensure!(counts.plaintext_geneve.packets == 0, "{counts:?}");
    for side in &lab.sides {
        let drops = side.datapath_status()?.drops;
        ensure!(drops.values().all(|count| *count == 0), "{drops:?}");
    }
    Ok(())
}

//! New keys under traffic: nothing lost, nothing in clear.

use std::fmt::Write;

use anyhow::{Result, ensure};
use culvert_proto::sa::Cipher;
use culvert_tests::lab::{Lab, Plan, culvert, random_key, write_private};
use culvert_tests::load;
use culvert_tests::netns::run;
use culvert_tests::wire::take_counts;

pub(crate) const TESTS: &[(&str, crate::Test)] = &[("rekey_loses_nothing", rekey_loses_nothing)];

/// SPIs and keys from a to b and from b to a.
struct Generation {
    spis: [u32; 2],
    keys: [String; 2],
}

impl Generation {
    fn new(number: u32) -> Result<Self> {
        let cipher = Cipher::Aes256Gcm16;
        Ok(Self {
            spis: [0x1100 + number, 0x2100 + number],
            keys: [random_key(cipher)?, random_key(cipher)?],
        })
    }
}

/// The file of side `number`: it accepts under all `generations`, and sends under the one at `out`.
fn config(lab: &Lab, number: usize, generations: &[&Generation], out: usize) -> Result<String> {
    let outer = [lab.sides[0].outer, lab.sides[1].outer];
    let mut text = String::new();
    for generation in generations {
        for way in 0..2 {
            writeln!(
                text,
                "[[sa]]\ndirection = \"{}\"\nspi = {:#x}\nsource = \"{}\"\ndestination = \"{}\"\n\
                 cipher = \"aes256gcm16\"\nkey = \"{}\"",
                if way == number { "out" } else { "in" },
                generation.spis[way],
                outer[way],
                outer[1 - way],
                generation.keys[way],
            )?;
        }
    }
    let inbound: Vec<u32> = generations.iter().map(|one| one.spis[1 - number]).collect();
    writeln!(
        text,
        "[[policy]]\nlocal = \"{}\"\nremote = \"{}\"\nout = {:#x}\nin = {inbound:?}",
        outer[number],
        outer[1 - number],
        generations[out].spis[number],
    )?;
    Ok(text)
}

/// Gives both sides a new file, one after the other.
fn load_on_both(lab: &Lab, generations: &[&Generation], out: usize) -> Result<()> {
    for number in 0..2 {
        let side = &lab.sides[number];
        let text = config(lab, number, generations, out)?;
        write_private(&side.folder.join("keymgr.toml"), &text)?;
        run(&mut culvert(side, &["reload"])?)?;
    }
    Ok(())
}

fn rekey_loses_nothing() -> Result<()> {
    let plan = Plan::default();
    let mut lab = Lab::new(plan)?;
    lab.start_culvert()?;
    let mut old = Generation::new(0)?;
    load_on_both(&lab, &[&old], 0)?;
    take_counts(&lab.underlay)?;
    std::thread::scope(|scope| -> Result<()> {
        // 3 s of traffic, in which the keys are changed again and again.
        let ping = scope.spawn(|| load::ping(&lab, 300));
        let mut changes = 0;
        while !ping.is_finished() {
            changes += 1;
            let new = Generation::new(changes)?;
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

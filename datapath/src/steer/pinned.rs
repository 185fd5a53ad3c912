//! Pinned maps of a datapath before this one, held against what the programs of this one expect: aya takes a
//! pinned map as it is.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::maps::MapInfo;
use aya_obj::{Map, Object};
use log::info;

/// The maps that say whom to protect: never made anew behind the back of programs that use them.
const POLICY: [&str; 2] = ["PEERS", "PREFIXES"];

/// Makes room for the maps of `programs` in `folder`: pins of another shape, which another release made, are
/// removed. Programs that are attached keep theirs, and protect by them, until they are replaced.
///
/// # Errors
/// The peers to be protected are of another shape: what is in force cannot be taken over, and stays.
pub(super) fn prepare(programs: &[u8], folder: &Path) -> Result<()> {
    for (name, map) in &Object::parse(programs)?.maps {
        let pin = folder.join(name);
        if !pin.exists() {
            continue;
        }
        let found = MapInfo::from_pin(&pin)
            .with_context(|| format!("{} is no pinned eBPF map", pin.display()))?;
        if fits(map, &found, name)? {
            continue;
        }
        if POLICY.contains(&name.as_str()) {
            bail!(
                "{} is of another release; the programs that use it go on protecting. \
                 `culvert-datapath --remove` clears them, and Geneve is in clear until the next start",
                pin.display()
            );
        }
        info!("{} is of another release: made anew", pin.display());
        fs::remove_file(&pin).with_context(|| pin.display().to_string())?;
    }
    Ok(())
}

fn fits(map: &Map, found: &MapInfo, name: &str) -> Result<bool> {
    let sizes = (found.key_size(), found.value_size()) == (map.key_size(), map.value_size());
    let alike = found.map_type()? as u32 == map.map_type() && sizes;
    // Fewer peers than this release takes are no reason to stop.
    Ok(alike && (POLICY.contains(&name) || found.max_entries() == map.max_entries()))
}

/// Removes the pins of `programs`' maps, and `folder` if nothing else is in it.
///
/// # Errors
/// A pin cannot be removed.
pub(super) fn remove(programs: &[u8], folder: &Path) -> Result<()> {
    let pins: Vec<PathBuf> = Object::parse(programs)?
        .maps
        .keys()
        .map(|name| folder.join(name))
        .collect();
    for pin in pins.iter().filter(|pin| pin.exists()) {
        fs::remove_file(pin).with_context(|| pin.display().to_string())?;
    }
    // It stays if it has something else in it, or was never there.
    let _ = fs::remove_dir(folder);
    Ok(())
}

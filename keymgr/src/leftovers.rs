//! What the key manager leaves when it ends, so that its end is no gap, and what of it is taken away on purpose.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use anyhow::{Context, Result};
use culvert_proto::KEYMGR_SOCKET;
use culvert_proto::sa::StateRef;
use culvert_state::Region;
use culvert_state::region::Fingerprint;
use log::info;

use crate::daemon::REGION;
use crate::stand_in::StandIn;

/// File name of the list of peers that strongSwan has protected, in the run directory.
pub(crate) const HELD: &str = "held";

/// What is left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Leftovers {
    /// Whether there is a list of peers that strongSwan has protected.
    pub held: bool,
    /// SAs and policies of ours in the kernel.
    pub kernel: usize,
}

/// Looks at what is left, and changes nothing.
///
/// # Errors
/// The kernel does not say.
pub fn look(run: &Path) -> Result<Leftovers> {
    Ok(Leftovers {
        held: run.join(HELD).exists(),
        kernel: count_kernel_leftovers(run)?,
    })
}

/// Removes what is left. From then on, the kernel does nothing for Geneve, and a key manager that starts again holds
/// nobody of whom its sources do not speak.
///
/// Two things stay. The list of used keys: a static key that was used before is not new. And the SA state region, which has
/// the sequence numbers and replay windows of static keys: without it they could not go on, and would be refused.
pub(crate) fn remove(run: &Path) -> Result<()> {
    let count = kernel_leftovers(run).context("the kernel's SAs and policies")?;
    if count > 0 {
        info!("{count} SAs and policies removed from the kernel");
    }
    // One that a killed key manager has left: nobody listens.
    for file in [HELD, KEYMGR_SOCKET].map(|file| run.join(file)) {
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).with_context(|| file.display().to_string());
            }
            _ => {}
        }
    }
    Ok(())
}

/// Removes the SAs and policies in the kernel that are ours, as the key manager whose run directory is `run` has put them
/// there, and says how many there were. Nothing of anybody else is touched. The caller has the key manager's lock, so that
/// nobody adds any meanwhile.
fn kernel_leftovers(run: &Path) -> Result<usize> {
    Ok(in_kernel(run)?.map_or(0, |mut there| there.clear()))
}

/// How many [`kernel_leftovers`] would remove. It removes nothing: who asks may not have decided yet.
fn count_kernel_leftovers(run: &Path) -> Result<usize> {
    Ok(in_kernel(run)?.map_or(0, |there| there.count_ours()))
}

/// What of ours is in the kernel. Without a region nothing is known to be.
fn in_kernel(run: &Path) -> Result<Option<StandIn>> {
    let Some(region) = Region::open_existing(&run.join(REGION))? else {
        return Ok(None);
    };
    let mapped = Region::from_fd(region.as_fd().try_clone_to_owned()?)?;
    // What it removes from the kernel goes to nobody, so that it turns no steering.
    let there = StandIn::new(mapped, Path::new("/nonexistent"), |key| {
        state_of(&region, key)
    });
    Ok(Some(there))
}

/// Where the state of a key is.
pub(crate) fn state_of(region: &Region, key: &Fingerprint) -> Option<StateRef> {
    let claim = region.find(key)?;
    Some(StateRef {
        offset: claim.offset,
        words: claim.words,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_was_held_goes_and_what_keys_need_stays() {
        let run = tempfile::tempdir().unwrap();
        for file in [HELD, KEYMGR_SOCKET, "sa-state"] {
            fs::write(run.path().join(file), "x").unwrap();
        }
        assert!(look(run.path()).unwrap().held);
        // The second time there is nothing, which is no error.
        for _ in 0..2 {
            remove(run.path()).unwrap();
            let left = look(run.path()).unwrap();
            assert_eq!((left.held, left.kernel), (false, 0));
        }
        assert!(run.path().join("sa-state").exists());
        assert!(!run.path().join(KEYMGR_SOCKET).exists());
    }
}

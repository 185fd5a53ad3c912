//! Static keys that were used, remembered on disk.
//!
//! The sequence number of an SA lives in memory, which a reboot clears; its static key lives in a file, which a
//! reboot does not. Starting at 1 again under that key would use nonces twice, which gives the key's
//! stream away; it is why RFC 4106 asks for automated key management. So the fingerprint of a
//! static key is on disk before its first packet, and a key whose numbers are lost is refused. The same
//! goes for inbound keys, whose replay windows are lost likewise.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use culvert_state::region::Fingerprint;

/// Where the list is, unless told otherwise.
pub const STATE_DIRECTORY: &str = "/var/lib/culvert";

// RFC 4303 §3.3.3 [3.3.3-manual-counter]: a key whose counter is lost is not used again.
/// The list.
#[derive(Debug)]
pub struct UsedKeys {
    file: File,
    seen: HashSet<Fingerprint>,
}

impl UsedKeys {
    /// Opens the list in `directory`, or begins one.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn open(directory: &Path) -> io::Result<Self> {
        let path = directory.join("used-keys");
        let file = File::options()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(nix::libc::O_NOFOLLOW)
            .open(&path)?;
        let mut seen = HashSet::new();
        for line in BufReader::new(&file).lines() {
            // A line that is not whole was being written when the machine died: its key was never used.
            seen.extend(parse(&line?));
        }
        File::open(directory)?.sync_all()?;
        Ok(Self { file, seen })
    }

    /// Whether a key was used.
    #[must_use]
    pub fn contains(&self, fingerprint: &Fingerprint) -> bool {
        self.seen.contains(fingerprint)
    }

    /// Adds keys; when this returns, they are on disk.
    ///
    /// # Errors
    /// The disk does not take them; then they must not be used.
    pub fn add(&mut self, fingerprints: impl IntoIterator<Item = Fingerprint>) -> io::Result<()> {
        let mut text = String::new();
        let mut new = Vec::new();
        for fingerprint in fingerprints {
            if !self.seen.contains(&fingerprint) {
                text.extend(fingerprint.iter().map(|byte| format!("{byte:02x}")));
                text.push('\n');
                new.push(fingerprint);
            }
        }
        if !new.is_empty() {
            // A newline first ends a line that was cut off.
            self.file.write_all(format!("\n{text}").as_bytes())?;
            self.file.sync_all()?;
            self.seen.extend(new);
        }
        Ok(())
    }
}

/// The fingerprint of a whole line.
fn parse(line: &str) -> Option<Fingerprint> {
    let mut fingerprint = Fingerprint::default();
    if line.len() != 2 * fingerprint.len() {
        return None;
    }
    for (at, byte) in fingerprint.iter_mut().enumerate() {
        *byte = u8::from_str_radix(line.get(2 * at..2 * at + 2)?, 16).ok()?;
    }
    Some(fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_remembered_and_a_torn_line_is_not() {
        let directory = tempfile::tempdir().unwrap();
        let mut used = UsedKeys::open(directory.path()).unwrap();
        used.add([[1; 16], [2; 16]]).unwrap();
        used.file.write_all(b"0303").unwrap();
        let mut used = UsedKeys::open(directory.path()).unwrap();
        assert!(used.contains(&[1; 16]) && used.contains(&[2; 16]));
        assert!(!used.contains(&[3; 16]));
        used.add([[4; 16]]).unwrap();
        let used = UsedKeys::open(directory.path()).unwrap();
        assert!(used.contains(&[4; 16]));
    }
}

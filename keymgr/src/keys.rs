//! Keys from hex digits and from files; fingerprints, which stand for keys without giving them away.

mod hex;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;

use aws_lc_rs::hmac;
use culvert_proto::sa::{Keymat, SaSpec};
use culvert_state::region::Fingerprint;
use zeroize::Zeroizing;

pub(crate) use self::hex::from_hex;

/// Longest key file in bytes: far more than any key.
const MAX_FILE: usize = 4096;

/// Keying material from a file of hex digits that only root can read.
pub(crate) fn from_file(path: &Path) -> Result<Keymat, String> {
    let file_name = path.file_name().unwrap_or_default().to_string_lossy();
    // Not said in any message: it is most likely the key itself.
    if file_name.len() >= 32 && from_hex(&file_name).is_ok() {
        return Err("key_file: this is a key and no file; write key = \"…\"".to_owned());
    }
    let name = format!("key_file {}", path.display());
    // Not through a link, and not blocking on a pipe that somebody put there.
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NOFOLLOW | nix::libc::O_NONBLOCK)
        .open(path)
        .map_err(|error| format!("{name}: {error}"))?;
    let metadata = file
        .metadata()
        .map_err(|error| format!("{name}: {error}"))?;
    check_metadata(&metadata, path).map_err(|problem| format!("{name}: {problem}"))?;
    let mut text = Zeroizing::new(String::with_capacity(MAX_FILE + 1));
    file.take(MAX_FILE as u64)
        .read_to_string(&mut text)
        .map_err(|error| format!("{name}: {error}"))?;
    from_hex(&text).map_err(|problem| format!("{name}: {problem}"))
}

/// Whether a file that has keys in it is private.
pub(crate) fn check_private(path: &Path) -> Result<(), String> {
    let metadata = fs::metadata(path).map_err(|error| error.to_string())?;
    check_metadata(&metadata, path)
}

fn check_metadata(metadata: &fs::Metadata, path: &Path) -> Result<(), String> {
    if !metadata.is_file() {
        return Err("no regular file".to_owned());
    }
    let path = path.display();
    if metadata.mode() & 0o077 != 0 {
        return Err(format!(
            "mode {:04o} lets others read it; chmod 0600 {path}",
            metadata.mode() & 0o7777
        ));
    }
    let me = nix::unistd::geteuid().as_raw();
    if metadata.uid() != 0 && metadata.uid() != me {
        return Err(format!(
            "it belongs to user {}; chown root {path}",
            metadata.uid()
        ));
    }
    Ok(())
}

/// What stands for the key of an SA: an HMAC, from which nobody gets back to the key. It is the same in both
/// directions: a key that one host has sent under, the other must not send under.
pub(crate) fn fingerprint(sa: &SaSpec) -> Fingerprint {
    fingerprint_of(sa.cipher.name(), &[sa.keymat.bytes()])
}

/// As [`fingerprint`], of keys for what has that name.
pub(crate) fn fingerprint_of(name: &str, keys: &[&[u8]]) -> Fingerprint {
    let key = hmac::Key::new(hmac::HMAC_SHA256, b"culvert key fingerprint 1");
    let mut context = hmac::Context::with_key(&key);
    context.update(name.as_bytes());
    for key in keys {
        context.update(key);
    }
    let tag = context.sign();
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(&tag.as_ref()[..16]);
    fingerprint
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_key_file_must_be_private_and_no_link() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        fs::write(&path, "0011\n").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert!(from_file(&path).unwrap_err().contains("chmod 0600"));
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
        assert_eq!(from_file(&path).unwrap().bytes(), [0, 0x11]);
        let link = directory.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        assert!(from_file(&link).is_err());
        assert!(from_file(directory.path()).is_err());
    }
}

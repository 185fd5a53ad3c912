//! The region's file: who may write it, and whether it is a region of this release and of this boot.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::{BOOT_AT, LENGTH, MAGIC, MAGIC_AT, VERSION, VERSION_AT, WORD};

pub(super) fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(create)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
}

/// Why `file` may have been written by somebody else; `None` if it cannot.
pub(super) fn check_access(file: &File) -> io::Result<Option<&'static str>> {
    use std::os::unix::fs::MetadataExt;
    let metadata = file.metadata()?;
    let ours = metadata.uid() == nix::unistd::geteuid().as_raw() && metadata.mode() & 0o022 == 0;
    Ok((!ours).then_some("others could write to it"))
}

/// Why `file` is no region of this release (and of `boot`); `None` if it is one.
pub(super) fn check(file: &File, boot: Option<[u64; 2]>) -> io::Result<Option<&'static str>> {
    use std::os::unix::fs::FileExt;
    if file.metadata()?.len() != (LENGTH * WORD) as u64 {
        return Ok(Some("it has a length that this release does not know"));
    }
    let mut header = [0; 4 * WORD];
    file.read_exact_at(&mut header, 0)?;
    let (words, _) = header.as_chunks::<WORD>();
    let word = |at: usize| u64::from_ne_bytes(words[at]);
    Ok(if word(MAGIC_AT) != MAGIC {
        Some("it is no SA state region")
    } else if word(VERSION_AT) != VERSION {
        Some("it is of another release")
    } else if boot.is_some_and(|boot| boot != [word(BOOT_AT), word(BOOT_AT + 1)]) {
        Some("it is from before the last reboot")
    } else {
        None
    })
}

pub(super) fn boot_id() -> io::Result<[u64; 2]> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let digits: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let parse = |range: std::ops::Range<usize>| {
        digits
            .get(range)
            .and_then(|part| u64::from_str_radix(part, 16).ok())
            .ok_or_else(|| io::Error::other("the kernel's boot id is no UUID"))
    };
    Ok([parse(0..16)?, parse(16..32)?])
}

//! The shared region: a file in the run directory, mapped by the key manager, which owns it, and by the
//! datapath, which gets its descriptor.
//!
//! ```text
//!   header │ directory: who has which words, by fingerprint of the key │ the words
//! ```
//! The file has a fixed length and is sparse: only pages that are used take memory. It survives the death of
//! either process, not a reboot: a region of another boot is not taken over, as nobody can say how far
//! its numbers had come on disk.
//!
//! An entry is written fields first and state last, so a key manager that dies in the middle leaves none or
//! a whole one. Words that an entry ever had stay its own while there is room: an SA that is removed and
//! added again goes on where it was.
#![expect(unsafe_code, reason = "memory shared between processes")]

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use crate::Words;
use crate::layout::{inbound, outbound};

const MAGIC: u64 = u64::from_be_bytes(*b"culvertS");
/// Raised by every change of this file's or [`crate::layout`]'s meaning.
const VERSION: u64 = 1;

/// Length in words: 512 MiB of address space.
const LENGTH: usize = 64 << 20;
const WORD: usize = 8;

// Words of the header, which has a page.
const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 1;
const BOOT_AT: usize = 2;
const NEXT_WORD_AT: usize = 4;
const NEXT_ENTRY_AT: usize = 5;

const DIRECTORY: usize = 512;
const ENTRIES: usize = 1 << 18;
const ENTRY_WORDS: usize = 8;
const AREA: usize = DIRECTORY + ENTRIES * ENTRY_WORDS;

// Words of a directory entry.
const STATE: usize = 0;
const KIND: usize = 1;
const FINGERPRINT: usize = 2;
const OFFSET: usize = 4;
const COUNT: usize = 5;

const FREE: u64 = 0;
const ACTIVE: u64 = 1;
const RETIRED: u64 = 2;

/// Stands for a key without giving it away.
pub type Fingerprint = [u8; 16];

/// What state an SA needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A sequence number.
    Outbound,
    /// A replay window of so many packets.
    Inbound {
        /// Its size.
        window: u32,
    },
}

impl Kind {
    fn words(self) -> usize {
        match self {
            Self::Outbound => outbound::WORDS,
            Self::Inbound { window } => inbound::words(window),
        }
    }

    fn code(self) -> u64 {
        match self {
            Self::Outbound => 0,
            Self::Inbound { window } => u64::from(window),
        }
    }
}

/// The words that an SA was given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Claim {
    /// First word.
    pub offset: u32,
    /// Number of words.
    pub words: u32,
    /// Whether they start from zero; else they go on where this key was.
    pub fresh: bool,
}

/// What can go wrong with the region.
#[derive(Debug, thiserror::Error)]
pub enum RegionError {
    /// No file, or no mapping.
    #[error("SA state region: {0}")]
    Io(#[from] io::Error),
    /// Not a region of this release.
    #[error("SA state region: {0}; key manager and datapath must be of the same release")]
    Foreign(&'static str),
    /// Words that are not an SA's.
    #[error("SA state region: {words} words from {offset} are outside of it")]
    Outside {
        /// First word.
        offset: u32,
        /// Number of words.
        words: u32,
    },
    /// No room.
    #[error("SA state region: no room for more than {ENTRIES} SAs")]
    Full,
    /// A running key's replay window has another size.
    #[error("this key is in use with a replay window of {running} packets, which cannot change while it lives; keep it, or give the SA a new key")]
    WindowChanged {
        /// The size in use.
        running: u64,
    },
}

/// The region, mapped.
#[derive(Debug)]
pub struct Region {
    map: Arc<MmapRaw>,
    file: File,
    /// Entries by fingerprint; only the owner has it.
    index: HashMap<Fingerprint, usize>,
}

impl Region {
    /// Opens the region at `path` as its owner, or makes a new one. Also says why what was there was not
    /// taken over, if so.
    ///
    /// # Errors
    /// It can be neither opened nor made.
    pub fn open_or_create(path: &Path) -> Result<(Self, Option<&'static str>), RegionError> {
        let boot = boot_id()?;
        let mut problem = None;
        if path.exists() {
            let file = open(path, false)?;
            match check(&file, Some(boot))? {
                None => {
                    let mut region = Self::map(file)?;
                    region.read_directory();
                    return Ok((region, None));
                }
                found => problem = found,
            }
            // The old file may be mapped by a datapath still: it keeps it, and gets the new one with the next
            // push.
            std::fs::remove_file(path)?;
        }
        // Made under another name: a key manager that dies here leaves no half region.
        let hidden = path.with_extension("new");
        if hidden.exists() {
            std::fs::remove_file(&hidden)?;
        }
        let file = open(&hidden, true)?;
        file.set_len((LENGTH * WORD) as u64)?;
        let region = Self::map(file)?;
        region.word(VERSION_AT).store(VERSION, Ordering::Relaxed);
        for (at, part) in (BOOT_AT..).zip(boot) {
            region.word(at).store(part, Ordering::Relaxed);
        }
        region
            .word(NEXT_WORD_AT)
            .store(AREA as u64, Ordering::Relaxed);
        region.word(MAGIC_AT).store(MAGIC, Ordering::Release);
        std::fs::rename(&hidden, path)?;
        Ok((region, problem))
    }

    /// Maps the region of a descriptor that its owner handed over.
    ///
    /// # Errors
    /// It is no region of this release.
    pub fn from_fd(descriptor: OwnedFd) -> Result<Self, RegionError> {
        let file = File::from(descriptor);
        match check(&file, None)? {
            None => Self::map(file),
            Some(problem) => Err(RegionError::Foreign(problem)),
        }
    }

    fn map(file: File) -> Result<Self, RegionError> {
        let map = MmapOptions::new().len(LENGTH * WORD).map_raw(&file)?;
        Ok(Self {
            map: Arc::new(map),
            file,
            index: HashMap::new(),
        })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        assert!(at < LENGTH, "within the region");
        // SAFETY: the mapping is LENGTH words long and lives as long as `self`; a page is aligned for words;
        // all access is by atomic operations.
        unsafe { &*self.map.as_mut_ptr().cast::<AtomicU64>().add(at) }
    }

    fn entry(&self, number: usize, field: usize) -> &AtomicU64 {
        self.word(DIRECTORY + number * ENTRY_WORDS + field)
    }

    fn read_directory(&mut self) {
        for number in 0..ENTRIES {
            match self.entry(number, STATE).load(Ordering::Acquire) {
                FREE if number >= self.entries() => break,
                FREE => {}
                _ => {
                    self.index.insert(self.fingerprint(number), number);
                }
            }
        }
    }

    fn entries(&self) -> usize {
        let count = self.word(NEXT_ENTRY_AT).load(Ordering::Relaxed);
        usize::try_from(count).unwrap_or(ENTRIES).min(ENTRIES)
    }

    fn fingerprint(&self, number: usize) -> Fingerprint {
        let mut fingerprint = [0; 16];
        for (at, part) in fingerprint.chunks_exact_mut(WORD).enumerate() {
            let word = self.entry(number, FINGERPRINT + at).load(Ordering::Relaxed);
            part.copy_from_slice(&word.to_ne_bytes());
        }
        fingerprint
    }

    /// The words of the SA whose key has this fingerprint: those that it had, or fresh ones.
    ///
    /// # Errors
    /// The key is in use with a window of another size; there is no room.
    pub fn claim(&mut self, fingerprint: Fingerprint, kind: Kind) -> Result<Claim, RegionError> {
        if let Some(&number) = self.index.get(&fingerprint) {
            let running = self.entry(number, KIND).load(Ordering::Relaxed);
            if running != kind.code() {
                return Err(RegionError::WindowChanged { running });
            }
            self.entry(number, STATE).store(ACTIVE, Ordering::Release);
            return Ok(self.claimed(number, false));
        }
        let number = self.allocate(kind.words())?;
        for (at, part) in fingerprint.chunks_exact(WORD).enumerate() {
            let mut word = [0; WORD];
            word.copy_from_slice(part);
            self.entry(number, FINGERPRINT + at)
                .store(u64::from_ne_bytes(word), Ordering::Relaxed);
        }
        self.entry(number, KIND).store(kind.code(), Ordering::Relaxed);
        self.entry(number, STATE).store(ACTIVE, Ordering::Release);
        self.index.insert(fingerprint, number);
        Ok(self.claimed(number, true))
    }

    /// Whether the key of this fingerprint has words.
    #[must_use]
    pub fn knows(&self, fingerprint: &Fingerprint) -> bool {
        self.index.contains_key(fingerprint)
    }

    /// The window that the key of this fingerprint runs with (0: outbound), if it has words.
    #[must_use]
    pub fn running_window(&self, fingerprint: &Fingerprint) -> Option<u64> {
        let number = self.index.get(fingerprint)?;
        Some(self.entry(*number, KIND).load(Ordering::Relaxed))
    }

    /// Says that the SA of this fingerprint is gone: its words are kept, but may be given to another when there
    /// is no room left.
    pub fn retire(&mut self, fingerprint: &Fingerprint) {
        if let Some(&number) = self.index.get(fingerprint) {
            self.entry(number, STATE).store(RETIRED, Ordering::Release);
        }
    }

    fn claimed(&self, number: usize, fresh: bool) -> Claim {
        let read = |field| {
            let value = self.entry(number, field).load(Ordering::Relaxed);
            u32::try_from(value).unwrap_or(u32::MAX)
        };
        Claim {
            offset: read(OFFSET),
            words: read(COUNT),
            fresh,
        }
    }

    /// An entry with `words` words of zero, not yet active.
    fn allocate(&mut self, words: usize) -> Result<usize, RegionError> {
        let next = self.word(NEXT_WORD_AT).load(Ordering::Relaxed);
        let number = self.entries();
        let offset = usize::try_from(next).unwrap_or(LENGTH);
        if number < ENTRIES && offset + words <= LENGTH {
            // Taken before it is used: a crash in between loses words, and hands none out twice.
            self.word(NEXT_WORD_AT)
                .store((offset + words) as u64, Ordering::Relaxed);
            self.entry(number, OFFSET)
                .store(offset as u64, Ordering::Relaxed);
            self.entry(number, COUNT)
                .store(words as u64, Ordering::Relaxed);
            self.word(NEXT_ENTRY_AT)
                .store(number as u64 + 1, Ordering::Release);
            return Ok(number);
        }
        // No room: take over from an SA that is gone.
        let number = (0..number)
            .find(|&number| {
                self.entry(number, STATE).load(Ordering::Relaxed) == RETIRED
                    && self.entry(number, COUNT).load(Ordering::Relaxed) == words as u64
            })
            .ok_or(RegionError::Full)?;
        let fingerprint = self.fingerprint(number);
        self.index.remove(&fingerprint);
        self.entry(number, STATE).store(FREE, Ordering::Release);
        let start = usize::try_from(self.entry(number, OFFSET).load(Ordering::Relaxed))
            .map_err(|_| RegionError::Full)?;
        for at in start..start + words {
            self.word(at).store(0, Ordering::Relaxed);
        }
        Ok(number)
    }

    /// The words at `offset`.
    ///
    /// # Errors
    /// They are not within the region.
    pub fn words(&self, offset: u32, words: u32) -> Result<Words, RegionError> {
        let (start, count) = (offset as usize, words as usize);
        if start < AREA || start + count > LENGTH {
            return Err(RegionError::Outside { offset, words });
        }
        let start = NonNull::from(self.word(start));
        // SAFETY: within the mapping, as just checked, which `map` keeps alive; aligned; all access to the region
        // is atomic.
        Ok(unsafe { Words::in_memory(start, count, Arc::clone(&self.map) as _) })
    }
}

impl AsFd for Region {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn open(path: &Path, create: bool) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(create)
        .mode(0o600)
        .custom_flags(nix::libc::O_NOFOLLOW)
        .open(path)
}

/// Why `file` is no region of this release (and of `boot`); `None` if it is one.
fn check(file: &File, boot: Option<[u64; 2]>) -> io::Result<Option<&'static str>> {
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

fn boot_id() -> io::Result<[u64; 2]> {
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

#[cfg(test)]
mod tests {
    use super::*;

    const WINDOW: Kind = Kind::Inbound { window: 64 };

    fn region() -> (tempfile::TempDir, std::path::PathBuf, Region) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sa-state");
        let (region, problem) = Region::open_or_create(&path).unwrap();
        assert_eq!(problem, None);
        (directory, path, region)
    }

    #[test]
    fn state_survives_its_owner_and_its_user() {
        let (_directory, path, mut region) = region();
        let claim = region.claim([1; 16], Kind::Outbound).unwrap();
        assert!(claim.fresh);
        let user = Region::from_fd(region.as_fd().try_clone_to_owned().unwrap()).unwrap();
        user.words(claim.offset, claim.words).unwrap()[outbound::LEASED]
            .store(77, Ordering::Relaxed);
        drop((user, region));

        let (mut region, problem) = Region::open_or_create(&path).unwrap();
        assert_eq!(problem, None);
        let again = region.claim([1; 16], Kind::Outbound).unwrap();
        assert_eq!(again, Claim { fresh: false, ..claim });
        let words = region.words(again.offset, again.words).unwrap();
        assert_eq!(words[outbound::LEASED].load(Ordering::Relaxed), 77);
        assert!(region.claim([2; 16], WINDOW).unwrap().offset >= claim.offset + claim.words);
    }

    #[test]
    fn the_file_is_roots() {
        use std::os::unix::fs::PermissionsExt;
        let (_directory, path, _region) = region();
        let mode = std::fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn what_is_removed_and_added_again_goes_on() {
        let (_directory, _, mut region) = region();
        let claim = region.claim([1; 16], WINDOW).unwrap();
        region.retire(&[1; 16]);
        let again = region.claim([1; 16], WINDOW).unwrap();
        assert_eq!((again.offset, again.fresh), (claim.offset, false));
    }

    #[test]
    fn a_running_window_does_not_change_its_size() {
        let (_directory, _, mut region) = region();
        region.claim([1; 16], WINDOW).unwrap();
        let error = region.claim([1; 16], Kind::Inbound { window: 128 }).unwrap_err();
        assert!(error.to_string().contains("64 packets"), "{error}");
    }

    #[test]
    fn a_region_of_another_boot_or_release_is_not_taken_over() {
        for (at, wanted) in [(BOOT_AT, "reboot"), (VERSION_AT, "release"), (MAGIC_AT, "no SA state")] {
            let (_directory, path, mut region) = region();
            region.claim([1; 16], Kind::Outbound).unwrap();
            region.word(at).fetch_add(1, Ordering::Relaxed);
            drop(region);
            let (mut region, problem) = Region::open_or_create(&path).unwrap();
            assert!(problem.unwrap().contains(wanted));
            assert!(region.claim([1; 16], Kind::Outbound).unwrap().fresh);
        }
    }

    #[test]
    fn words_outside_are_refused() {
        let (_directory, _, region) = region();
        for (offset, words) in [(0, 8), (u32::MAX, 8), ((LENGTH - 4) as u32, 8)] {
            assert!(region.words(offset, words).is_err());
        }
        let file = tempfile::tempfile().unwrap();
        assert!(Region::from_fd(file.into()).is_err());
    }

    #[test]
    fn a_key_manager_that_died_while_claiming_leaves_no_half_entry() {
        let (_directory, path, mut region) = region();
        region.claim([1; 16], Kind::Outbound).unwrap();
        // Everything of the second entry but its state, which comes last.
        let half = region.claim([2; 16], Kind::Outbound).unwrap();
        region.entry(1, STATE).store(FREE, Ordering::Relaxed);
        drop(region);
        let (mut region, _) = Region::open_or_create(&path).unwrap();
        let third = region.claim([3; 16], Kind::Outbound).unwrap();
        assert!(third.fresh && third.offset >= half.offset + half.words);
        assert!(!region.knows(&[2; 16]));
    }
}

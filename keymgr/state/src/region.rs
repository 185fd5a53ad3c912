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
//! added again goes on where it was. When there is none, what was retired first is given away first, so that
//! a datapath that is slow to let go of an SA does not share words with its successor.
//!
//! A file that others than root could write, or whose directory contradicts itself, is not taken over either.
//! Whoever truncates it kills both processes (SIGBUS); only root can, as it is root's and 0600. (Seals, which
//! would forbid it, exist for memfds only, and those do not outlive the key manager.)
#![expect(unsafe_code, reason = "memory shared between processes")]

use std::collections::{HashMap, HashSet, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use memmap2::{MmapOptions, MmapRaw};

use crate::Words;
use crate::layout::{inbound, outbound};
use file::{boot_id, check, check_access, open};

mod file;

const MAGIC: u64 = u64::from_be_bytes(*b"culvertS");
/// Raised by every change of this file's or [`crate::layout`]'s meaning.
const VERSION: u64 = 3;

/// Length in words: 512 MiB of address space.
const LENGTH: usize = 64 << 20;
const WORD: usize = 8;

// Words of the header, which has a page.
const MAGIC_AT: usize = 0;
const VERSION_AT: usize = 1;
const BOOT_AT: usize = 2;
const NEXT_WORD_AT: usize = 4;
const NEXT_ENTRY_AT: usize = 5;
/// How many entries were ever retired: the clock that says which was first.
const RETIREMENTS_AT: usize = 6;
/// When the datapath's workers were last all at work, in milliseconds of the monotonic clock; 0: never.
const HEARTBEAT_AT: usize = 7;

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
/// Of a retired entry: the value of the clock then.
const RETIREMENT: usize = 6;

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

    fn from_code(code: u64) -> Option<Self> {
        match u32::try_from(code).ok()? {
            0 => Some(Self::Outbound),
            window => Some(Self::Inbound { window }),
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
    #[error(
        "this key is in use with a replay window of {running} packets, which cannot change while it lives; keep it, or give the SA a new key"
    )]
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
    /// Retired entries by their number of words, the first one first; only the owner has it. Some may be
    /// in use again.
    retired: HashMap<usize, VecDeque<Retired>>,
}

/// An entry as it was when it was retired.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Retired {
    retirement: u64,
    number: usize,
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
            match Self::take_up(path, boot)? {
                Ok(region) => return Ok((region, None)),
                Err(why) => problem = Some(why),
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

    /// Opens the region at `path` as its owner, if there is one that can be taken over, and makes none.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open_existing(path: &Path) -> Result<Option<Self>, RegionError> {
        if !path.exists() {
            return Ok(None);
        }
        Ok(Self::take_up(path, boot_id()?)?.ok())
    }

    /// Takes over the region at `path`, or says why that cannot be.
    fn take_up(path: &Path, boot: [u64; 2]) -> Result<Result<Self, &'static str>, RegionError> {
        let file = open(path, false)?;
        if let Some(why) = check_access(&file)? {
            return Ok(Err(why));
        }
        if let Some(why) = check(&file, Some(boot))? {
            return Ok(Err(why));
        }
        let mut region = Self::map(file)?;
        Ok(region.read_directory().map(|()| region))
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
            retired: HashMap::new(),
        })
    }

    fn word(&self, at: usize) -> &AtomicU64 {
        word_of(&self.map, at)
    }

    fn entry(&self, number: usize, field: usize) -> &AtomicU64 {
        self.word(DIRECTORY + number * ENTRY_WORDS + field)
    }

    /// Reads who has what, and whether that can be.
    fn read_directory(&mut self) -> Result<(), &'static str> {
        const DAMAGED: &str = "it is damaged: its directory contradicts itself";
        let word =
            |at| usize::try_from(self.word(at).load(Ordering::Relaxed)).unwrap_or(usize::MAX);
        let (next, entries) = (word(NEXT_WORD_AT), word(NEXT_ENTRY_AT));
        if !(AREA..=LENGTH).contains(&next) || entries > ENTRIES {
            return Err(DAMAGED);
        }
        let (mut index, mut retired) = (HashMap::new(), HashMap::<_, Vec<_>>::new());
        let mut starts = HashSet::new();
        for number in 0..entries {
            let state = self.entry(number, STATE).load(Ordering::Acquire);
            // Not yet, or no longer, whole: the key manager died over it.
            if state == FREE {
                continue;
            }
            let field = |field| {
                usize::try_from(self.entry(number, field).load(Ordering::Relaxed))
                    .unwrap_or(usize::MAX)
            };
            let (start, count) = (field(OFFSET), field(COUNT));
            let fits = Kind::from_code(field(KIND) as u64)
                .is_some_and(|kind| kind.words() == count)
                && (AREA..next).contains(&start)
                && count <= next - start
                && starts.insert(start)
                && state <= RETIRED
                && index.insert(self.fingerprint(number), number).is_none();
            if !fits {
                return Err(DAMAGED);
            }
            if state == RETIRED {
                let retirement = self.entry(number, RETIREMENT).load(Ordering::Relaxed);
                retired
                    .entry(count)
                    .or_default()
                    .push(Retired { retirement, number });
            }
        }
        self.index = index;
        for (count, mut list) in retired {
            list.sort_unstable();
            self.retired.insert(count, list.into());
        }
        Ok(())
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

    // RFC 4303 §3.3.3 [3.3.3-manual-counter]: across restarts the key finds its counter.
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
        self.entry(number, KIND)
            .store(kind.code(), Ordering::Relaxed);
        self.entry(number, STATE).store(ACTIVE, Ordering::Release);
        self.index.insert(fingerprint, number);
        Ok(self.claimed(number, true))
    }

    /// Whether the key of this fingerprint has words.
    #[must_use]
    pub fn knows(&self, fingerprint: &Fingerprint) -> bool {
        self.index.contains_key(fingerprint)
    }

    /// The words of the key of this fingerprint, if it has some.
    #[must_use]
    pub fn find(&self, fingerprint: &Fingerprint) -> Option<Claim> {
        let number = self.index.get(fingerprint)?;
        Some(self.claimed(*number, false))
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
        let Some(&number) = self.index.get(fingerprint) else {
            return;
        };
        let state = self.entry(number, STATE);
        if state.load(Ordering::Relaxed) != ACTIVE {
            return;
        }
        let retirement = self.word(RETIREMENTS_AT).fetch_add(1, Ordering::Relaxed) + 1;
        self.entry(number, RETIREMENT)
            .store(retirement, Ordering::Relaxed);
        state.store(RETIRED, Ordering::Release);
        let count = self.claimed(number, false).words as usize;
        self.retired
            .entry(count)
            .or_default()
            .push_back(Retired { retirement, number });
    }

    /// Says that the SAs of all fingerprints but these are gone.
    pub fn retire_all_but(&mut self, kept: &HashSet<Fingerprint>) {
        let gone: Vec<Fingerprint> = self
            .index
            .keys()
            .filter(|fingerprint| !kept.contains(*fingerprint))
            .copied()
            .collect();
        for fingerprint in gone {
            self.retire(&fingerprint);
        }
    }

    /// The entry of so many words that was retired first, if it still is.
    fn first_retired(&mut self, words: usize) -> Option<usize> {
        let list = self.retired.get_mut(&words)?;
        while let Some(Retired { retirement, number }) = list.pop_front() {
            let entry = DIRECTORY + number * ENTRY_WORDS;
            let read = |field| word_of(&self.map, entry + field).load(Ordering::Relaxed);
            if read(STATE) == RETIRED && read(RETIREMENT) == retirement {
                return Some(number);
            }
        }
        None
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

    // RFC 4303 §3.4.3 [3.4.3-starts-at-zero]
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
        let number = self.first_retired(words).ok_or(RegionError::Full)?;
        let fingerprint = self.fingerprint(number);
        self.index.remove(&fingerprint);
        // Acquire too: nothing of what follows may come before it, or a key manager that dies here leaves an
        // entry that seems to be the old key's, with numbers that begin anew.
        self.entry(number, STATE).swap(FREE, Ordering::AcqRel);
        let start = usize::try_from(self.entry(number, OFFSET).load(Ordering::Relaxed))
            .map_err(|_| RegionError::Full)?;
        for at in start..start + words {
            self.word(at).store(0, Ordering::Relaxed);
        }
        Ok(number)
    }

    /// Notes that every worker of the datapath is at work. `now` is in milliseconds of the monotonic clock.
    pub fn beat(&self, now: u64) {
        self.word(HEARTBEAT_AT).store(now, Ordering::Relaxed);
    }

    /// When that was last noted, in milliseconds of the monotonic clock; 0: never.
    #[must_use]
    pub fn last_beat(&self) -> u64 {
        self.word(HEARTBEAT_AT).load(Ordering::Relaxed)
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

/// A word of a mapping that [`Region::map`] made.
fn word_of(map: &MmapRaw, at: usize) -> &AtomicU64 {
    assert!(at < LENGTH, "within the region");
    let first = map.as_mut_ptr().cast::<AtomicU64>();
    // SAFETY: the mapping is LENGTH words long, so the sum is within it.
    let word = unsafe { first.add(at) };
    // SAFETY: within the mapping, which lives as long as `map`; a page is aligned for words; all access is by
    // atomic operations.
    unsafe { &*word }
}

#[cfg(test)]
mod tests;

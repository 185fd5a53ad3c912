//! Where packets are read to: pages of the usual size, or huge ones.

use memmap2::{Advice, MmapMut, MmapOptions};

/// Bytes from one buffer to the next: more than the longest packet, and no multiple of what caches are indexed by.
pub(crate) const STRIDE: usize = 72 * 1024 + 128;
const HUGE: usize = 2 << 20;

/// Buffers side by side.
pub(crate) struct Memory {
    map: MmapMut,
    start: usize,
    /// What it is of.
    pub(crate) kind: &'static str,
}

impl Memory {
    /// Pages of 4 KiB.
    pub(crate) fn ordinary(buffers: usize) -> Self {
        let map = MmapMut::map_anon(buffers * STRIDE).expect("memory");
        Self::touched(map, 0, "4 KiB")
    }

    /// Reserved huge pages, or else transparent ones, if the kernel gives those.
    pub(crate) fn huge(buffers: usize) -> Self {
        let length = (buffers * STRIDE).next_multiple_of(HUGE);
        if let Ok(map) = MmapOptions::new()
            .len(length)
            .huge(Some(21))
            .populate()
            .map_anon()
        {
            return Self::touched(map, 0, "2 MiB, reserved");
        }
        let map = MmapMut::map_anon(length + HUGE).expect("memory");
        let start = map.as_ptr().align_offset(HUGE);
        map.advise_range(Advice::HugePage, start, length)
            .expect("transparent huge pages");
        Self::touched(map, start, "2 MiB, transparent")
    }

    fn touched(mut map: MmapMut, start: usize, kind: &'static str) -> Self {
        map[start..].fill(1);
        Self { map, start, kind }
    }

    /// All of it.
    pub(crate) fn all(&mut self) -> &mut [u8] {
        &mut self.map[self.start..]
    }

    /// One buffer.
    pub(crate) fn buffer(&mut self, number: usize) -> &mut [u8] {
        let start = self.start + number * STRIDE;
        &mut self.map[start..start + STRIDE]
    }

    /// How much of this process's memory is in transparent huge pages, in KiB.
    pub(crate) fn transparent() -> u64 {
        let text = std::fs::read_to_string("/proc/self/smaps_rollup").unwrap_or_default();
        let mut lines = text.lines();
        let line = lines.find_map(|line| line.strip_prefix("AnonHugePages:"));
        line.and_then(|line| line.trim().strip_suffix(" kB")?.trim().parse().ok())
            .unwrap_or_default()
    }
}

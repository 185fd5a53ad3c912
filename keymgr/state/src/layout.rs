//! Which word of an SA's state is what. All words are 64 bits, little or big as the machine is: the
//! region never leaves it.

/// Words of an outbound SA: one cache line.
pub mod outbound {
    /// The highest sequence number that a worker has leased; 0: none yet (RFC 4303 §3.3.3: the first
    /// packet carries 1). It only grows, and is always at or above what was sent.
    pub const LEASED: usize = 0;
    /// Packets sealed.
    pub const PACKETS: usize = 1;
    /// Bytes sealed.
    pub const BYTES: usize = 2;
    /// Length of the state in words.
    pub const WORDS: usize = 8;
}

/// Words of an inbound SA: one cache line, then the ring of the replay window.
pub mod inbound {
    /// The highest sequence number authenticated; 0: none yet.
    pub const HIGHEST: usize = 0;
    /// Packets opened.
    pub const PACKETS: usize = 1;
    /// Bytes opened.
    pub const BYTES: usize = 2;
    /// First word of the replay window's ring.
    pub const RING: usize = 8;

    /// Sequence numbers that a word of the ring covers: a 16-bit map; the other 48 bits say which
    /// block of 16 sequence numbers the map stands for.
    pub const BLOCK: u64 = PACKETS_A_WORD as u64;

    const PACKETS_A_WORD: u32 = 16;

    /// Length of the ring in words for a window of so many packets: a power of two that holds the
    /// window and the block being filled.
    #[must_use]
    pub const fn ring_words(window: u32) -> usize {
        (window.div_ceil(PACKETS_A_WORD) as usize + 1).next_power_of_two()
    }

    /// Length of the state in words for a window of so many packets.
    #[must_use]
    pub const fn words(window: u32) -> usize {
        RING + ring_words(window)
    }
}

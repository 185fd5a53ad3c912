//! Which word of an SA's state is what. All words are 64 bits, little or big as the machine is: the
//! region never leaves it.

/// Words that both directions have at the same place. The first cache line is what every batch touches.
pub mod both {
    /// Packets sealed or opened.
    pub const PACKETS: usize = 1;
    /// Bytes sealed or opened.
    pub const BYTES: usize = 2;
    /// When its first packet came, in milliseconds of the monotonic clock; 0: none yet.
    pub const FIRST_USE: usize = 3;
    /// When it was added, in milliseconds of the monotonic clock; 0: not noted.
    pub const ADDED: usize = 4;
    /// How far it has lived: [`ALIVE`], [`EXPIRING`] or [`EXPIRED`].
    pub const STATE: usize = 5;

    /// No limit was reached.
    pub const ALIVE: u64 = 0;
    /// A soft limit was reached.
    pub const EXPIRING: u64 = 1;
    /// A hard limit was reached: nothing goes under it any more.
    pub const EXPIRED: u64 = 2;
}

/// Words of an outbound SA: one cache line.
pub mod outbound {
    /// The highest sequence number that a worker has leased; 0: none yet (RFC 4303 §3.3.3: the first
    /// packet carries 1). It only grows, and is always at or above what was sent.
    pub const LEASED: usize = 0;
    /// UDP port of a peer behind NAT that has moved since the SA was made; 0: it has not.
    pub const PORT: usize = 6;
    /// Who has the SA: see [`crate::handover::Holder`].
    pub const HOLDER: usize = 7;
    /// A bit of [`LEASED`] that makes it higher than any last number: nobody leases any more.
    pub const FENCE: u64 = 1 << 63;
    /// Length of the state in words.
    pub const WORDS: usize = 8;
}

/// Words of an inbound SA: two cache lines, then the ring of the replay window.
pub mod inbound {
    /// The highest sequence number authenticated; 0: none yet.
    pub const HIGHEST: usize = 0;
    /// UDP port that a peer behind NAT was last seen at, if it is not the SA's; 0: it is.
    pub const PORT: usize = 6;
    /// Packets that authenticated, whatever became of them then.
    pub const AUTHENTICATED: usize = 7;
    /// Packets whose number had been received before.
    pub const REPLAYED: usize = 8;
    /// Packets whose number was left of the window.
    pub const LATE: usize = 9;
    /// Packets that did not authenticate.
    pub const FAILED: usize = 10;
    /// Who has the SA: see [`crate::handover::Holder`].
    pub const HOLDER: usize = 11;
    /// Address that goes with [`PORT`], in two words, IPv4 mapped into IPv6.
    pub const ADDRESS: usize = 12;
    /// With [`FENCE`]: the SA is fenced, and every number up to this one counts as received, whatever the ring
    /// says. Without: the right edge when the SA was last released; 0: it never was fenced.
    pub const HIGHEST_KEPT: usize = 14;
    /// First word of the replay window's ring.
    pub const RING: usize = 16;

    // A word of the ring: FENCE │ 47 bits, which block │ 16 bits, which of its numbers were received.

    /// Bits of a ring word that are the map of a block; those above name the block.
    pub const MAP_BITS: u32 = 16;
    /// Sequence numbers that a block has.
    pub const BLOCK: u64 = MAP_BITS as u64;
    /// A bit of ring words, and of [`HIGHEST_KEPT`]. Being the highest of a ring word, it makes its block a later one
    /// than there is: every number is refused there, and what the word says is kept.
    pub const FENCE: u64 = 1 << 63;
    /// The highest sequence number whose block has a name.
    pub const LAST: u64 = (FENCE >> MAP_BITS) * BLOCK - 1;

    /// Length of the ring in words for a window of so many packets: a power of two that holds the
    /// window and the block being filled.
    #[must_use]
    pub const fn ring_words(window: u32) -> usize {
        (window.div_ceil(MAP_BITS) as usize + 1).next_power_of_two()
    }

    /// Length of the state in words for a window of so many packets.
    #[must_use]
    pub const fn words(window: u32) -> usize {
        RING + ring_words(window)
    }
}

//! What an SA may still be used for, and what it was used for.

/// What may still go under an SA before its hard lifetime. Several workers see the same: together they may go
/// beyond it by a batch each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Packets.
    pub packets: u64,
    /// Bytes. The packet that uses up the last of them goes whole, as with kernel xfrm.
    pub bytes: u64,
}

impl Budget {
    /// Whether a packet may go.
    #[inline]
    #[must_use]
    pub fn is_left(&self) -> bool {
        self.packets > 0 && self.bytes > 0
    }

    /// A packet of so many bytes went.
    #[inline]
    pub fn spend(&mut self, bytes: usize) {
        self.packets = self.packets.saturating_sub(1);
        self.bytes = self.bytes.saturating_sub(bytes as u64);
    }
}

/// What became of packets under an inbound SA.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Packets opened.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Packets that authenticated, also those that were dropped then.
    pub authenticated: u64,
    /// Packets received before.
    pub replayed: u64,
    /// Packets left of the window.
    pub late: u64,
    /// Packets that did not authenticate.
    pub failed: u64,
}

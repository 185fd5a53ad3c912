//! The one table of drop reasons: the enum, the counter's index, the metric's name and the help text.

macro_rules! reasons {
    ($($(#[$attribute:meta])* $variant:ident, $name:literal, $help:literal;)*) => {
        /// Why a packet was dropped. Each has a counter; none is ever a log line.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum DropReason {
            $(#[doc = $help] $(#[$attribute])* $variant,)*
        }

        impl DropReason {
            /// Every reason, in the order of the packet's way.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// Name of the counter: snake case, stable across releases.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// One sentence for people: what happened, and where it matters what to do.
            #[must_use]
            pub const fn help(self) -> &'static str {
                match self { $(Self::$variant => $help,)* }
            }
        }
    };
}

reasons! {
    // In the eBPF programs.
    PlaintextFromPeer, "plaintext_from_peer", "Geneve in clear arrived from a peer that must be protected";
    MalformedFromPeer, "malformed_from_peer", "headers from a protected peer that cannot be walked to the transport header";
    NatKeepalive, "nat_keepalive", "a keepalive of a peer behind NAT (RFC 3948 section 2.3): it has done its work on the way";
    NoSocket, "no_socket", "for Culvert, but no worker has a socket on the queue: the datapath is down or starting";
    EgressNoHostPort, "egress_no_host_port", "Geneve to a protected peer, but there is no host port to give it to";
    EgressFragment, "egress_fragment", "a later IP fragment to a protected peer whose first fragment was not seen to be other than Geneve";
    EgressMalformed, "egress_malformed", "headers to a protected peer that cannot be walked to the transport header";
    // At the AF_XDP sockets.
    RxOverflow, "rx_overflow", "the worker was too slow: no free frame, or its RX ring or queue of the TAP was full";
    FrameTooLong, "frame_too_long", "longer than a frame takes, which is 16,000 bytes of IP packet; lower the MTU";
    // At the TAP.
    SuperpacketRefused, "superpacket_refused", "from the host port: the packet contradicts the header that the kernel gave with it, or is too long for a frame";
    // In the worker, both directions.
    Malformed, "malformed", "IP headers cut off or contradicting the frame's length";
    FragmentMalformed, "fragment_malformed", "IP fragments whose length, offset, end, header checksum or ECN marks contradict themselves or each other";
    FragmentOverlap, "fragment_overlap", "IP fragments of one datagram that overlap without being the same (RFC 5722), or that belong to such a datagram";
    FragmentDuplicate, "fragment_duplicate", "an IP fragment that had come before; its datagram goes on";
    FragmentTooLarge, "fragment_too_large", "IP fragments of a datagram longer than a frame takes; lower the Geneve device's MTU";
    FragmentIncomplete, "fragment_incomplete", "IP fragments whose datagram did not become whole in time, or had to make room";
    NotOurs, "not_ours", "neither Geneve from the host nor ESP from the wire";
    HandedOver, "handed_over", "the SA is with the kernel's IPsec, or on its way from there or to it";
    // Outbound.
    NoPolicy, "no_policy", "Geneve from the host that no policy covers";
    NoSa, "no_sa", "the policy says protect, but there is no outbound SA between these addresses";
    PolicyDiscard, "policy_discard", "the policy says discard";
    SaExpired, "sa_expired", "the SA has reached its hard lifetime: it must be rekeyed";
    SequenceExhausted, "sequence_exhausted", "the SA has used all its sequence numbers: it must be rekeyed";
    NoFrame, "no_frame", "no free frame for the fragments of a sealed packet";
    TooLarge, "too_large", "longer than the next port takes, sealed or opened, and not to be fragmented; who sent it here was told the MTU that fits";
    SealFailed, "seal_failed", "the AEAD refused to seal";
    // Inbound, in the order of RFC 4303 section 3.4.
    Truncated, "truncated", "shorter than an ESP header, IV, trailer and ICV";
    ReservedSpi, "reserved_spi", "SPI 0 to 255: reserved (RFC 4303 section 2.1)";
    UnknownSpi, "unknown_spi", "no inbound SA with this SPI and destination";
    WrongEncapsulation, "wrong_encapsulation", "ESP in UDP for an SA without encapsulation, or the other way round";
    Replayed, "replayed", "the sequence number was received before";
    TooOld, "too_old", "the sequence number is left of the replay window";
    AuthenticationFailed, "authentication_failed", "the ICV is wrong: forged, damaged, or sealed under another key";
    BadPad, "bad_pad", "the padding is longer than the payload or not 1, 2, 3, …";
    Dummy, "dummy", "a dummy packet (next header 59), dropped as RFC 4303 section 2.6 wants";
    PolicyMismatch, "policy_mismatch", "what came out of the SA is not between its ends, or not what its policy lets in";
    // Sending.
    TxRingFull, "tx_ring_full", "the port's TX ring was full";
    TxRejected, "tx_rejected", "the kernel refused the descriptor, as for a frame above the device's MTU";
}

impl DropReason {
    /// How many reasons there are: the size of the counters' array.
    pub const COUNT: usize = Self::ALL.len();

    /// Index of the counter.
    #[must_use]
    pub const fn index(self) -> usize {
        self as usize
    }
}

#[cfg(test)]
mod tests {
    use super::DropReason;

    #[test]
    fn the_documentation_has_the_same_table() {
        let page = include_str!("../../../docs/drops.md");
        let rows: Vec<&str> = page
            .lines()
            .filter(|line| line.starts_with("| `"))
            .collect();
        let wanted = DropReason::ALL
            .iter()
            .map(|reason| format!("| `{}` | {} |", reason.name(), reason.help()));
        assert_eq!(rows, wanted.collect::<Vec<_>>());
    }

    #[test]
    fn the_table_is_consistent() {
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(reason.index(), index);
            assert!(
                reason
                    .name()
                    .bytes()
                    .all(|b| b.is_ascii_lowercase() || b == b'_')
            );
        }
        let mut names: Vec<_> = DropReason::ALL.iter().map(|r| r.name()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), DropReason::COUNT);
    }
}

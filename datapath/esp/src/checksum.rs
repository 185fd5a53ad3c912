//! Internet checksums: the incremental update of RFC 1624 and the whole sum of RFC 1071.

use culvert_packet::headers::{Address, UDP};

/// The checksum after 16-bit words that it covers have changed, each from the first to the second of `changes`
/// (RFC 1624 §3, equation 3: HC' = ~(~HC + ~m + m')). A sum that was wrong stays wrong.
#[inline(always)]
#[must_use]
pub fn update<const N: usize>(checksum: u16, changes: [(u16, u16); N]) -> u16 {
    let sum = changes
        .iter()
        .map(|(before, after)| u64::from(!before) + u64::from(*after));
    finish(u64::from(!checksum) + sum.sum::<u64>())
}

/// UDP checksum over the IPv6 pseudo header and `datagram`, whose checksum field is zero.
#[must_use]
pub fn udp_v6(source: &Address, destination: &Address, datagram: &[u8]) -> u16 {
    let pseudo = sum(source) + sum(destination) + datagram.len() as u64 + u64::from(UDP);
    match finish(pseudo + sum(datagram)) {
        // RFC 768: zero says that there is no checksum, which IPv6 does not take.
        0 => 0xffff,
        checksum => checksum,
    }
}

/// Sum of the 16-bit words of `bytes`, unfolded, so that sums can be added; an odd last byte counts high.
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let tail = rest.first().map_or(0, |last| u64::from(*last) << 8);
    words
        .iter()
        .map(|word| u64::from(u16::from_be_bytes(*word)))
        .sum::<u64>()
        + tail
}

/// The checksum that belongs to a sum; zero if the sum covers a checksum that is right.
#[inline]
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "folded until 16 bits are left"
)]
pub fn finish(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Checksum of a whole header whose checksum field is zero.
    fn whole(header: &[u8]) -> u16 {
        finish(sum(header))
    }

    #[test]
    fn the_update_agrees_with_the_whole_sum() {
        let mut header = [
            0x45, 0, 0, 84, 0x12, 0x34, 0x40, 0, 64, 17, 0, 0, 192, 0, 2, 1, 192, 0, 2, 2,
        ];
        let before = whole(&header);
        for length in [0_u16, 1, 84, 1500, 0xffff] {
            header[2..4].copy_from_slice(&length.to_be_bytes());
            assert_eq!(
                update(before, [(84, length)]),
                whole(&header),
                "length {length}"
            );
        }
    }

    #[test]
    fn an_odd_length_counts_its_last_byte_high() {
        assert_eq!(sum(&[1, 2, 3]), 0x0102 + 0x0300);
    }
}

//! Internet checksums (RFC 1071), fast enough to be taken of every byte of a payload.
//!
//! A sum is a `u64` that stands for its value modulo 0xffff, in network order. Sums of parts that start at even
//! offsets may be added; [`finish`] makes a checksum of one.

/// Bytes that are summed in one step.
const STEP: usize = 32;

/// Four bytes as a number, in the order of the machine: the sum does not depend on it, only its end does
/// (RFC 1071 §2 (B)).
#[inline(always)]
fn word(bytes: &[u8; 4]) -> u64 {
    u64::from(u32::from_ne_bytes(*bytes))
}

/// Two sums, of 32 bytes in a step. There is room for 2^64 carries, and adding with carry is as fast as the vectors that
/// a compiler makes of it only sometimes.
#[inline(always)]
fn step(sums: &mut [u128; 2], bytes: &[u8; STEP]) {
    let (words, _) = bytes.as_chunks();
    for (at, word) in words.iter().enumerate() {
        sums[at % 2] += u128::from(u64::from_ne_bytes(*word));
    }
}

/// One sum of both, in 64 bits.
#[expect(
    clippy::cast_possible_truncation,
    reason = "32 bits, or the carries, of which there are fewer than bytes"
)]
#[inline(always)]
fn joined([a, b]: [u128; 2]) -> u64 {
    let sum = a + b;
    let [low, high] = [sum & 0xffff_ffff, sum >> 32 & 0xffff_ffff].map(|half| half as u64);
    low + high + (sum >> 64) as u64
}

/// What is left behind the last step; an odd last byte counts as if a zero followed it.
#[inline(always)]
fn rest(bytes: &[u8]) -> u64 {
    let (words, tail) = bytes.as_chunks();
    let mut last = [0; 4];
    last[..tail.len()].copy_from_slice(tail);
    words.iter().map(word).sum::<u64>() + word(&last)
}

/// From the order of the machine to that of the network.
#[inline(always)]
fn ordered(sum: u64) -> u64 {
    u64::from(u16::from_be(fold(sum)))
}

/// Sum of the 16-bit words of `bytes`; an odd last byte counts high.
#[inline]
#[must_use]
pub fn sum(bytes: &[u8]) -> u64 {
    let (steps, tail) = bytes.as_chunks::<STEP>();
    let mut sums = [0; 2];
    for bytes in steps {
        step(&mut sums, bytes);
    }
    ordered(joined(sums) + rest(tail))
}

/// Copies `from` to the start of `to`, and returns its [`sum`]: one pass over the bytes. `None` if `to` is shorter.
#[inline]
#[must_use]
pub fn copy_and_sum(to: &mut [u8], from: &[u8]) -> Option<u64> {
    let to = to.get_mut(..from.len())?;
    let (to_steps, to_tail) = to.as_chunks_mut::<STEP>();
    let (steps, tail) = from.as_chunks::<STEP>();
    let mut sums = [0; 2];
    for (to, bytes) in to_steps.iter_mut().zip(steps) {
        step(&mut sums, bytes);
        *to = *bytes;
    }
    to_tail.copy_from_slice(tail);
    Some(ordered(joined(sums) + rest(tail)))
}

/// What is to be added so that `value` is no longer in a sum.
#[inline]
#[must_use]
pub fn without(value: u64) -> u64 {
    u64::from(!fold(value))
}

/// The checksum that belongs to a sum; zero if the sum covers a checksum that is right.
#[inline]
#[must_use]
pub fn finish(sum: u64) -> u16 {
    !fold(sum)
}

/// As [`finish`], for UDP, where zero says that there is no checksum (RFC 768).
#[inline]
#[must_use]
pub fn finish_udp(sum: u64) -> u16 {
    match finish(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// A sum in 16 bits.
#[inline(always)]
#[must_use]
#[expect(
    clippy::cast_possible_truncation,
    reason = "folded until 16 bits are left"
)]
pub fn fold(sum: u64) -> u16 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    ((sum >> 16) + (sum & 0xffff)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// RFC 1071 §4.1, word by word.
    fn naive(bytes: &[u8]) -> u16 {
        let mut sum = 0_u32;
        for pair in bytes.chunks(2) {
            let [high, low] = [pair[0], pair.get(1).copied().unwrap_or(0)];
            sum += u32::from(u16::from_be_bytes([high, low]));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    proptest! {
        #[test]
        fn agrees_with_the_naive_sum(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            prop_assert_eq!(finish(sum(&bytes)), !naive(&bytes));
        }

        #[test]
        fn copies_what_it_sums(bytes in proptest::collection::vec(any::<u8>(), 0..300), more in 0_usize..9) {
            let mut to = vec![0xa5; bytes.len() + more];
            prop_assert_eq!(copy_and_sum(&mut to, &bytes), Some(sum(&bytes)));
            prop_assert_eq!(&to[..bytes.len()], &bytes[..]);
            prop_assert!(to[bytes.len()..].iter().all(|byte| *byte == 0xa5));
        }

        #[test]
        fn what_is_taken_out_is_as_if_it_had_not_been(a in any::<u64>(), b in any::<u16>()) {
            let (a, b) = (a >> 8, u64::from(b));
            prop_assert_eq!(fold(a + b + without(b)) % 0xffff, fold(a) % 0xffff);
        }
    }

    #[test]
    fn the_longest_and_greatest_does_not_overflow() {
        assert_eq!(sum(&[0xff; 65535]), 0xff00);
        assert_eq!(fold(u64::MAX), 0xffff);
    }

    #[test]
    fn nothing_is_copied_where_it_does_not_fit() {
        assert_eq!(copy_and_sum(&mut [0; 3], &[1; 4]), None);
    }
}

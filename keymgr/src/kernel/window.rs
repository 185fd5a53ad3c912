//! Replay windows: Culvert's, and the circular bitmap of the kernel's `struct xfrm_replay_state_esn`.

pub use culvert_state::handover::Window;
use netlink_packet_xfrm::{Replay, ReplayEsn};

/// Sizes that the kernel's window gets: a power of two, so that the place of a number in its bitmap does not jump at
/// 2^32.
const KERNEL: std::ops::RangeInclusive<u32> = 32..=4096;

/// A window of `size` packets in which everything up to `highest` was received.
pub(super) fn full(highest: u64, size: u32) -> Window {
    make(highest, size, |_| true)
}

fn make(highest: u64, size: u32, has: impl Fn(u32) -> bool) -> Window {
    let mut received = vec![0; size.div_ceil(64) as usize];
    for back in 0..size {
        // There are no numbers below 1: they need not be waited for.
        if u64::from(back) >= highest || has(back) {
            received[(back / 64) as usize] |= 1_u64 << (back % 64);
        }
    }
    Window {
        highest,
        received,
        size,
    }
}

/// Whether the number that is `back` behind the highest was received.
fn has(window: &Window, back: u32) -> bool {
    let word = window.received.get((back / 64) as usize);
    back >= window.size || word.is_none_or(|word| word >> (back % 64) & 1 == 1)
}

/// The kernel's inbound state: number `n` has bit `(n - 1) % replay_window`.
pub(super) fn to_kernel(window: &Window) -> ReplayEsn {
    let size = window.size.clamp(*KERNEL.start(), *KERNEL.end());
    let size = size.next_power_of_two();
    let mut state = outbound(0);
    (state.seq_hi, state.seq) = halves(window.highest);
    state.replay_window = size;
    state.bmp_len = size / 32;
    state.bmp = vec![0; state.bmp_len as usize];
    for back in 0..size {
        if u64::from(back) >= window.highest || has(window, back) {
            let bit = place(state.seq, back, size);
            state.bmp[(bit / 32) as usize] |= 1 << (bit % 32);
        }
    }
    state
}

/// The window of the kernel's state.
pub(super) fn from_kernel(state: &ReplayEsn) -> Window {
    make(join(state.seq_hi, state.seq), state.replay_window, |back| {
        let bit = place(state.seq, back, state.replay_window);
        let word = state.bmp.get((bit / 32) as usize);
        word.is_some_and(|word| word >> (bit % 32) & 1 == 1)
    })
}

/// The window of the kernel's older state, which others' SAs may have: bit `i` is for the number `seq - i`.
pub(super) fn from_legacy(state: &Replay, size: u8) -> Window {
    let size = u32::from(size).min(32);
    make(state.seq.into(), size, |back| state.bitmap >> back & 1 == 1)
}

/// The kernel's outbound state after the number `last`. With ESN there must be a window all the same.
pub(super) fn outbound(last: u64) -> ReplayEsn {
    let (oseq_hi, oseq) = halves(last);
    ReplayEsn {
        bmp_len: 1,
        oseq,
        oseq_hi,
        replay_window: *KERNEL.start(),
        bmp: vec![0],
        ..ReplayEsn::default()
    }
}

/// Bit of the number that is `back` behind `seq`, as net/xfrm/xfrm_replay.c finds it.
fn place(seq: u32, back: u32, size: u32) -> u32 {
    let top = seq.wrapping_sub(1) % size;
    if top >= back {
        top - back
    } else {
        size - (back - top)
    }
}

/// The number of two halves.
pub(super) fn join(high: u32, low: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

fn halves(number: u64) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = number.to_be_bytes();
    (
        u32::from_be_bytes([a, b, c, d]),
        u32::from_be_bytes([e, f, g, h]),
    )
}

#[cfg(test)]
mod tests;

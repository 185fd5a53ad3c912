//! An SA's state in the region, as it changes hands.

use std::sync::atomic::Ordering;

use culvert_proto::sa::Direction;
use culvert_state::Words;
use culvert_state::handover;
use culvert_state::layout::both;

use crate::kernel::{Numbers, Progress};
use crate::state::now;

/// Stops the datapath on an SA, wherever it is, and says how far it was.
pub(super) fn stop(words: &Words, direction: Direction, window: u32) -> Progress {
    let numbers = match direction {
        Direction::Out => Numbers::Sent(handover::fence_outbound(words)),
        Direction::In => Numbers::Received(handover::fence_inbound(words, window)),
    };
    let read = |at: usize| words[at].load(Ordering::Relaxed);
    let now = now();
    let ago = |at: usize| match read(at) {
        0 => None,
        then => Some(now.saturating_sub(then) / 1000),
    };
    Progress {
        numbers,
        packets: read(both::PACKETS),
        bytes: read(both::BYTES),
        added: ago(both::ADDED).unwrap_or_default(),
        first_use: ago(both::FIRST_USE),
    }
}

/// Lets the datapath go on behind what was used.
pub(super) fn go_on(words: &Words, window: u32, progress: &Progress) {
    match &progress.numbers {
        Numbers::Sent(last) => handover::release_outbound(words, *last),
        Numbers::Received(received) => handover::release_inbound(words, window, received),
    }
}

/// Keeps how far it was, and lets nobody go on.
pub(super) fn keep(words: &Words, progress: &Progress) {
    match &progress.numbers {
        Numbers::Sent(last) => handover::raise_outbound(words, *last),
        Numbers::Received(received) => handover::raise_inbound(words, received.highest),
    }
}

/// Notes how much an SA was used.
pub(super) fn note(words: &Words, progress: &Progress) {
    words[both::PACKETS].store(progress.packets, Ordering::Relaxed);
    words[both::BYTES].store(progress.bytes, Ordering::Relaxed);
    if words[both::FIRST_USE].load(Ordering::Relaxed) == 0
        && let Some(ago) = progress.first_use
    {
        let then = now().saturating_sub(ago.saturating_mul(1000)).max(1);
        words[both::FIRST_USE].store(then, Ordering::Relaxed);
    }
}

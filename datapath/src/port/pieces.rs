//! Packets in several pieces, each in a frame of one chunk, as AF_XDP gives and takes them: put together in one long frame, and
//! cut again, so that nothing behind the port knows of pieces.

use std::mem;

use crate::frame::{Frame, PIECE, Pool};

/// Puts packets together. What a batch ends in the middle of, the next one goes on with.
#[derive(Debug, Default)]
pub(super) struct Gather {
    state: State,
    /// Packets lost, as there was no free long frame.
    pub(super) no_frame: u64,
    /// Packets lost, as they are longer than a long frame.
    pub(super) too_long: u64,
}

#[derive(Debug, Default)]
enum State {
    /// The next piece begins a packet.
    #[default]
    Between,
    /// The packet so far.
    Within(Frame),
    /// The packet is lost, and what still comes of it, too.
    Lost,
}

impl Gather {
    /// Takes the next piece; whether there are more of its packet. Returns the packet if it is whole, in a frame in which it
    /// can be sealed.
    #[inline]
    pub(super) fn add(&mut self, piece: Frame, more: bool, pool: &mut Pool) -> Option<Frame> {
        if !more && matches!(self.state, State::Between) && piece.has_tailroom() {
            return Some(piece);
        }
        self.add_copy(piece, more, pool)
    }

    #[inline(never)]
    fn add_copy(&mut self, piece: Frame, more: bool, pool: &mut Pool) -> Option<Frame> {
        let next = match mem::take(&mut self.state) {
            State::Between => self.begin(&piece, pool),
            State::Within(packet) => self.go_on(packet, &piece, pool),
            State::Lost => State::Lost,
        };
        pool.give(piece);
        match next {
            State::Within(packet) if !more => Some(packet),
            next => {
                if more {
                    self.state = next;
                }
                None
            }
        }
    }

    fn begin(&mut self, piece: &Frame, pool: &mut Pool) -> State {
        let Some(mut packet) = pool.take_long() else {
            self.no_frame += 1;
            return State::Lost;
        };
        if packet.write(piece.bytes()).is_ok() {
            return State::Within(packet);
        }
        self.lose(packet, pool)
    }

    fn go_on(&mut self, mut packet: Frame, piece: &Frame, pool: &mut Pool) -> State {
        if packet.append(piece.bytes()).is_ok() {
            return State::Within(packet);
        }
        self.lose(packet, pool)
    }

    fn lose(&mut self, packet: Frame, pool: &mut Pool) -> State {
        pool.give(packet);
        self.too_long += 1;
        State::Lost
    }
}

/// Cuts a packet into pieces, each in a frame of `pool`, and gives them to `put` in their order, with whether there are more.
///
/// # Errors
/// The frame, and nothing is done, if there is no `room` for so many or `pool` has too few.
pub(super) fn scatter(
    frame: Frame,
    room: usize,
    pool: &mut Pool,
    mut put: impl FnMut(Frame, bool),
) -> Result<(), Frame> {
    let count = frame.len().div_ceil(PIECE);
    if count == 0 || count > room || count > pool.free() {
        return Err(frame);
    }
    for (number, bytes) in (1..).zip(frame.bytes().chunks(PIECE)) {
        // There are as many as were just counted, and they take what a piece is.
        let Some(mut piece) = pool.take() else { break };
        let written = piece.write(bytes);
        debug_assert!(written.is_ok());
        put(piece, number < count);
    }
    pool.give(frame);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{CHUNK, LONG, PIECE};

    const CHUNKS: usize = 40;
    const LONGS: usize = 2;

    fn pool() -> Pool {
        let mut pool = Pool::on_heap(u32::try_from(CHUNKS).unwrap(), CHUNK);
        pool.add_long(u32::try_from(LONGS).unwrap(), LONG);
        pool
    }

    fn packet(length: usize) -> Vec<u8> {
        (0..length)
            .map(|at| (at * 7 + at / 251).to_le_bytes()[0])
            .collect()
    }

    /// The pieces that the kernel makes of a packet, each with whether more come.
    fn pieces(pool: &mut Pool, packet: &[u8]) -> Vec<(Frame, bool)> {
        let count = packet.len().div_ceil(PIECE);
        let piece = |(number, bytes): (usize, &[u8])| {
            let mut frame = pool.take().unwrap();
            frame.write(bytes).unwrap();
            (frame, number + 1 < count)
        };
        packet.chunks(PIECE).enumerate().map(piece).collect()
    }

    fn all_there(pool: &Pool) -> bool {
        (pool.free(), pool.free_long()) == (CHUNKS, LONGS)
    }

    #[test]
    fn packets_of_every_number_of_pieces_come_out_whole() {
        let mut pool = pool();
        let mut gather = Gather::default();
        for length in [60, 1500, 3700, PIECE, PIECE + 1, 8914, 2 * PIECE, 16_000] {
            let wanted = packet(length);
            let pieces = pieces(&mut pool, &wanted);
            let mut whole: Vec<_> = pieces
                .into_iter()
                .filter_map(|(piece, more)| gather.add(piece, more, &mut pool))
                .collect();
            let frame = whole.pop().unwrap();
            assert!(whole.is_empty(), "{length}");
            assert_eq!(frame.bytes(), wanted, "{length}");
            assert!(frame.has_tailroom(), "{length}");
            assert_eq!(pool.is_long(&frame), length > 3700, "{length}");
            pool.give(frame);
            assert!(all_there(&pool), "{length}");
        }
        assert_eq!((gather.no_frame, gather.too_long), (0, 0));
    }

    #[test]
    fn without_a_long_frame_all_pieces_are_lost_and_the_next_packet_is_not() {
        let mut pool = pool();
        let mut gather = Gather::default();
        let held = [pool.take_long().unwrap(), pool.take_long().unwrap()];
        for (piece, more) in pieces(&mut pool, &packet(9000)) {
            assert!(gather.add(piece, more, &mut pool).is_none());
        }
        assert_eq!((gather.no_frame, gather.too_long), (1, 0));
        let (small, more) = pieces(&mut pool, &packet(100)).pop().unwrap();
        let small = gather.add(small, more, &mut pool).unwrap();
        assert_eq!(small.bytes(), packet(100));
        pool.give(small);
        held.into_iter().for_each(|frame| pool.give(frame));
        assert!(all_there(&pool));
    }

    #[test]
    fn what_is_longer_than_a_frame_is_lost_once() {
        let mut pool = pool();
        let mut gather = Gather::default();
        let wanted = packet(9000);
        for (piece, more) in pieces(&mut pool, &packet(10 * PIECE)) {
            assert!(gather.add(piece, more, &mut pool).is_none());
        }
        assert_eq!((gather.no_frame, gather.too_long), (0, 1));
        assert!(all_there(&pool));
        let whole: Vec<_> = pieces(&mut pool, &wanted)
            .into_iter()
            .filter_map(|(piece, more)| gather.add(piece, more, &mut pool))
            .collect();
        assert_eq!(whole.len(), 1);
        for frame in whole {
            assert_eq!(frame.bytes(), wanted);
            pool.give(frame);
        }
        assert!(all_there(&pool));
    }

    /// A long frame with `bytes`.
    fn long(pool: &mut Pool, bytes: &[u8]) -> Frame {
        let mut frame = pool.take_long().unwrap();
        frame.write(bytes).unwrap();
        frame
    }

    #[test]
    fn what_is_cut_comes_together_again() {
        let mut pool = pool();
        let mut gather = Gather::default();
        for length in [1, 1500, PIECE, PIECE + 1, 2 * PIECE, 9014, 16_000] {
            let wanted = packet(length);
            let frame = long(&mut pool, &wanted);
            let mut pieces = Vec::new();
            scatter(frame, 17, &mut pool, |piece, more| {
                pieces.push((piece, more));
            })
            .unwrap();
            assert_eq!(pieces.len(), length.div_ceil(PIECE));
            assert_eq!(pool.free_long(), LONGS, "the long frame is free");
            let whole: Vec<_> = pieces
                .into_iter()
                .filter_map(|(piece, more)| gather.add(piece, more, &mut pool))
                .collect();
            assert_eq!(whole.len(), 1, "{length}");
            for frame in whole {
                assert_eq!(frame.bytes(), wanted, "{length}");
                pool.give(frame);
            }
            assert!(all_there(&pool), "{length}");
        }
    }

    #[test]
    fn a_packet_is_cut_whole_or_not_at_all() {
        let mut pool = pool();
        let frame = long(&mut pool, &packet(9000));
        let not_put = |_, _| panic!("a piece");
        // No room for all three.
        let frame = scatter(frame, 2, &mut pool, not_put).unwrap_err();
        // Too few frames.
        let held: Vec<_> = (0..CHUNKS - 2).map(|_| pool.take().unwrap()).collect();
        let frame = scatter(frame, 17, &mut pool, not_put).unwrap_err();
        assert_eq!(frame.bytes(), packet(9000));
        pool.give(frame);
        held.into_iter().for_each(|frame| pool.give(frame));
        assert!(all_there(&pool));
    }
}

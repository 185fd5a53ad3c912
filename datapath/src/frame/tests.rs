use super::*;

/// A pool of four frames of one chunk and two long ones.
fn pool() -> Pool {
    let mut pool = Pool::on_heap(4, CHUNK);
    pool.add_long(2, LONG);
    pool
}

#[test]
fn a_frame_is_as_long_as_its_packet_needs() {
    let mut pool = pool();
    let fits = PIECE - MAX_TAILROOM;
    let short = pool.take_for(fits).unwrap();
    assert!(!pool.is_long(&short));
    let long = pool.take_for(fits + 1).unwrap();
    assert!(pool.is_long(&long));
    assert_eq!((pool.free(), pool.free_long()), (3, 1));
    pool.give(short);
    pool.give(long);
    assert_eq!((pool.free(), pool.free_long()), (4, 2));
    assert_eq!(pool.longest(), LONG as usize);
}

#[test]
fn without_long_frames_there_is_one_kind() {
    let mut pool = Pool::on_heap(2, CHUNK);
    let frame = pool.take_for(9000).unwrap();
    assert!(pool.take_long().is_none());
    assert_eq!(pool.longest(), CHUNK as usize);
    let frame = pool.lengthen(frame);
    pool.give(frame);
    assert_eq!(pool.free(), 2);
}

#[test]
fn long_frames_are_each_others_neighbours_and_not_each_other() {
    let mut pool = pool();
    let mut frames: Vec<_> = std::iter::from_fn(|| pool.take_long()).collect();
    assert_eq!(frames.len(), 2);
    for (value, frame) in (1..).zip(&mut frames) {
        buffer::Frame::chunk(frame).fill(value);
    }
    for (value, frame) in (1..).zip(&mut frames) {
        assert!(
            buffer::Frame::chunk(frame)
                .iter()
                .all(|byte| *byte == value)
        );
        assert!(frame.index() >= 4, "an index that no chunk has");
    }
    // SAFETY: there is no such chunk, which is what it says.
    assert!(unsafe { pool.reclaim(frames[0].index(), 0, 0) }.is_none());
    frames.into_iter().for_each(|frame| pool.give(frame));
}

#[test]
fn lengthening_keeps_the_packet_and_needs_a_free_frame() {
    let mut pool = pool();
    let mut frame = pool.take().unwrap();
    frame.write(b"packet").unwrap();
    let long = pool.lengthen(frame);
    assert!(pool.is_long(&long) && long.bytes() == b"packet");
    assert_eq!(pool.free(), 4);
    let long = pool.lengthen(long);
    let other = pool.take_long().unwrap();
    let mut frame = pool.take().unwrap();
    frame.write(b"stays").unwrap();
    let frame = pool.lengthen(frame);
    assert!(!pool.is_long(&frame) && frame.bytes() == b"stays");
    for frame in [long, other, frame] {
        pool.give(frame);
    }
    assert_eq!((pool.free(), pool.free_long()), (4, 2));
}

#[test]
fn what_is_appended_fits_or_changes_nothing() {
    let mut pool = pool();
    let mut frame = pool.take_long().unwrap();
    frame.write(&[1; PIECE]).unwrap();
    frame.append(&[2; 100]).unwrap();
    assert_eq!(frame.len(), PIECE + 100);
    assert_eq!(frame.bytes()[PIECE..], [2; 100]);
    let room = LONG as usize - HEADROOM - frame.len();
    assert!(frame.append(&vec![3; room + 1]).is_err());
    assert_eq!(frame.len(), PIECE + 100);
    frame.append(&vec![3; room]).unwrap();
    assert!(!frame.has_tailroom());
    pool.give(frame);
}

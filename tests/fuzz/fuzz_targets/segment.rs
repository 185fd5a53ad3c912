//! Arbitrary frames behind arbitrary vnet headers: no panic, every byte of payload in one segment, both ways of writing a
//! segment the same, and segments that say their own length.
#![no_main]

use culvert_gso::Superpacket;
use culvert_gso::segment::Fit;
use culvert_gso::vnet::{Header, Layout};
use culvert_packet::headers::walk;
use libfuzzer_sys::fuzz_target;

// The input is the longest segment, the header, and the frame.
fuzz_target!(|input: &[u8]| {
    let [low, high, input @ ..] = input else {
        return;
    };
    let layout = [Layout::Basic, Layout::V1, Layout::Tunnel][usize::from(high >> 6).min(2)];
    let longest = usize::from(u16::from_be_bytes([high & 0x1f, *low]));
    let Ok(header) = Header::parse(input, layout) else {
        return;
    };
    let mut again = vec![0; layout.size()];
    assert_eq!(header.write(&mut again, layout), Ok(layout.size()));
    assert_eq!(Header::parse(&again, layout), Ok(header));
    let frame = &input[layout.size()..];
    let Ok(packet) = Superpacket::new(&header, frame) else {
        return;
    };
    let segments = packet.segments(longest);
    let mut at = packet.headers();
    assert_eq!(segments.iter().count(), segments.count());
    for segment in segments.iter() {
        assert_eq!(segment.payload_range().start, at);
        at = segment.payload_range().end;
        assert!(segment.len() <= longest || segments.fit() == Fit::TooLong);
        let mut whole = vec![0; segment.len()];
        assert_eq!(segment.write_into(&mut whole), Ok(segment.len()));
        let mut headers = vec![0; packet.headers()];
        assert_eq!(segment.headers_into(&mut headers), Ok(headers.len()));
        assert_eq!(whole, [&headers[..], segment.payload()].concat());
        if segments.count() > 1 {
            assert!(walk(&whole[..]).is_ok_and(|headers| headers.end == whole.len()));
        }
    }
    assert_eq!(at, frame.len());
});

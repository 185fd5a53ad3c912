//! The header walk on arbitrary frames: no panic, and offsets that make sense.
#![no_main]

use culvert_packet::headers::{addresses, classify, walk};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frame: &[u8]| {
    if let Ok(headers) = walk(frame) {
        assert!(headers.ip >= 14 && headers.protocol_at > headers.ip);
        assert!(headers.transport > headers.protocol_at);
        assert_eq!(frame[headers.protocol_at], headers.protocol);
        assert_eq!(addresses(frame), Some((headers.source, headers.destination)));
        let _ = classify(frame, &headers);
    }
});

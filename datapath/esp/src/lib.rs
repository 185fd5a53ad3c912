//! ESP transport mode for Geneve (RFC 4303 with RFC 4106, 4543, 7634 and 8750), sans-IO: no socket, no clock,
//! no allocation per packet, no unsafe. A frame goes in and comes out in the same memory.
//!
//! In the order of a packet's way out: [`sequence`] leases it a sequence number, [`seal`] wraps it.
//! In the order of its way in: [`open`] asks [`replay`], unwraps it, tells [`replay`]. Both work on a
//! [`buffer::Frame`] whose headers were found by [`culvert_packet::headers`], with the compiled SAs of
//! [`sa`] and the ciphers of [`aead`].
#![forbid(unsafe_code)]

pub mod aead;
pub mod buffer;
pub mod checksum;
pub mod open;
pub mod replay;
pub mod sa;
pub mod seal;
pub mod sequence;
pub mod usage;

pub use aead::{Backend, Choice};
pub use sa::{InboundSa, OutboundSa, SaError};

/// ESP header: SPI and the low half of the sequence number (RFC 4303 §2).
pub const ESP_HEADER: usize = 8;
/// Longest IV: the explicit one (RFC 4106 §3.1, RFC 7634 §2).
pub const MAX_IV: usize = 8;
/// Longest ICV, and the one that the AEADs make: shorter ones are its beginning (RFC 4106 §6).
pub const MAX_ICV: usize = 16;
/// Pad length and next header (RFC 4303 §2.5, §2.6).
pub const TRAILER: usize = 2;
/// UDP header of the encapsulation (RFC 3948).
pub const UDP_HEADER: usize = 8;
/// Headroom that [`seal::seal`] may need in front of a frame.
pub const MAX_HEADROOM: usize = ESP_HEADER + MAX_IV + UDP_HEADER;
/// Tailroom that [`seal::seal`] may need behind a frame without TFC padding: up to 3 bytes of padding,
/// trailer and ICV.
pub const MAX_TAILROOM: usize = 3 + TRAILER + MAX_ICV;

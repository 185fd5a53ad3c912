//! Superpackets: what the kernel hands over in one piece is cut into the packets that go on the wire, and packets from
//! the wire are joined into what the kernel takes in one piece.
//!
//! | | |
//! |---|---|
//! | [`vnet`] | the header that says how a frame is to be cut, before each frame of a TAP |
//! | [`segment`] | out: one superpacket to segments, as the kernel's software GSO would make them |
//! | [`coalesce`] | in: segments of a batch to superpackets, by the rules of the kernel's GRO |
//! | [`checksum`] | sums of bytes, and copying and summing in one pass |
//!
//! Sans-IO: frames come in as slices and nothing is kept between batches. Nothing allocates per packet, and whatever a
//! frame or its header says, it costs that frame only.
#![forbid(unsafe_code)]

pub mod checksum;
pub mod coalesce;
mod fields;
pub mod segment;
pub mod vnet;

pub use coalesce::Coalescer;
pub use segment::Superpacket;

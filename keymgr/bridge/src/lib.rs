//! The protocol between charon's plugin and `culvert-keymgr`.
//!
//! A Unix stream socket, mode 0600, both ends checked by `SO_PEERCRED` to be root. A message is a little-endian
//! `u32` length, at most [`MAX_MESSAGE`], and that many bytes. On every connection the plugin says [`Hello`] first
//! and the key manager answers with its own; a different [`VERSION`] ends the connection. Then comes one [`Request`]:
//!
//! - [`Request::Session`] makes the connection the session of that charon. The key manager answers `Done` and sends
//!   [`Event`]s from then on. When the connection ends, so does the session; the SAs go on.
//! - Any other request is answered by one [`Reply`], and the connection ends. It is refused as [`Refusal::Away`]
//!   while its charon has no session.
//!
//! The key manager has no memory of keys beyond its process: another [`Hello::instance`] of it means that every SA is
//! lost, and the plugin has charon negotiate them anew. It does have a memory of policies through the plugin, which
//! sends all of them at the start of a session.
//!
//! Nothing here but the standard library, as the plugin lives in somebody else's process: [`records`] is what is
//! said, [`wire`] how it is written, [`socket`] the connection.

pub mod records;
pub mod socket;
pub mod wire;

pub use records::{
    Direction, Event, Hello, Kind, Lifetimes, Policy, Priority, Refusal, Reply, Request, Sa,
    SaName, Secret, TrafficSelector, Usage,
};
pub use socket::{Connection, Error};

/// Version of the protocol. Raised by every change of a message.
pub const VERSION: u16 = 2;

/// Longest message in bytes: some thousands of policies.
pub const MAX_MESSAGE: u32 = 4 << 20;

/// Where the key manager listens, unless told otherwise. Debian's AppArmor profile lets charon use `/run/charon.*`.
pub const SOCKET: &str = "/run/charon.culvert";

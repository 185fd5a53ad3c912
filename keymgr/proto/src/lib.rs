//! The protocol between `culvert-keymgr`, `culvert-datapath` and `culvert`.
//!
//! A Unix stream socket, mode 0600, both ends checked by `SO_PEERCRED` to be root. A message is a
//! little-endian `u32` length and that many bytes of postcard. Each side sends [`Hello`] first; a
//! different [`VERSION`] ends the connection with an error that names both. Messages are bounded by
//! [`MAX_MESSAGE`]; whoever sends more is cut off.
//!
//! [`sa`], [`cipher`] and [`policy`] have the records that are pushed, [`message`] the requests and replies,
//! [`status`] and [`event`] what is reported back, [`channel`] the socket.

pub mod channel;
pub mod cipher;
pub mod event;
pub mod message;
pub mod policy;
pub mod sa;
pub mod status;

/// Version of the protocol. Raised by every change of a message.
pub const VERSION: u16 = 5;

/// Longest message in bytes: some 40,000 SAs; more go in several [`message::Update`]s.
pub const MAX_MESSAGE: u32 = 8 << 20;

/// File name of the datapath's socket in the run directory.
pub const DATAPATH_SOCKET: &str = "datapath.sock";
/// File name of the key manager's socket in the run directory.
pub const KEYMGR_SOCKET: &str = "keymgr.sock";
/// Where sockets, locks and the SA state region live, unless told otherwise.
pub const RUN_DIRECTORY: &str = "/run/culvert";

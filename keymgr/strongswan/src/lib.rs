//! strongSwan's plugin `kernel-culvert`: charon's IPsec, served by Culvert instead of the kernel.
//!
//! charon loads it and gets a `kernel_ipsec_t`, in place of kernel-netlink's; kernel-netlink keeps addresses and
//! routes. In the order that a call takes:
//!
//! - [`backend`]: the functions that charon calls;
//! - [`convert`]: charon's structs become the bridge's records;
//! - [`calls`]: each is asked of the key manager, over [`client`];
//! - [`session`]: a thread that keeps the session with the key manager, and tells charon what it reports;
//! - [`mirror`]: what charon has installed, for the next session;
//! - [`charon`]: what is called of charon; [`layout`]: how its structs lie in memory; [`os`]: what is called of the
//!   C library; [`version`]: which strongSwan this is.
//!
//! A charon that the plugin does not know is refused, and goes on with the kernel. Once known, the plugin always
//! registers: charon would fall back to the kernel without a word otherwise, and send in clear what Culvert protects.

mod backend;
mod calls;
mod charon;
mod client;
mod convert;
mod ike_socket;
#[doc(hidden)]
pub mod layout;
mod mirror;
mod os;
mod plugin;
mod session;
mod version;

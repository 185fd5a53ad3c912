//! The key manager: takes the wanted SAs and policies from their sources, gives each SA its state in the shared
//! region, and keeps the datapath at what is wanted.
//!
//! [`config`] reads the file of static SAs, whole or not at all; [`used_keys`] remembers static keys across
//! reboots; `charon` has what strongSwan negotiates, [`spi`] gives out SPIs. `manager` joins both to one `goal`; `place`
//! divides it between the datapath and the kernel's IPsec. `push` brings its part to the datapath, [`wanted`] finding what
//! changed; `stand_in` moves SAs to the kernel and back, which [`kernel`] talks to. `events` hears of lifetimes, peers that move and SAs
//! that are missing; [`daemon`] runs it all, and [`leftovers`] is what stays when it ends; `notify` tells
//! systemd of it.

mod charon;
pub mod config;
pub mod daemon;
mod entry;
mod events;
mod fallback_entry;
mod goal;
pub mod kernel;
mod keys;
pub mod leftovers;
mod manager;
mod notify;
mod place;
mod policy_entry;
mod push;
mod shared;
pub mod spi;
mod spis;
mod stand_in;
mod state;
pub mod used_keys;
pub mod wanted;

//! What the eBPF programs and the workers must agree on: the header walk ([`headers`]), the drop
//! reasons ([`reason`]) and the types of the maps between them ([`maps`]).
//!
//! `no_std`, no allocation: compiled for the bpf target and for the host, tested on the host.
#![cfg_attr(not(any(feature = "user", test)), no_std)]

pub mod headers;
pub mod maps;
pub mod reason;

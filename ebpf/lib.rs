//! The eBPF programs as ELF objects, compiled from `programs/` by this crate's build script.

/// Steering: the XDP programs `wire` and `host`, and the tc program `egress`.
pub static STEER: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer"));

/// A Geneve endpoint for kernels without one, a fixture of the tests: the tc programs `encap` and `decap`.
pub static GENEVE_FIXTURE: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/geneve"));

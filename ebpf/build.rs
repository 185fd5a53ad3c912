//! Compiles the eBPF programs for the bpf target, with a nightly toolchain, rust-src and bpf-linker.

use anyhow::Context;
use aya_build::{Package, Toolchain};

fn main() -> anyhow::Result<()> {
    println!("cargo:rerun-if-env-changed=CULVERT_NIGHTLY");
    let nightly = std::env::var("CULVERT_NIGHTLY").unwrap_or_else(|_| "nightly".to_owned());
    let programs = Package {
        name: "culvert-ebpf-programs",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/programs"),
        ..Package::default()
    };
    aya_build::build_ebpf([programs], Toolchain::Custom(&nightly)).context(
        "the eBPF programs need a nightly toolchain with rust-src, and bpf-linker in the PATH: \
         `./dev setup` installs them",
    )
}

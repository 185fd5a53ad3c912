//! Compiles the eBPF programs for the bpf target, with a nightly toolchain, rust-src and bpf-linker.
#![expect(unsafe_code, reason = "setting an environment variable")]

use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::{Result, ensure};
use aya_build::{Package, Toolchain};

fn main() -> ExitCode {
    println!("cargo:rerun-if-env-changed=CULVERT_NIGHTLY");
    let nightly = std::env::var("CULVERT_NIGHTLY").unwrap_or_else(|_| "nightly".to_owned());
    match check_tools(&nightly).and_then(|()| build(&nightly)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("the eBPF programs cannot be built: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build(nightly: &str) -> Result<()> {
    // SAFETY: this process has one thread.
    unsafe {
        // aya-build shows what cargo says as warnings: only what are ones shall be said.
        std::env::set_var("CARGO_TERM_QUIET", "true");
    }
    let programs = Package {
        name: "culvert-ebpf-programs",
        root_dir: concat!(env!("CARGO_MANIFEST_DIR"), "/programs"),
        ..Package::default()
    };
    aya_build::build_ebpf([programs], Toolchain::Custom(nightly))
}

/// Names what is missing, before minutes are spent on finding out.
fn check_tools(nightly: &str) -> Result<()> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    ensure!(
        std::env::split_paths(&path).any(|folder| folder.join("bpf-linker").is_file()),
        "bpf-linker is not in the PATH: run ./dev setup"
    );
    let Ok(rustc) = Command::new("rustup")
        .args(["run", nightly, "rustc", "--print", "sysroot"])
        .output()
    else {
        // No rustup: aya-build tries the toolchain that is there.
        return Ok(());
    };
    ensure!(
        rustc.status.success(),
        "rustup has no toolchain {nightly}: run ./dev setup"
    );
    let sysroot = String::from_utf8(rustc.stdout)?;
    let source = Path::new(sysroot.trim()).join("lib/rustlib/src/rust/library/core");
    ensure!(
        source.exists(),
        "the toolchain {nightly} has no rust-src, {} is missing: run ./dev setup",
        source.display()
    );
    Ok(())
}

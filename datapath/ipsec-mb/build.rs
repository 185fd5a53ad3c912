//! Compiles the shim, which tells whether the library's header is there and fits. If not, this crate is one without the library,
//! and whatever depends on it works by other means.

use std::path::Path;

const HEADER: &str = "/usr/include/intel-ipsec-mb.h";

fn main() {
    println!("cargo::rustc-check-cfg=cfg(found)");
    println!("cargo::rerun-if-changed=shim.c");
    // To look again when it comes or goes. A file that is not there cannot be watched without building anew each time.
    let is_there = Path::new(HEADER).exists();
    let watched = if is_there { HEADER } else { "/usr/include" };
    println!("cargo::rerun-if-changed={watched}");

    let shim = cc::Build::new()
        .file("shim.c")
        .cargo_warnings(false)
        .try_compile("culvert_ipsec_mb");
    match shim {
        Ok(()) => {
            println!("cargo::rustc-cfg=found");
            println!("cargo::rustc-link-lib=dylib=IPSec_MB");
        }
        Err(error) if is_there => println!("cargo::warning={HEADER} is not used: {error}"),
        Err(_) => {}
    }
}

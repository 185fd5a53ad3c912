//! Keeps the plugin in memory once it is loaded.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // charon unloads plugins at its end, and one that gave no plugin at once. A thread of ours may outlive that by
    // the time limit of a socket, and must not lose the code that it runs.
    println!("cargo::rustc-cdylib-link-arg=-Wl,-z,nodelete");
}

//! culvert-ebpf-programs

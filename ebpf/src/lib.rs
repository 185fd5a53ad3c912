//! culvert-ebpf

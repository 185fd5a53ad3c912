//! culvert-benches

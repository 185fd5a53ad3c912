//! `culvert-bench`: see [`culvert_bench`].

fn main() {}

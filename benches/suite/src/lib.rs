//! The benchmark suite: what is measured, beside what, and what is made of it.
//!
//! What is kept of a run is [`culvert_tests::record`]; [`report`] is what people look at, made from the records alone.

pub mod report;

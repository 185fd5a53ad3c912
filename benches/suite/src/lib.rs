//! The benchmark suite: what is measured, beside what, and what is made of it.
//!
//! [`run`] measures: it tells an [`agent`] on each hypervisor what to do, which way of protecting ([`way`]) to set up, and what
//! to send. What is kept of a run is [`culvert_tests::record`]; [`report`] is what people look at, made from the records alone.

pub mod agent;
pub mod report;
pub mod run;
pub mod way;

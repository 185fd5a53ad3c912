//! Coalescing: what must be joined is, what must not is not, order is kept, and what was joined and is cut again is what
//! came in.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../common/mod.rs"]
mod common;
mod properties;
mod rules;

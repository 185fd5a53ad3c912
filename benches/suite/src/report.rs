//! What people look at: tables, charts and a page, made from the records alone.

pub const NAME: &str = "";

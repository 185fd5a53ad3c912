//! culvert-cli

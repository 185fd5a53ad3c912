//! SA state that outlives the datapath: the outbound sequence number and the inbound replay window, in
//! a shared-memory region that the key manager owns and the datapath maps (invariant: for one key, no
//! sequence number is ever sent twice, and no packet accepted twice, whoever dies).
//!
//! [`words`] is an SA's share of it, which the ESP core works on; [`layout`] says which word is what;
//! [`region`] is the mapping, who claims which part of it, and for which key; [`handover`] is how the key manager
//! takes an SA away from the workers, and gives it back.

pub mod handover;
pub mod layout;
pub mod region;
pub mod words;

pub use region::Region;
pub use words::Words;

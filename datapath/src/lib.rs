//! The datapath: what seals and opens the Geneve packets of a hypervisor.
//!
//! In the order of a packet's way out: [`steer`] (eBPF) hands it to the host [`port`], a [`worker`] receives
//! it into a [`frame`], the [`pipeline`] finds its SA in the [`tables`] and seals it with
//! [`culvert_esp`], the wire [`port`] sends it. The way in is the same backwards. [`spd`] is how policies are
//! found, [`sizes`] what happens to packets that are too large. [`daemon`] puts the parts together; [`control`]
//! is how the key manager fills the tables, [`monitor`] how it hears of lifetimes and of peers that move;
//! [`host_port`] and [`tap`] make the host port; [`watchdog`] tells systemd that all is well; [`offline`] runs a worker on capture files.

pub mod control;
pub mod daemon;
pub mod frame;
mod geneve;
pub mod guard;
pub mod heartbeat;
pub mod host_port;
mod keepalive;
pub mod lengths;
pub mod monitor;
pub mod netlink;
pub mod nic;
pub mod offline;
mod parts;
pub mod pipeline;
pub mod port;
pub mod settings;
pub mod sizes;
pub mod spd;
pub mod steer;
pub mod tables;
pub mod tap;
pub mod watchdog;
pub mod worker;

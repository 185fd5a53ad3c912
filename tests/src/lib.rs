//! The lab: two hypervisors as namespaces on a wire that is watched, for the demo and the system tests.
//!
//! ```text
//!   namespace a                      namespace u (underlay)         namespace b
//!   gnv0 ─ Geneve ─ wire0 ──────────── a0 ─ br0 ─ b0 ────────────── wire0 ─ Geneve ─ gnv0
//!            └ culvert-datapath            nftables counts                └ culvert-datapath
//! ```
//! [`netns`] has namespaces and processes in them, and removes what a dead lab left; [`geneve`] is the Geneve
//! endpoint for kernels without one; [`keys`] are the SAs; [`lab`] builds it all; [`wire`] says what was on the
//! wire; [`faulty`] is a wire that loses, repeats, reorders and damages; [`load`] is ping and iperf3, [`udp`] packets with numbers, [`stream`] TCP whose
//! every byte is compared, with [`random`] numbers; [`demo`] runs the demo; [`campaign`] hurts Culvert at
//! random, and judges.
//!
//! The daemons that Culvert works with are on the hypervisors as they are on real ones: [`hypervisor`] gives each its own
//! files, [`charon`] is strongSwan, [`ike`] its connections, with [`certificates`], [`ovs`] is Open vSwitch;
//! [`negotiated`] is the lab with strongSwan, [`switched`] with both. [`systemd`] starts Culvert's daemons on a host that
//! has no namespaces. [`record`] is what is kept of measurements.

pub mod campaign;
pub mod certificates;
pub mod charon;
pub mod demo;
pub mod faulty;
pub mod geneve;
pub mod hypervisor;
pub mod ike;
pub mod keys;
pub mod lab;
pub mod load;
pub mod negotiated;
pub mod netns;
pub mod ovs;
pub mod random;
pub mod record;
pub mod settings;
pub mod stream;
pub mod switched;
pub mod systemd;
pub mod udp;
pub mod wire;

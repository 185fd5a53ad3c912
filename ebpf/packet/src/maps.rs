//! Keys and values of the maps that the key manager's decisions reach the eBPF programs through.

use crate::headers::Address;

/// Key of the `SPIS` map: an inbound SA that userspace serves.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct SpiKey {
    /// Destination address of the SA: one of the host's own.
    pub destination: Address,
    /// SPI in host byte order.
    pub spi: u32,
}

/// Key of the `PEERS` map: a remote address for which some policy says protect.
///
/// The remote address alone: Geneve to it from whatever local address is captured, and dropped by
/// the worker if no policy covers the pair. So a policy that is too narrow fails closed.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PeerKey {
    /// The peer's address.
    pub remote: Address,
}

/// Key of the `FRAGMENTS` map: the first fragment of a datagram to a protected peer that was seen not
/// to be Geneve, so that its later fragments, which have no ports, may pass.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FragmentKey {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Identification of the datagram.
    pub identification: u32,
    /// Protocol, over IPv4; over IPv6, 0.
    pub protocol: u32,
}

/// The one entry of the `SETTINGS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Interface index of the host port's outer end, to which `egress` redirects; 0: none, drop.
    pub host_port: u32,
}

/// The one entry of the test fixture's `GENEVE` map: a tunnel between two addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GeneveSettings {
    /// Address of this end.
    pub local: Address,
    /// Address of the other end.
    pub remote: Address,
    /// Interface index of the underlay device.
    pub underlay: u32,
    /// Interface index of the tunnel device's peer.
    pub tunnel: u32,
    /// Virtual network identifier, 24 bits.
    pub vni: u32,
    /// Not 0: the addresses are IPv6.
    pub v6: u32,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya marks map types by an unsafe trait")]
    use super::{FragmentKey, GeneveSettings, PeerKey, Settings, SpiKey};

    // SAFETY: repr(C), only integers and byte arrays, no padding (sizes are asserted below).
    unsafe impl aya::Pod for SpiKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PeerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for FragmentKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Settings {}
    // SAFETY: as above.
    unsafe impl aya::Pod for GeneveSettings {}
}

const _: () = assert!(size_of::<SpiKey>() == 20);
const _: () = assert!(size_of::<PeerKey>() == 16);
const _: () = assert!(size_of::<FragmentKey>() == 40);
const _: () = assert!(size_of::<Settings>() == 4);
const _: () = assert!(size_of::<GeneveSettings>() == 48);

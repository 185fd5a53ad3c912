//! Keys and values of the maps that the key manager's decisions reach the eBPF programs through.

use crate::headers::{Address, is_mapped};

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

/// Value of `PEERS` and `PREFIXES`: what becomes of Geneve that arrives in clear. The smaller is the stricter.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Clear {
    /// Dropped where it arrives.
    Drop = 0,
    /// Some policy may let it in: the workers look.
    ToWorkers = 1,
}

/// Key of the `PREFIXES` map, a trie: a prefix of remote addresses. The IP version comes first, as an IPv4-mapped
/// address is no part of `::/0`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixKey {
    /// Bits of [`PrefixKey::data`] that count.
    pub length: u32,
    /// What is looked up.
    pub data: PrefixData,
}

/// What is looked up in `PREFIXES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct PrefixData {
    /// 4 or 6.
    pub version: u8,
    /// The address.
    pub address: Address,
}

impl PrefixKey {
    /// The key of the prefix of `length` bits, as people count them, of an address's IP version.
    #[inline(always)]
    #[must_use]
    pub fn new(address: Address, length: u8) -> Self {
        let v4 = is_mapped(&address);
        Self {
            // Behind the version, and for IPv4 behind what maps it into IPv6.
            length: 8 + u32::from(length) + if v4 { 96 } else { 0 },
            data: PrefixData {
                version: if v4 { 4 } else { 6 },
                address,
            },
        }
    }

    /// The key that an address is looked up by.
    #[inline(always)]
    #[must_use]
    pub fn of(address: Address) -> Self {
        Self::new(address, if is_mapped(&address) { 32 } else { 128 })
    }
}

/// Key of the `LEAVING` and `ARRIVING` maps: a datagram in fragments whose first one was seen. The later ones have
/// neither ports nor SPI, and go where it went: see [`Fragments`].
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

/// Value of `LEAVING` and `ARRIVING`: where the fragments of a datagram go.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragments {
    /// To the kernel.
    Pass = 0,
    /// To the workers.
    ToWorkers = 1,
}

/// The one entry of the `SETTINGS` map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Interface index of the host port's outer end, to which `egress` redirects; 0: none, drop.
    pub host_port: u32,
    /// Not 0: there are prefixes in `PREFIXES`.
    pub prefixes: u32,
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
    /// Not 0: IPv4 packets may be fragmented on their way.
    pub fragmentable: u32,
}

#[cfg(feature = "user")]
mod pod {
    #![expect(unsafe_code, reason = "aya marks map types by an unsafe trait")]
    use super::{FragmentKey, GeneveSettings, PeerKey, PrefixData, Settings, SpiKey};

    // SAFETY: repr(C), only integers and byte arrays, no padding (sizes are asserted below).
    unsafe impl aya::Pod for SpiKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PeerKey {}
    // SAFETY: as above.
    unsafe impl aya::Pod for PrefixData {}
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
const _: () = assert!(size_of::<PrefixData>() == 17);
const _: () = assert!(size_of::<Settings>() == 8);
const _: () = assert!(size_of::<GeneveSettings>() == 52);

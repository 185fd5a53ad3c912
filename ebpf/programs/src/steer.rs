//! Steering: what is ours goes to the workers, everything else is left to the kernel; what must not be in
//! clear is dropped. Programs and maps are pinned: they hold on when the datapath is gone.
#![no_std]
#![no_main]

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, XskMap};
use aya_ebpf::programs::{TcContext, XdpContext};
use culvert_ebpf_programs::{Tc, Xdp};
use culvert_packet::headers::{self, Fragment, Headers, Kind, Stop, UDP, Version};
use culvert_packet::maps::{FragmentKey, PeerKey, Settings, SpiKey};
use culvert_packet::reason::DropReason;

/// SPIs that workers open. The value has no meaning.
#[map]
static SPIS: HashMap<SpiKey, u32> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);

/// Peers that Geneve must not go to, nor come from, in clear. The value has no meaning.
#[map]
static PEERS: HashMap<PeerKey, u32> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);

/// Datagrams to peers whose first fragment was seen not to be Geneve. The value has no meaning.
#[map]
static FRAGMENTS: LruHashMap<FragmentKey, u32> = LruHashMap::pinned(4_096, 0);

/// Sockets of the wire port, by queue.
#[map]
static WIRE_SOCKETS: XskMap = XskMap::pinned(1024, 0);

/// Sockets of the host port, by queue.
#[map]
static HOST_SOCKETS: XskMap = XskMap::pinned(1024, 0);

/// Settings, at index 0.
#[map]
static SETTINGS: Array<Settings> = Array::pinned(1, 0);

/// Packets dropped, by reason.
#[map]
static COUNTERS: PerCpuArray<u64> = PerCpuArray::pinned(DropReason::COUNT as u32, 0);

#[inline(always)]
fn count(reason: DropReason) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason.index() as u32) {
        // SAFETY: the map gave a pointer to this CPU's own counter, and nothing interrupts us on it.
        unsafe { *counter += 1 }
    }
}

#[inline(always)]
fn protects(remote: headers::Address) -> bool {
    PEERS.get_ptr(PeerKey { remote }).is_some()
}

/// On the NIC: ESP under a known SPI goes to the workers; Geneve in clear from a peer is dropped.
#[xdp]
pub fn wire(ctx: XdpContext) -> u32 {
    let packet = Xdp(&ctx);
    let headers = match headers::walk(&packet) {
        Ok(headers) => headers,
        Err(Stop::NotIp) => return xdp_action::XDP_PASS,
        Err(Stop::Malformed) => return malformed_from_wire(&packet),
    };
    match headers::classify(&packet, &headers) {
        Kind::Esp(spi) | Kind::EspInUdp(spi)
            if spi < headers::FIRST_SPI && protects(headers.source) =>
        {
            count(DropReason::ReservedSpi);
            xdp_action::XDP_DROP
        }
        Kind::Esp(spi) | Kind::EspInUdp(spi) => esp_from_wire(&ctx, &headers, spi),
        Kind::Geneve if protects(headers.source) => {
            count(DropReason::PlaintextFromPeer);
            xdp_action::XDP_DROP
        }
        Kind::Truncated if protects(headers.source) => {
            count(DropReason::MalformedFromPeer);
            xdp_action::XDP_DROP
        }
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn esp_from_wire(ctx: &XdpContext, headers: &Headers, spi: u32) -> u32 {
    let key = SpiKey {
        destination: headers.destination,
        spi,
    };
    // Fragments of ESP are put together by the kernel's stack.
    if headers.fragment != Fragment::Whole || SPIS.get_ptr(key).is_none() {
        return xdp_action::XDP_PASS;
    }
    // SAFETY: the context is the kernel's, and this field is always there.
    let queue = unsafe { (*ctx.ctx).rx_queue_index };
    to_socket(&WIRE_SOCKETS, queue)
}

/// A packet whose headers cannot be walked to where they would say what it is: from a peer that must be
/// protected it might be Geneve.
#[inline(always)]
fn malformed_from_wire(packet: &Xdp<'_>) -> u32 {
    match headers::addresses(packet) {
        Some((source, _)) if protects(source) => {
            count(DropReason::MalformedFromPeer);
            xdp_action::XDP_DROP
        }
        _ => xdp_action::XDP_PASS,
    }
}

/// On the inner end of the host port: Geneve goes to the workers.
#[xdp]
pub fn host(ctx: XdpContext) -> u32 {
    let packet = Xdp(&ctx);
    let Ok(headers) = headers::walk(&packet) else {
        return xdp_action::XDP_PASS;
    };
    match headers::classify(&packet, &headers) {
        Kind::Geneve => {
            // SAFETY: the context is the kernel's, and this field is always there.
            let queue = unsafe { (*ctx.ctx).rx_queue_index };
            to_socket(&HOST_SOCKETS, queue)
        }
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn to_socket(sockets: &XskMap, queue: u32) -> u32 {
    match sockets.redirect(queue, u64::from(xdp_action::XDP_DROP)) {
        Ok(action) => action,
        Err(_) => {
            count(DropReason::NoSocket);
            xdp_action::XDP_DROP
        }
    }
}

/// On the NIC's egress, behind routing and neighbours: Geneve to a peer goes to the host port, and nothing that
/// might be Geneve to a peer leaves.
#[classifier]
pub fn egress(ctx: TcContext) -> i32 {
    let packet = Tc(&ctx);
    let headers = match headers::walk(&packet) {
        Ok(headers) => headers,
        Err(Stop::NotIp) => return TC_ACT_UNSPEC,
        Err(Stop::Malformed) => {
            return match headers::addresses(&packet) {
                Some((_, destination)) if protects(destination) => {
                    refuse(DropReason::EgressMalformed)
                }
                _ => TC_ACT_UNSPEC,
            };
        }
    };
    if !protects(headers.destination) {
        return TC_ACT_UNSPEC;
    }
    match headers::classify(&packet, &headers) {
        Kind::Geneve => {
            if let Fragment::First(identification) = headers.fragment {
                // Identifications come again: an earlier datagram must not let this one's rest pass.
                let _ = FRAGMENTS.remove(fragment_key(&headers, identification));
            }
            to_host_port()
        }
        Kind::Truncated => refuse(DropReason::EgressMalformed),
        Kind::LaterFragment => later_fragment(&headers),
        Kind::Esp(_) | Kind::EspInUdp(_) | Kind::OtherUdp | Kind::Other => {
            if let Fragment::First(identification) = headers.fragment {
                // A table too full to remember this drops the rest of the datagram: fails closed.
                let _ = FRAGMENTS.insert(fragment_key(&headers, identification), 0, 0);
            }
            TC_ACT_UNSPEC
        }
    }
}

#[inline(always)]
fn to_host_port() -> i32 {
    match SETTINGS.get(0) {
        // SAFETY: the helper takes any interface index.
        Some(settings) if settings.host_port != 0 => unsafe {
            bpf_redirect(settings.host_port, 0) as i32
        },
        _ => refuse(DropReason::EgressNoHostPort),
    }
}

/// A later fragment has no ports: it passes if its first fragment did.
#[inline(always)]
fn later_fragment(headers: &Headers) -> i32 {
    // Over IPv6 the protocol may be an extension header with UDP behind it.
    let may_be_udp = match headers.version {
        Version::V4 => headers.protocol == UDP,
        Version::V6 => !matches!(headers.protocol, 6 | 50 | 58 | 132),
    };
    let Fragment::Later(identification) = headers.fragment else {
        return TC_ACT_UNSPEC;
    };
    if !may_be_udp
        || FRAGMENTS
            .get_ptr(fragment_key(headers, identification))
            .is_some()
    {
        TC_ACT_UNSPEC
    } else {
        refuse(DropReason::EgressFragment)
    }
}

#[inline(always)]
fn fragment_key(headers: &Headers, identification: u32) -> FragmentKey {
    FragmentKey {
        source: headers.source,
        destination: headers.destination,
        identification,
        // IPv4 counts identifications for each protocol. Over IPv6 fragments after the first may name another.
        protocol: match headers.version {
            Version::V4 => u32::from(headers.protocol),
            Version::V6 => 0,
        },
    }
}

#[inline(always)]
fn refuse(reason: DropReason) -> i32 {
    count(reason);
    TC_ACT_SHOT
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

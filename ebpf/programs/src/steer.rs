//! Steering: what is ours goes to the workers, everything else is left to the kernel; what must not be in
//! clear is dropped. Programs and maps are pinned: they hold on when the datapath is gone.
#![no_std]
#![no_main]

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, TC_ACT_SHOT, TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::helpers::bpf_redirect;
use aya_ebpf::macros::{classifier, map, xdp};
use aya_ebpf::maps::lpm_trie::{Key, LpmTrie};
use aya_ebpf::maps::{Array, HashMap, LruHashMap, PerCpuArray, XskMap};
use aya_ebpf::programs::{TcContext, XdpContext};
use culvert_ebpf_programs::{Tc, Xdp};
use culvert_packet::headers::{self, Address, ESP, Fragment, Headers, Kind, Stop, UDP, Version};
use culvert_packet::maps::{
    Clear, FragmentKey, Fragments, PeerKey, PrefixData, PrefixKey, Settings, SpiKey,
};
use culvert_packet::reason::DropReason;

/// SPIs that workers open. The value has no meaning.
#[map]
static SPIS: HashMap<SpiKey, u32> = HashMap::pinned(262_144, BPF_F_NO_PREALLOC);

/// Peers that Geneve must not go to, nor come from, in clear but by the workers. The value is a [`Clear`].
#[map]
static PEERS: HashMap<PeerKey, u32> = HashMap::pinned(65_536, BPF_F_NO_PREALLOC);

/// The same for prefixes of peers, asked if `PEERS` has no answer.
#[map]
static PREFIXES: LpmTrie<PrefixData, u32> = LpmTrie::pinned(16_384, BPF_F_NO_PREALLOC);

/// Datagrams in fragments on the way out, by their first fragment. The value is a [`Fragments`].
#[map]
static LEAVING: LruHashMap<FragmentKey, u32> = LruHashMap::pinned(4_096, 0);

/// The same on the way in, apart, so that what arrives cannot push out what leaves.
#[map]
static ARRIVING: LruHashMap<FragmentKey, u32> = LruHashMap::pinned(4_096, 0);

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

/// What becomes of Geneve in clear from `remote`; `None` if no policy guards it.
#[inline(always)]
fn guard(remote: Address) -> Option<u32> {
    // SAFETY: the value is read at once; an entry that is replaced meanwhile gives the old or the new one.
    if let Some(clear) = unsafe { PEERS.get(PeerKey { remote }) } {
        return Some(*clear);
    }
    if SETTINGS.get(0)?.prefixes == 0 {
        return None;
    }
    let key = PrefixKey::of(remote);
    PREFIXES.get(Key::new(key.length, key.data)).copied()
}

#[inline(always)]
fn protects(remote: Address) -> bool {
    guard(remote).is_some()
}

/// On the NIC, for packets in one buffer.
#[xdp]
pub fn wire(ctx: XdpContext) -> u32 {
    from_wire(&ctx)
}

/// On the NIC, for packets that may be in several: headers are in the first.
#[xdp(frags)]
pub fn wire_frags(ctx: XdpContext) -> u32 {
    from_wire(&ctx)
}

/// On the inner end of the host port, for packets in one buffer.
#[xdp]
pub fn host(ctx: XdpContext) -> u32 {
    from_host(&ctx)
}

/// The same for packets that may be in several.
#[xdp(frags)]
pub fn host_frags(ctx: XdpContext) -> u32 {
    from_host(&ctx)
}

/// On the NIC: ESP under a known SPI goes to the workers; Geneve in clear from a peer is dropped, unless a policy may
/// let it in, which the workers look at.
#[inline(always)]
fn from_wire(ctx: &XdpContext) -> u32 {
    let packet = Xdp(ctx);
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
        Kind::Esp(spi) | Kind::EspInUdp(spi) => esp_from_wire(ctx, &headers, spi),
        Kind::Geneve => clear_from_wire(ctx, &headers),
        Kind::LaterFragment => later_from_wire(ctx, &headers),
        Kind::NatKeepalive if protects(headers.source) => {
            count(DropReason::NatKeepalive);
            xdp_action::XDP_DROP
        }
        Kind::Truncated if protects(headers.source) => {
            count(DropReason::MalformedFromPeer);
            xdp_action::XDP_DROP
        }
        _ => {
            if let Fragment::First(identification) = headers.fragment {
                note_arriving(&headers, identification, false);
            }
            xdp_action::XDP_PASS
        }
    }
}

#[inline(always)]
fn esp_from_wire(ctx: &XdpContext, headers: &Headers, spi: u32) -> u32 {
    let key = SpiKey {
        destination: headers.destination,
        spi,
    };
    let ours = SPIS.get_ptr(key).is_some();
    if let Fragment::First(identification) = headers.fragment {
        note_arriving(headers, identification, ours);
    }
    if ours {
        to_socket(&WIRE_SOCKETS, ctx)
    } else {
        xdp_action::XDP_PASS
    }
}

/// Geneve in clear.
#[inline(always)]
fn clear_from_wire(ctx: &XdpContext, headers: &Headers) -> u32 {
    match guard(headers.source) {
        None => xdp_action::XDP_PASS,
        Some(clear) if clear == Clear::ToWorkers as u32 => {
            if let Fragment::First(identification) = headers.fragment {
                note(&ARRIVING, headers, identification, true);
            }
            to_socket(&WIRE_SOCKETS, ctx)
        }
        Some(_) => {
            count(DropReason::PlaintextFromPeer);
            xdp_action::XDP_DROP
        }
    }
}

// RFC 4303 §3.3.4 [3.3.4-reassembled-before]
/// A later fragment has neither ports nor SPI: it goes where the first one of its datagram went. One of ESP from a
/// peer that comes before it goes to the workers, who keep it until the first one comes.
#[inline(always)]
fn later_from_wire(ctx: &XdpContext, headers: &Headers) -> u32 {
    let Fragment::Later(identification) = headers.fragment else {
        return xdp_action::XDP_PASS;
    };
    let ours = match noted(&ARRIVING, headers, identification) {
        Some(ours) => ours,
        None => headers.protocol == ESP && protects(headers.source),
    };
    if ours {
        to_socket(&WIRE_SOCKETS, ctx)
    } else {
        xdp_action::XDP_PASS
    }
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

/// On the inner end of the host port: Geneve goes to the workers, and so do later fragments, as `egress` sends here
/// only those of Geneve.
#[inline(always)]
fn from_host(ctx: &XdpContext) -> u32 {
    let packet = Xdp(ctx);
    let Ok(headers) = headers::walk(&packet) else {
        return xdp_action::XDP_PASS;
    };
    match headers::classify(&packet, &headers) {
        Kind::Geneve | Kind::LaterFragment => to_socket(&HOST_SOCKETS, ctx),
        _ => xdp_action::XDP_PASS,
    }
}

#[inline(always)]
fn to_socket(sockets: &XskMap, ctx: &XdpContext) -> u32 {
    // SAFETY: the context is the kernel's, and this field is always there.
    let queue = unsafe { (*ctx.ctx).rx_queue_index };
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
                note(&LEAVING, &headers, identification, true);
            }
            to_host_port()
        }
        Kind::Truncated => refuse(DropReason::EgressMalformed),
        Kind::LaterFragment => later_fragment(&headers),
        Kind::Esp(_) | Kind::EspInUdp(_) | Kind::NatKeepalive | Kind::OtherUdp | Kind::Other => {
            if let Fragment::First(identification) = headers.fragment {
                note(&LEAVING, &headers, identification, false);
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

/// A later fragment has no ports: it goes where the first one of its datagram went. One that came before it is
/// dropped if it might be Geneve.
#[inline(always)]
fn later_fragment(headers: &Headers) -> i32 {
    let Fragment::Later(identification) = headers.fragment else {
        return TC_ACT_UNSPEC;
    };
    // Over IPv6 the protocol may be an extension header with UDP behind it.
    let may_be_udp = match headers.version {
        Version::V4 => headers.protocol == UDP,
        Version::V6 => !matches!(headers.protocol, 6 | 50 | 58 | 132),
    };
    match noted(&LEAVING, headers, identification) {
        Some(true) => to_host_port(),
        None if may_be_udp => refuse(DropReason::EgressFragment),
        _ => TC_ACT_UNSPEC,
    }
}

/// Notes where the later fragments of a datagram go. Identifications come again, so what an earlier datagram left is
/// replaced. A table too full to remember it drops the rest of what leaves: fails closed.
#[inline(always)]
fn note(
    table: &LruHashMap<FragmentKey, u32>,
    headers: &Headers,
    identification: u32,
    to_workers: bool,
) {
    let value = if to_workers {
        Fragments::ToWorkers
    } else {
        Fragments::Pass
    };
    let key = fragment_key(headers, identification);
    if table.insert(key, value as u32, 0).is_err() {
        let _ = table.remove(key);
    }
}

/// The same for what arrives. From strangers only what must be, so that they cannot fill the table; but what an
/// earlier datagram left must go.
#[inline(always)]
fn note_arriving(headers: &Headers, identification: u32, to_workers: bool) {
    if to_workers || protects(headers.source) {
        note(&ARRIVING, headers, identification, to_workers);
    } else {
        let _ = ARRIVING.remove(fragment_key(headers, identification));
    }
}

/// Whether the later fragments of a datagram go to the workers, if its first one was seen.
#[inline(always)]
fn noted(
    table: &LruHashMap<FragmentKey, u32>,
    headers: &Headers,
    identification: u32,
) -> Option<bool> {
    // SAFETY: the value is read at once; an entry that is replaced meanwhile gives the old or the new one.
    let value = unsafe { table.get(fragment_key(headers, identification)) }?;
    Some(*value == Fragments::ToWorkers as u32)
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

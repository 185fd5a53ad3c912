//! A fixture of the tests: a Geneve endpoint for machines whose kernel has no geneve device. It writes and
//! strips real Geneve headers (RFC 8926) on packets of a veth pair, and keeps superpackets whole.
#![no_std]
#![no_main]

use aya_ebpf::bindings::{
    BPF_F_ADJ_ROOM_DECAP_L3_IPV4, BPF_F_ADJ_ROOM_DECAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    BPF_F_ADJ_ROOM_ENCAP_L3_IPV4, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6, BPF_F_ADJ_ROOM_ENCAP_L4_UDP,
    BPF_F_ADJ_ROOM_FIXED_GSO, TC_ACT_SHOT, TC_ACT_UNSPEC,
};
use aya_ebpf::helpers::{
    bpf_get_hash_recalc, bpf_get_prandom_u32, bpf_redirect, bpf_redirect_neigh,
};
use aya_ebpf::macros::{classifier, map};
use aya_ebpf::maps::Array;
use aya_ebpf::programs::TcContext;
use culvert_ebpf_programs::Tc;
use culvert_packet::headers::{
    ETH_IPV4, ETH_IPV6, Fragment, GENEVE_PORT, Kind, Packet, UDP, Version, classify, walk,
};
use culvert_packet::maps::GeneveSettings;

/// Where the tunnel is and goes, at index 0.
#[map]
static GENEVE: Array<GeneveSettings> = Array::with_max_entries(1, 0);

const ETHERNET: usize = 14;
/// UDP, Geneve without options.
const TUNNEL: usize = 8 + 8;
/// `BPF_ADJ_ROOM_MAC`: between the Ethernet and the IP header.
const AFTER_ETHERNET: u32 = 1;
/// Geneve's protocol type for Ethernet.
const TRANSPARENT_ETHERNET: u16 = 0x6558;

/// On the tunnel device's peer: wraps what the "VM" sends and lets the kernel route it.
#[classifier]
pub fn encap(ctx: TcContext) -> i32 {
    try_encap(&ctx).unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn try_encap(ctx: &TcContext) -> Option<i32> {
    let settings = GENEVE.get(0)?;
    let inner: [u8; ETHERNET] = ctx.load(0).ok()?;
    let (ip, version) = if settings.v6 == 0 {
        (20, BPF_F_ADJ_ROOM_ENCAP_L3_IPV4)
    } else {
        (40, BPF_F_ADJ_ROOM_ENCAP_L3_IPV6)
    };
    // SAFETY: the helper takes any skb.
    let hash = unsafe { bpf_get_hash_recalc(ctx.skb.skb) };
    let room = ip + TUNNEL + ETHERNET;
    let flags = u64::from(
        BPF_F_ADJ_ROOM_FIXED_GSO
            | version
            | BPF_F_ADJ_ROOM_ENCAP_L4_UDP
            | BPF_F_ADJ_ROOM_ENCAP_L2_ETH,
    ) | (ETHERNET as u64) << 56;
    ctx.adjust_room(room as i32, AFTER_ETHERNET, flags).ok()?;

    let length = ctx.len() - ETHERNET as u32;
    let ethertype = if settings.v6 == 0 { ETH_IPV4 } else { ETH_IPV6 };
    ctx.store(12, &ethertype.to_be_bytes(), 0).ok()?;
    if settings.v6 == 0 {
        let header = v4_header(settings, length as u16);
        ctx.store(ETHERNET, &header, 0).ok()?;
    } else {
        let header = v6_header(settings, (length - 40) as u16);
        ctx.store(ETHERNET, &header, 0).ok()?;
    }
    let port = 49_152 + (hash as u16 & 0x3fff);
    let tunnel = tunnel_header(port, (length - ip as u32) as u16, settings.vni);
    ctx.store(ETHERNET + ip, &tunnel, 0).ok()?;
    ctx.store(ETHERNET + ip + TUNNEL, &inner, 0).ok()?;
    // SAFETY: without parameters the kernel looks the route and the neighbour up itself.
    Some(unsafe { bpf_redirect_neigh(settings.underlay, core::ptr::null_mut(), 0, 0) } as i32)
}

#[inline(always)]
fn v4_header(settings: &GeneveSettings, length: u16) -> [u8; 20] {
    let mut header = [0; 20];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&length.to_be_bytes());
    if settings.fragmentable == 0 {
        header[6] = 0x40; // do not fragment
    } else {
        // SAFETY: the helper takes nothing.
        let identification = unsafe { bpf_get_prandom_u32() } as u16;
        header[4..6].copy_from_slice(&identification.to_be_bytes());
    }
    header[8] = 64;
    header[9] = UDP;
    header[12..16].copy_from_slice(&settings.local[12..]);
    header[16..20].copy_from_slice(&settings.remote[12..]);
    let mut sum = 0_u32;
    let mut at = 0;
    while at < 20 {
        sum += u32::from(header[at]) << 8 | u32::from(header[at + 1]);
        at += 2;
    }
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    header[10..12].copy_from_slice(&(!(sum as u16)).to_be_bytes());
    header
}

#[inline(always)]
fn v6_header(settings: &GeneveSettings, length: u16) -> [u8; 40] {
    let mut header = [0; 40];
    header[0] = 0x60;
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6] = UDP;
    header[7] = 64;
    header[8..24].copy_from_slice(&settings.local);
    header[24..40].copy_from_slice(&settings.remote);
    header
}

/// UDP without a checksum, as tunnels may (RFC 6935), and Geneve without options.
#[inline(always)]
fn tunnel_header(port: u16, length: u16, vni: u32) -> [u8; TUNNEL] {
    let mut header = [0; TUNNEL];
    header[0..2].copy_from_slice(&port.to_be_bytes());
    header[2..4].copy_from_slice(&GENEVE_PORT.to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[10..12].copy_from_slice(&TRANSPARENT_ETHERNET.to_be_bytes());
    header[12..16].copy_from_slice(&(vni << 8).to_be_bytes());
    header
}

/// On the underlay and on the host port: strips what comes for the tunnel and gives it to the "VM".
#[classifier]
pub fn decap(ctx: TcContext) -> i32 {
    let packet = Tc(&ctx);
    let (Some(settings), Ok(headers)) = (GENEVE.get(0), walk(&packet)) else {
        return TC_ACT_UNSPEC;
    };
    if classify(&packet, &headers) != Kind::Geneve
        || headers.fragment != Fragment::Whole
        || headers.destination != settings.local
        || headers.ip != ETHERNET
        // As the kernel's own device: it is the destination port that counts.
        || packet.read(headers.transport + 2) != Some(GENEVE_PORT.to_be_bytes())
    {
        return TC_ACT_UNSPEC;
    }
    let ip = match headers.version {
        Version::V4 => 20,
        Version::V6 => 40,
    };
    strip(&ctx, &packet, settings, ip).unwrap_or(TC_ACT_SHOT)
}

#[inline(always)]
fn strip(ctx: &TcContext, packet: &Tc<'_>, settings: &GeneveSettings, ip: usize) -> Option<i32> {
    let inner: [u8; ETHERNET] = packet.read(ETHERNET + ip + TUNNEL)?;
    let version = match u16::from_be_bytes([inner[12], inner[13]]) {
        ETH_IPV4 => BPF_F_ADJ_ROOM_DECAP_L3_IPV4,
        ETH_IPV6 => BPF_F_ADJ_ROOM_DECAP_L3_IPV6,
        _ => return None,
    };
    let flags = u64::from(BPF_F_ADJ_ROOM_FIXED_GSO | version);
    let room = (ip + TUNNEL + ETHERNET) as i32;
    ctx.adjust_room(-room, AFTER_ETHERNET, flags).ok()?;
    ctx.store(0, &inner, 0).ok()?;
    // SAFETY: the helper takes any interface index.
    Some(unsafe { bpf_redirect(settings.tunnel, 0) } as i32)
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    loop {}
}

/// The kernel lets only programs of a free licence use some helpers; the licence of this one is one.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

//! strongSwan 5.9.8, which Debian 12 has.
//!
//! Pointers that charon may leave out are `Option`s; methods get their object as a pointer, as they may write to it.

use std::ffi::{c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;

use super::Fact;

/// The version.
pub const VERSION: &str = "5.9.8";

/// All that is known of it.
#[must_use]
pub fn facts() -> Vec<Fact> {
    let mut facts = structs();
    facts.extend(values());
    facts.push(Fact::Type("status_t", size_of::<c_uint>()));
    facts.push(Fact::Type("time_t", size_of::<i64>()));
    facts.push(Fact::Type("bool", size_of::<bool>()));
    facts
}

/// A method that is not called.
pub(crate) type Slot = *const c_void;

c_values! { values:
    FEATURE_PROVIDE: c_uint = 0;
    FEATURE_CALLBACK: c_uint = 4;
    FEATURE_NONE: c_uint = 0;
    FEATURE_CUSTOM: c_uint = 30;
    KERNEL_ESP_V3_TFC: c_uint = 1;
    KERNEL_POLICY_SPI: c_uint = 16;
    SUCCESS: c_uint = 0;
    FAILED: c_uint = 1;
    NOT_SUPPORTED: c_uint = 4;
    NOT_FOUND: c_uint = 6;
    POLICY_IN: c_uint = 0;
    POLICY_OUT: c_uint = 1;
    POLICY_FWD: c_uint = 2;
    POLICY_IPSEC: c_uint = 1;
    POLICY_PASS: c_uint = 2;
    POLICY_DROP: c_uint = 3;
    POLICY_PRIORITY_PASS: c_uint = 0;
    POLICY_PRIORITY_DEFAULT: c_uint = 1;
    POLICY_PRIORITY_ROUTED: c_uint = 2;
    POLICY_PRIORITY_FALLBACK: c_uint = 3;
    HW_OFFLOAD_YES: c_uint = 1;
    AUTH_UNDEFINED: u16 = 1024;
    DBG_KNL: c_uint = 6;
    LEVEL_CTRL: c_int = 1;
}

c_structs! { structs:
    /// What charon asks of a plugin.
    Plugin = 32 "plugin_t" {
        0 "get_name" get_name: unsafe extern "C" fn(*mut Plugin) -> *const c_char,
        8 "get_features" get_features: unsafe extern "C" fn(*mut Plugin, *mut *const Feature) -> c_int,
        16 "reload" reload: unsafe extern "C" fn(*mut Plugin) -> bool,
        24 "destroy" destroy: unsafe extern "C" fn(*mut Plugin),
    }

    /// One of the features that a plugin provides, or how the next ones are registered.
    Feature = 24 "plugin_feature_t" {
        0 "kind" kind: c_uint,
        4 "type" of: c_uint,
        8 "arg" argument: [*const c_void; 2],
    }

    /// The functions that a plugin gives charon.
    KernelIpsec = 120 "kernel_ipsec_t" {
        0 "get_features" get_features: unsafe extern "C" fn(*mut KernelIpsec) -> c_uint,
        8 "get_spi" get_spi: unsafe extern "C" fn(
            *mut KernelIpsec, *const Host, Option<&Host>, u8, Option<&mut u32>) -> c_uint,
        16 "get_cpi" get_cpi: unsafe extern "C" fn(
            *mut KernelIpsec, *const Host, *const Host, *mut u16) -> c_uint,
        24 "add_sa" add_sa: unsafe extern "C" fn(*mut KernelIpsec, &SaId, &AddSa) -> c_uint,
        32 "update_sa" update_sa: unsafe extern "C" fn(*mut KernelIpsec, &SaId, &UpdateSa) -> c_uint,
        40 "query_sa" query_sa: unsafe extern "C" fn(
            *mut KernelIpsec, &SaId, *const c_void, Option<&mut u64>, Option<&mut u64>, Option<&mut i64>) -> c_uint,
        48 "del_sa" del_sa: unsafe extern "C" fn(*mut KernelIpsec, &SaId, *const c_void) -> c_uint,
        56 "flush_sas" flush_sas: unsafe extern "C" fn(*mut KernelIpsec) -> c_uint,
        64 "add_policy" add_policy: unsafe extern "C" fn(*mut KernelIpsec, &PolicyId, &ManagePolicy) -> c_uint,
        72 "query_policy" query_policy: unsafe extern "C" fn(
            *mut KernelIpsec, &PolicyId, *const c_void, Option<&mut i64>) -> c_uint,
        80 "del_policy" del_policy: unsafe extern "C" fn(*mut KernelIpsec, &PolicyId, &ManagePolicy) -> c_uint,
        88 "flush_policies" flush_policies: unsafe extern "C" fn(*mut KernelIpsec) -> c_uint,
        96 "bypass_socket" bypass_socket: unsafe extern "C" fn(*mut KernelIpsec, c_int, c_int) -> bool,
        104 "enable_udp_decap" enable_udp_decap: unsafe extern "C" fn(*mut KernelIpsec, c_int, c_int, u16) -> bool,
        112 "destroy" destroy: unsafe extern "C" fn(*mut KernelIpsec),
    }

    /// What names an SA. The SPI is in network byte order.
    SaId<'a> = 40 "kernel_ipsec_sa_id_t" {
        0 "src" src: Option<&'a Host>,
        8 "dst" dst: Option<&'a Host>,
        16 "spi" spi: u32,
        20 "proto" proto: u8,
        24 "mark" mark: Mark,
        32 "if_id" if_id: u32,
    }

    /// An SA.
    AddSa<'a> = 144 "kernel_ipsec_add_sa_t" {
        0 "reqid" reqid: u32,
        4 "mode" mode: c_uint,
        8 "src_ts" src_ts: Slot,
        16 "dst_ts" dst_ts: Slot,
        24 "interface" interface: *const c_char,
        32 "lifetime" lifetime: Option<&'a Lifetime>,
        40 "enc_alg" enc_alg: u16,
        48 "enc_key" enc_key: Chunk<'a>,
        64 "int_alg" int_alg: u16,
        72 "int_key" int_key: Chunk<'a>,
        88 "replay_window" replay_window: u32,
        92 "tfc" tfc: u32,
        96 "ipcomp" ipcomp: u16,
        98 "cpi" cpi: u16,
        100 "encap" encap: bool,
        104 "hw_offload" hw_offload: c_uint,
        108 "mark" mark: Mark,
        120 "label" label: Slot,
        128 "esn" esn: bool,
        129 "copy_df" copy_df: bool,
        130 "copy_ecn" copy_ecn: bool,
        132 "copy_dscp" copy_dscp: c_uint,
        136 "initiator" initiator: bool,
        137 "inbound" inbound: bool,
        138 "update" update: bool,
    }

    /// Other ends for an SA.
    UpdateSa<'a> = 32 "kernel_ipsec_update_sa_t" {
        0 "cpi" cpi: u16,
        8 "new_src" new_src: Option<&'a Host>,
        16 "new_dst" new_dst: Option<&'a Host>,
        24 "encap" encap: bool,
        25 "new_encap" new_encap: bool,
        28 "new_reqid" new_reqid: u32,
    }

    /// What names a policy.
    PolicyId<'a> = 56 "kernel_ipsec_policy_id_t" {
        0 "dir" dir: c_uint,
        8 "src_ts" src_ts: Option<&'a Selector>,
        16 "dst_ts" dst_ts: Option<&'a Selector>,
        24 "mark" mark: Mark,
        32 "if_id" if_id: u32,
        40 "interface" interface: *const c_char,
        48 "label" label: Slot,
    }

    /// A policy.
    ManagePolicy<'a> = 40 "kernel_ipsec_manage_policy_t" {
        0 "type" kind: c_uint,
        4 "prio" prio: c_uint,
        8 "manual_prio" manual_prio: u32,
        16 "src" src: Option<&'a Host>,
        24 "dst" dst: Option<&'a Host>,
        32 "sa" sa: Option<&'a SaConfig>,
    }

    /// What is said of a policy's SAs. SPIs are in network byte order.
    SaConfig = 32 "ipsec_sa_cfg_t" {
        0 "mode" mode: c_uint,
        4 "reqid" reqid: u32,
        8 "policy_count" policy_count: u32,
        12 "esp.use" esp: bool,
        16 "esp.spi" esp_spi: u32,
        20 "ah.use" ah: bool,
        24 "ah.spi" ah_spi: u32,
        28 "ipcomp.transform" ipcomp: u16,
        30 "ipcomp.cpi" cpi: u16,
    }

    /// Lifetimes of an SA; `life` is the end, `rekey` has the jitter in it already.
    Lifetime = 72 "lifetime_cfg_t" {
        0 "time.life" time_life: u64,
        8 "time.rekey" time_rekey: u64,
        16 "time.jitter" time_jitter: u64,
        24 "bytes.life" bytes_life: u64,
        32 "bytes.rekey" bytes_rekey: u64,
        40 "bytes.jitter" bytes_jitter: u64,
        48 "packets.life" packets_life: u64,
        56 "packets.rekey" packets_rekey: u64,
        64 "packets.jitter" packets_jitter: u64,
    }

    /// A mark.
    Mark = 8 "mark_t" {
        0 "value" value: u32,
        4 "mask" mask: u32,
    }

    /// Some bytes.
    Chunk<'a> = 16 "chunk_t" {
        0 "ptr" ptr: *const u8,
        8 "len" len: usize,
        bytes: PhantomData<&'a [u8]>,
    }

    /// An address with a port.
    Host = 88 "host_t" {
        _before: [Slot; 5],
        40 "get_address" get_address: unsafe extern "C" fn(*const Host) -> Chunk<'static>,
        48 "get_port" get_port: unsafe extern "C" fn(*const Host) -> u16,
        _between: [Slot; 3],
        80 "destroy" destroy: unsafe extern "C" fn(*const Host),
    }

    /// A traffic selector.
    Selector = 136 "traffic_selector_t" {
        _before: [Slot; 4],
        32 "get_from_port" get_from_port: unsafe extern "C" fn(*const Selector) -> u16,
        40 "get_to_port" get_to_port: unsafe extern "C" fn(*const Selector) -> u16,
        _type: Slot,
        56 "get_protocol" get_protocol: unsafe extern "C" fn(*const Selector) -> u8,
        _between: [Slot; 6],
        112 "to_subnet" to_subnet: unsafe extern "C" fn(*const Selector, *mut *const Host, *mut u8) -> bool,
        _after: [Slot; 2],
    }

    /// What has no source and destination is started from the trap alone.
    AcquireData = 24 "kernel_acquire_data_t" {
        0 "src" src: Slot,
        8 "dst" dst: Slot,
        16 "label" label: Slot,
    }

    /// charon.
    Daemon "daemon_t" {
        _socket: Slot,
        8 "kernel" kernel: Option<&'static KernelInterface>,
    }

    /// Takes what a backend reports.
    KernelInterface "kernel_interface_t" {
        _before: [Slot; 34],
        272 "acquire" acquire: unsafe extern "C" fn(*const KernelInterface, u32, *const AcquireData),
        280 "expire" expire: unsafe extern "C" fn(*const KernelInterface, u8, u32, *const Host, bool),
        288 "mapping" mapping: unsafe extern "C" fn(*const KernelInterface, u8, u32, *const Host, *const Host),
    }

    /// libstrongswan.
    Library "library_t" {
        _before: [Slot; 2],
        16 "ns" ns: *const c_char,
        _between: [Slot; 18],
        168 "settings" settings: Option<&'static Settings>,
    }

    /// strongswan.conf.
    Settings "settings_t" {
        0 "get_str" get_str: unsafe extern "C" fn(
            *const Settings, *const c_char, *const c_char, ...) -> *const c_char,
    }
}

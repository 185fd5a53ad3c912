//! Asking the kernel, by system calls that change nothing.
#![expect(
    unsafe_code,
    reason = "bpf(2), socket(2) and ethtool's ioctl have no safe wrapper here"
)]

use std::collections::BTreeMap;
use std::io;
use std::mem::size_of;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `AF_XDP` of linux/socket.h.
const AF_XDP: i32 = 44;

/// Whether an AF_XDP socket can be made.
pub(super) fn af_xdp() -> io::Result<()> {
    // SAFETY: no pointers.
    let descriptor = unsafe { libc::socket(AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    owned(descriptor.into()).map(drop)
}

fn owned(descriptor: i64) -> io::Result<OwnedFd> {
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    let descriptor = i32::try_from(descriptor).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has its number.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

// Of linux/bpf.h.
const MAP_CREATE: i32 = 0;
const PROGRAM_LOAD: i32 = 5;
const LINK_CREATE: i32 = 28;
const MAP_TYPE_XSKMAP: u32 = 17;
pub(super) const PROGRAM_XDP: u32 = 6;
pub(super) const PROGRAM_SCHED_CLS: u32 = 3;
const TCX_EGRESS: u32 = 47;

/// `union bpf_attr` of linux/bpf.h as far as it is used here; each command has its own layout.
#[repr(C, align(8))]
struct Attribute([u32; 32]);

fn bpf(command: i32, mut attribute: Attribute) -> io::Result<OwnedFd> {
    // SAFETY: the attribute is live and as long as is said; pointers in it are to live memory.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            &raw mut attribute,
            size_of::<Attribute>(),
        )
    };
    owned(result)
}

/// Loads a program of two instructions, `return 0`.
pub(super) fn load_program(program_type: u32) -> io::Result<OwnedFd> {
    // mov64 r0, 0; exit. (struct bpf_insn: code, registers, offset, immediate.)
    let instructions: [[u8; 8]; 2] = [[0xb7, 0, 0, 0, 0, 0, 0, 0], [0x95, 0, 0, 0, 0, 0, 0, 0]];
    let license = c"GPL";
    let mut words = [0; 32];
    // prog_type, insn_cnt, insns, license
    words[..2].copy_from_slice(&[program_type, 2]);
    words[2..4].copy_from_slice(&halves(instructions.as_ptr().addr() as u64));
    words[4..6].copy_from_slice(&halves(license.as_ptr().addr() as u64));
    // The kernel reads through these addresses.
    let _ = (
        instructions.as_ptr().expose_provenance(),
        license.as_ptr().expose_provenance(),
    );
    bpf(PROGRAM_LOAD, Attribute(words))
}

fn halves(value: u64) -> [u32; 2] {
    let bytes = value.to_ne_bytes();
    let (halves, _) = bytes.as_chunks::<4>();
    [u32::from_ne_bytes(halves[0]), u32::from_ne_bytes(halves[1])]
}

/// Whether a map of AF_XDP sockets can be made.
pub(super) fn socket_map() -> io::Result<()> {
    let mut words = [0; 32];
    // map_type, key_size, value_size, max_entries
    words[..4].copy_from_slice(&[MAP_TYPE_XSKMAP, 4, 4, 1]);
    bpf(MAP_CREATE, Attribute(words)).map(drop)
}

/// Whether the kernel knows tcx: asked by attaching to an interface that is not there, which only a kernel
/// without tcx refuses for another reason.
pub(super) fn tcx() -> io::Result<bool> {
    let program = load_program(PROGRAM_SCHED_CLS)?;
    let mut words = [0; 32];
    // prog_fd, target_ifindex, attach_type
    let program = program.as_raw_fd().cast_unsigned();
    words[..3].copy_from_slice(&[program, i32::MAX.cast_unsigned(), TCX_EGRESS]);
    match bpf(LINK_CREATE, Attribute(words)) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(error),
        _ => Ok(false),
    }
}

/// Queues of a NIC: in use, and how many it could have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Queues {
    pub(super) used: u32,
    pub(super) most: u32,
}

// Of linux/ethtool.h.
const GET_CHANNELS: u32 = 0x3c;
const GET_STRINGS: u32 = 0x1b;
const GET_STRING_COUNT: u32 = 0x37;
const GET_FEATURES: u32 = 0x3a;
const STRINGS_FEATURES: u32 = 4;
const STRING_LENGTH: usize = 32;

/// RX queues; a driver that does not tell has one.
pub(super) fn queues(interface: &str) -> io::Result<Queues> {
    // struct ethtool_channels: cmd, max_rx, max_tx, max_other, max_combined, rx, tx, other, combined
    let mut words = vec![0; 9];
    words[0] = GET_CHANNELS;
    match ethtool(interface, &mut words) {
        Ok(()) => Ok(Queues {
            used: (words[5] + words[8]).max(1),
            most: (words[1] + words[4]).max(1),
        }),
        Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
            Ok(Queues { used: 1, most: 1 })
        }
        Err(error) => Err(error),
    }
}

/// Offloads by the kernel's name, and whether they are on, as `ethtool -k` has them.
pub(super) fn features(interface: &str) -> io::Result<BTreeMap<String, bool>> {
    // struct ethtool_sset_info: cmd, reserved, sset_mask (64 bits), data
    let mut info = vec![GET_STRING_COUNT, 0, 0, 0, 0];
    info[2..4].copy_from_slice(&halves(1 << STRINGS_FEATURES));
    ethtool(interface, &mut info)?;
    let count = info[4];
    let blocks = count.div_ceil(32);

    // struct ethtool_gstrings: cmd, string_set, len, then the strings
    let text_words = count as usize * STRING_LENGTH / 4;
    let mut strings = vec![0; 3 + text_words];
    strings[..3].copy_from_slice(&[GET_STRINGS, STRINGS_FEATURES, count]);
    ethtool(interface, &mut strings)?;
    let text: Vec<u8> = strings[3..]
        .iter()
        .flat_map(|word| word.to_ne_bytes())
        .collect();

    // struct ethtool_gfeatures: cmd, size, then of each block: available, requested, active, never_changed
    let mut states = vec![0; 2 + 4 * blocks as usize];
    states[..2].copy_from_slice(&[GET_FEATURES, blocks]);
    ethtool(interface, &mut states)?;

    let names = text.chunks_exact(STRING_LENGTH).map(|name| {
        let end = name
            .iter()
            .position(|byte| *byte == 0)
            .unwrap_or(name.len());
        String::from_utf8_lossy(&name[..end]).into_owned()
    });
    let active = |number: usize| states[2 + number / 32 * 4 + 2] >> (number % 32) & 1 == 1;
    Ok(names
        .enumerate()
        .filter(|(_, name)| !name.is_empty())
        .map(|(number, name)| (name, active(number)))
        .collect())
}

/// An ethtool command on words that begin with the command; the kernel writes no further than their counts say.
fn ethtool(interface: &str, words: &mut [u32]) -> io::Result<()> {
    if interface.is_empty() || interface.len() >= libc::IFNAMSIZ {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    // SAFETY: all zeroes is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
    // SAFETY: no pointers.
    let socket = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    let socket = owned(socket.into())?;
    // SAFETY: `request` is a live ifreq that points at `words`, which are as long as the command and the counts
    // in them say.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_tells_its_offloads() {
        let features = features("lo").unwrap();
        assert_eq!(features.get("loopback"), Some(&true), "{features:?}");
        assert_eq!(features.get("rx-lro"), Some(&false), "{features:?}");
        assert_eq!(queues("lo").unwrap(), Queues { used: 1, most: 1 });
    }

    #[test]
    fn an_unknown_interface_is_an_error() {
        assert_eq!(
            features("culvert-none").unwrap_err().raw_os_error(),
            Some(libc::ENODEV)
        );
        assert!(features("a-name-that-is-too-long").is_err());
    }
}

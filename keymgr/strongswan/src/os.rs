//! What is called of the C library: the standard library has no way to it.

#![expect(unsafe_code, reason = "functions of the C library")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::ptr::{self, NonNull};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

/// glibc's `sigset_t`.
#[repr(C)]
struct SignalSet([u64; 16]);

/// `struct ucred`.
#[repr(C)]
#[derive(Default)]
struct Credentials {
    process: i32,
    user: u32,
    group: u32,
}

/// `struct sockaddr_un`.
#[repr(C)]
struct UnixAddress {
    family: u16,
    path: [u8; 108],
}

const AF_UNIX: u16 = 1;
const SOCK_STREAM: c_int = 1;
const AF_NETLINK: c_int = 16;
const SOCK_RAW: c_int = 3;
const SOCK_CLOEXEC: c_int = 0o2_000_000;
const SOL_SOCKET: c_int = 1;
const SO_PEERCRED: c_int = 17;
const SIG_SETMASK: c_int = 2;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn socket(domain: c_int, kind: c_int, protocol: c_int) -> c_int;
    fn connect(socket: c_int, address: *const UnixAddress, length: u32) -> c_int;
    fn getsockopt(
        socket: c_int,
        level: c_int,
        option: c_int,
        value: *mut Credentials,
        length: *mut u32,
    ) -> c_int;
    fn setsockopt(
        socket: c_int,
        level: c_int,
        option: c_int,
        value: *const c_void,
        length: u32,
    ) -> c_int;
    fn sigfillset(set: *mut SignalSet) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SignalSet, before: *mut SignalSet) -> c_int;
}

/// Where a symbol of the process or of the libraries that it was started with is.
pub(crate) fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the default handle (NULL) and a text that ends.
    NonNull::new(unsafe { dlsym(ptr::null_mut(), name.as_ptr()) })
}

/// Connects within this time. The standard library waits for ever if who listens does not take connections any more.
pub(crate) fn connect_within(limit: Duration, path: &Path) -> io::Result<UnixStream> {
    let mut address = UnixAddress {
        family: AF_UNIX,
        path: [0; 108],
    };
    let bytes = path.as_os_str().as_bytes();
    // A zero ends it; one within would end it early.
    if bytes.len() >= address.path.len() || bytes.contains(&0) {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    address.path[..bytes.len()].copy_from_slice(bytes);
    let length = u32::try_from(size_of::<UnixAddress>()).map_err(io::Error::other)?;
    // SAFETY: it takes numbers only.
    let socket = unsafe { socket(AF_UNIX.into(), SOCK_STREAM | SOCK_CLOEXEC, 0) };
    if socket < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: it was opened just now, and nobody else has it.
    let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(socket) });
    stream.set_write_timeout(Some(limit))?;
    // SAFETY: the socket is open, and the address is there until the end of the call, as long as is said.
    let result = unsafe { connect(stream.as_raw_fd(), &raw const address, length) };
    if result == 0 {
        return Ok(stream);
    }
    Err(match io::Error::last_os_error() {
        error if error.kind() == io::ErrorKind::WouldBlock => {
            io::Error::new(io::ErrorKind::TimedOut, "it takes no connections")
        }
        error => error,
    })
}

/// The user who was at the other end when the connection was made.
pub(crate) fn peer(stream: &UnixStream) -> io::Result<u32> {
    let mut peer = Credentials::default();
    let mut length = u32::try_from(size_of::<Credentials>()).map_err(io::Error::other)?;
    // SAFETY: the socket is open, and the two pointers are to what this option writes.
    let result = unsafe {
        getsockopt(
            stream.as_raw_fd(),
            SOL_SOCKET,
            SO_PEERCRED,
            &raw mut peer,
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(peer.user)
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Sets an option of a socket of charon's.
pub(crate) fn set_option(
    socket: c_int,
    level: c_int,
    option: c_int,
    value: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(value.len()).map_err(io::Error::other)?;
    // SAFETY: the value is there until the end of the call, as long as is said. A socket that is none is an error.
    match unsafe { setsockopt(socket, level, option, value.as_ptr().cast(), length) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Has the kernel load what speaks this protocol of netlink, if there is such a module.
pub(crate) fn load_netlink(protocol: c_int) {
    // SAFETY: it takes numbers only.
    let socket = unsafe { socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, protocol) };
    if socket >= 0 {
        // SAFETY: it was opened just now, and nobody else has it.
        drop(unsafe { OwnedFd::from_raw_fd(socket) });
    }
}

/// Starts a thread that gets no signals: they are for charon's main thread, which waits for them.
pub(crate) fn spawn(work: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    let mut all = MaybeUninit::<SignalSet>::uninit();
    // SAFETY: it writes a set.
    unsafe { sigfillset(all.as_mut_ptr()) };
    let mut before = MaybeUninit::<SignalSet>::uninit();
    // SAFETY: the set was filled, and another one is written.
    unsafe { pthread_sigmask(SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    let thread = Builder::new().name("culvert".to_owned()).spawn(work);
    // SAFETY: the set is the one that was in force.
    unsafe { pthread_sigmask(SIG_SETMASK, before.as_ptr(), ptr::null_mut()) };
    thread
}

#[cfg(test)]
mod tests {
    use super::*;

    unsafe extern "C" {
        fn listen(socket: c_int, backlog: c_int) -> c_int;
    }

    #[test]
    fn a_listener_that_takes_no_connections_is_not_waited_for() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("socket");
        let connect = || connect_within(Duration::from_millis(50), &path);
        assert_eq!(connect().unwrap_err().kind(), io::ErrorKind::NotFound);
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        // SAFETY: the socket is open.
        assert_eq!(unsafe { listen(listener.as_raw_fd(), 0) }, 0);
        let mut waiting = Vec::new();
        let error = loop {
            match connect() {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(!waiting.is_empty());

        let long = home.path().join("x".repeat(108));
        let error = connect_within(Duration::from_millis(50), &long).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidFilename);
    }

    #[test]
    fn the_peer_is_known() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let home = tempfile::tempdir().unwrap();
        let owner = std::os::unix::fs::MetadataExt::uid(&home.path().metadata().unwrap());
        assert_eq!(peer(&ours).unwrap(), owner);
    }

    #[test]
    fn symbols_are_found_or_not() {
        assert!(symbol(c"getsockopt").is_some());
        assert!(symbol(c"kernel_ipsec_register").is_none());
    }

    #[test]
    fn a_thread_gets_no_signals_and_its_parent_still_does() {
        let blocked = || {
            let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
            let line = status.lines().find(|line| line.starts_with("SigBlk:"));
            u64::from_str_radix(line.unwrap()[7..].trim(), 16).unwrap()
        };
        let before = blocked();
        let (tell, told) = std::sync::mpsc::channel();
        spawn(move || tell.send(blocked()).unwrap())
            .unwrap()
            .join()
            .unwrap();
        let sigterm = 1 << 14;
        assert_ne!(told.recv().unwrap() & sigterm, 0);
        assert_eq!(blocked(), before);
    }
}

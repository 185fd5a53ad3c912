//! What is called of the C library: the standard library has no way to it.

#![expect(unsafe_code, reason = "functions of the C library")]

use std::ffi::{CStr, c_char, c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::ptr::{self, NonNull};
use std::thread::{Builder, JoinHandle};

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

const SOL_SOCKET: c_int = 1;
const SO_PEERCRED: c_int = 17;
const SIG_SETMASK: c_int = 2;

unsafe extern "C" {
    fn dlsym(handle: *mut c_void, name: *const c_char) -> *mut c_void;
    fn getsockopt(
        socket: c_int,
        level: c_int,
        option: c_int,
        value: *mut Credentials,
        length: *mut u32,
    ) -> c_int;
    fn sigfillset(set: *mut SignalSet) -> c_int;
    fn pthread_sigmask(how: c_int, set: *const SignalSet, before: *mut SignalSet) -> c_int;
}

/// Where a symbol of the process or of the libraries that it was started with is.
pub(crate) fn symbol(name: &CStr) -> Option<NonNull<c_void>> {
    // SAFETY: the default handle (NULL) and a text that ends.
    NonNull::new(unsafe { dlsym(ptr::null_mut(), name.as_ptr()) })
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

//! What is called of charon.
//!
//! All of it may be called from any thread: `expire`, `acquire` and `mapping` take charon's locks and queue jobs, and
//! its log gives a thread that it does not know a number, in a record that is never freed: valgrind finds it lost.

#![expect(unsafe_code, reason = "functions and objects of charon")]

use std::ffi::{CStr, CString, OsStr, c_char, c_int, c_uint, c_void};
use std::marker::PhantomData;
use std::mem::transmute;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::ptr::{self, NonNull};
use std::sync::atomic::{AtomicPtr, Ordering};

use culvert_bridge::TrafficSelector;
use culvert_bridge::records::{Expired, Moved};

use crate::layout::{
    AcquireData, Chunk, DBG_KNL, Daemon, Host, KernelInterface, LEVEL_CTRL, Library, Selector,
};
use crate::os;

/// IP protocol of ESP.
pub(crate) const ESP: u8 = 50;

/// What the session tells charon. A trait, so that tests can listen.
pub(crate) trait Ears: Send + Sync {
    /// A line for the log.
    fn log(&self, text: &str);
    /// A lifetime was reached.
    fn expire(&self, expired: &Expired);
    /// A trap was sprung.
    fn acquire(&self, reqid: u32);
    /// A peer behind NAT has moved.
    fn moved(&self, moved: &Moved);
}

type Print = unsafe extern "C" fn(c_uint, c_int, *const c_char, ...);
type CreateHost = unsafe extern "C" fn(c_int, Chunk<'_>, u16) -> *const Host;

/// charon's log.
#[derive(Clone, Copy)]
pub(crate) struct Log(&'static AtomicPtr<c_void>);

impl Log {
    /// Looks for it. It is the same in every version.
    pub(crate) fn find() -> Option<Self> {
        let address = os::symbol(c"dbg")?.cast();
        // SAFETY: `dbg` is a variable that holds a pointer, and there as long as the process.
        Some(Self(unsafe { AtomicPtr::from_ptr(address.as_ptr()) }))
    }

    /// Writes a line.
    pub(crate) fn write(self, text: &str) {
        let text = CString::new(text.replace('\0', "?")).unwrap_or_default();
        // charon puts its own function there when it starts, and the library's back when it ends.
        let Some(print) = NonNull::new(self.0.load(Ordering::Relaxed)) else {
            return;
        };
        // SAFETY: it points to a function of this type.
        let print = unsafe { transmute::<NonNull<c_void>, Print>(print) };
        // SAFETY: the format takes one text.
        unsafe { print(DBG_KNL, LEVEL_CTRL, c"%s".as_ptr(), text.as_ptr()) };
    }
}

/// charon.
pub(crate) struct Charon {
    log: Log,
    daemon: &'static AtomicPtr<Daemon>,
    library: &'static AtomicPtr<Library>,
    create_host: CreateHost,
    register: AtomicPtr<c_void>,
}

impl Charon {
    /// Looks for it in this process; the version must be known.
    ///
    /// # Errors
    /// Something is missing; the text says what.
    pub(crate) fn find() -> Result<Self, String> {
        let symbol = |name: &CStr| {
            os::symbol(name).ok_or_else(|| format!("there is no {name:?} in this process"))
        };
        let daemon = symbol(c"charon")?.cast();
        let library = symbol(c"lib")?.cast();
        let create_host = symbol(c"host_create_from_chunk")?;
        Ok(Self {
            log: Log::find().ok_or("there is no \"dbg\" in this process")?,
            // SAFETY: `charon` is a variable that holds a pointer, and there as long as the process.
            daemon: unsafe { AtomicPtr::from_ptr(daemon.as_ptr()) },
            // SAFETY: as is `lib`.
            library: unsafe { AtomicPtr::from_ptr(library.as_ptr()) },
            // SAFETY: it is a function of this type.
            create_host: unsafe { transmute::<NonNull<c_void>, CreateHost>(create_host) },
            register: AtomicPtr::new(symbol(c"kernel_ipsec_register")?.as_ptr()),
        })
    }

    /// `kernel_ipsec_register`, for the list of features.
    pub(crate) fn register(&self) -> *const c_void {
        self.register.load(Ordering::Relaxed)
    }

    /// Where strongswan.conf says that the key manager listens.
    pub(crate) fn socket(&self) -> PathBuf {
        let otherwise = PathBuf::from(culvert_bridge::SOCKET);
        // SAFETY: it is NULL, or the library that lives as long as its plugins.
        let library = unsafe { self.library.load(Ordering::Relaxed).as_ref() };
        let Some((library, settings)) = library.and_then(|it| Some((it, it.settings?))) else {
            return otherwise;
        };
        let key = c"%s.plugins.kernel-culvert.socket".as_ptr();
        // SAFETY: the key takes one text, which is the name of the daemon's section.
        let value = unsafe { (settings.get_str)(settings, key, ptr::null(), library.ns) };
        if value.is_null() {
            return otherwise;
        }
        // SAFETY: it is a text that stands until the settings are loaded again.
        let value = unsafe { CStr::from_ptr(value) };
        PathBuf::from(OsStr::from_bytes(value.to_bytes()))
    }

    fn kernel(&self) -> Option<&'static KernelInterface> {
        // SAFETY: it is NULL, or the daemon, which has the backend destroyed before itself.
        unsafe { self.daemon.load(Ordering::Relaxed).as_ref() }?.kernel
    }

    fn host(&self, address: IpAddr, port: u16) -> Option<OwnedHost> {
        let (v4, v6);
        let octets: &[u8] = match address {
            IpAddr::V4(address) => {
                v4 = address.octets();
                &v4
            }
            IpAddr::V6(address) => {
                v6 = address.octets();
                &v6
            }
        };
        const GUESS_BY_LENGTH: c_int = 0;
        let octets = Chunk {
            ptr: octets.as_ptr(),
            len: octets.len(),
            bytes: PhantomData,
        };
        // SAFETY: it copies the octets.
        let host = unsafe { (self.create_host)(GUESS_BY_LENGTH, octets, port) };
        // SAFETY: it is NULL, or a host that is ours.
        unsafe { host.as_ref() }.map(OwnedHost)
    }
}

impl Ears for Charon {
    fn log(&self, text: &str) {
        self.log.write(text);
    }

    fn expire(&self, expired: &Expired) {
        let host = self.host(expired.destination, 0);
        if let (Some(kernel), Some(host)) = (self.kernel(), host) {
            let spi = expired.spi.to_be();
            // SAFETY: the host is there until the end of the call; charon clones it.
            unsafe { (kernel.expire)(kernel, ESP, spi, host.0, expired.hard) };
        }
    }

    fn acquire(&self, reqid: u32) {
        let data = AcquireData {
            src: ptr::null(),
            dst: ptr::null(),
            label: ptr::null(),
        };
        if let Some(kernel) = self.kernel() {
            // SAFETY: the data is there until the end of the call; charon copies it, and takes NULL for "not known".
            unsafe { (kernel.acquire)(kernel, reqid, &raw const data) };
        }
    }

    fn moved(&self, moved: &Moved) {
        let destination = self.host(moved.destination, 0);
        let remote = self.host(moved.remote.ip(), moved.remote.port());
        if let (Some(kernel), Some(destination), Some(remote)) =
            (self.kernel(), destination, remote)
        {
            let spi = moved.spi.to_be();
            // SAFETY: the hosts are there until the end of the call; charon clones them.
            unsafe { (kernel.mapping)(kernel, ESP, spi, destination.0, remote.0) };
        }
    }
}

/// A host that must be destroyed.
struct OwnedHost(&'static Host);

impl Drop for OwnedHost {
    fn drop(&mut self) {
        // SAFETY: it is ours, and nobody has it any more.
        unsafe { (self.0.destroy)(self.0) };
    }
}

impl Host {
    /// Its address and port; `None` if it is of neither IP version.
    pub(crate) fn end(&self) -> Option<SocketAddr> {
        // SAFETY: the host is charon's, and so are its methods.
        let address = unsafe { (self.get_address)(self) };
        let address = match *address.bytes() {
            [a, b, c, d] => IpAddr::from([a, b, c, d]),
            ref bytes => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
        };
        // SAFETY: as above.
        let port = unsafe { (self.get_port)(self) };
        Some(SocketAddr::new(address, port))
    }
}

impl Selector {
    /// What it selects, and whether that is all: `false` if it is a range that is no network, but within this one.
    pub(crate) fn read(&self) -> Option<(TrafficSelector, bool)> {
        let mut network = ptr::null();
        let mut prefix = 0;
        // SAFETY: the selector is charon's, and so are its methods; the two pointers are to what it writes.
        let exact = unsafe { (self.to_subnet)(self, &raw mut network, &raw mut prefix) };
        // SAFETY: it is NULL, or a host that is ours.
        let network = OwnedHost(unsafe { network.as_ref() }?);
        let selector = TrafficSelector {
            // SAFETY: as above.
            protocol: unsafe { (self.get_protocol)(self) },
            network: network.0.end()?.ip(),
            prefix,
            // SAFETY: as above.
            first_port: unsafe { (self.get_from_port)(self) },
            // SAFETY: as above.
            last_port: unsafe { (self.get_to_port)(self) },
        };
        Some((selector, exact))
    }
}

impl<'a> Chunk<'a> {
    /// The bytes.
    pub(crate) fn bytes(&self) -> &'a [u8] {
        if self.ptr.is_null() {
            return &[];
        }
        // SAFETY: whoever made the chunk has as many bytes there, for as long as the chunk may live.
        unsafe { std::slice::from_raw_parts(self.ptr, self.len) }
    }
}

//! The functions that charon calls, from any of its threads.

#![expect(unsafe_code, reason = "called by C, with pointers of C")]

use std::ffi::{c_int, c_uint, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, OnceLock};

use crate::calls::Status;
use crate::charon::{Charon, ESP};
use crate::client::Client;
use crate::convert;
use crate::ike_socket;
use crate::layout::{
    AddSa, FAILED, Host, KERNEL_ESP_V3_TFC, KERNEL_POLICY_SPI, KernelIpsec, ManagePolicy,
    NOT_FOUND, NOT_SUPPORTED, PolicyId, SUCCESS, SaId, UpdateSa,
};
use crate::plugin;
use crate::session::Session;

/// What charon has a pointer to: its part comes first.
#[repr(C)]
struct Backend {
    public: KernelIpsec,
    session: Session,
}

/// The charon that a backend is made for: its maker gets no argument.
pub(crate) static CHARON: OnceLock<Arc<Charon>> = OnceLock::new();

/// Makes the backend.
pub(crate) extern "C" fn create() -> *mut KernelIpsec {
    let Some(charon) = CHARON.get() else {
        return std::ptr::null_mut();
    };
    let client = Client {
        path: charon.socket(),
        hello: plugin::hello(),
        owner: 0,
    };
    let backend = Backend {
        public: KernelIpsec {
            get_features,
            get_spi,
            get_cpi,
            add_sa,
            update_sa,
            query_sa,
            del_sa,
            flush_sas,
            add_policy,
            query_policy,
            del_policy,
            flush_policies,
            bypass_socket,
            enable_udp_decap,
            destroy,
        },
        session: Session::new(Arc::clone(charon) as _, client),
    };
    Box::into_raw(Box::new(backend)).cast()
}

/// Does what charon asks. No panic may reach charon: it cannot unwind.
fn answer(this: *mut KernelIpsec, call: impl FnOnce(&Session) -> Result<Status, String>) -> c_uint {
    // SAFETY: charon passes what `create` gave it, until it calls `destroy`.
    let backend = unsafe { &*this.cast::<Backend>() };
    let session = &backend.session;
    let call = || call(session).unwrap_or_else(|text| session.refuse(&text));
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(Status::Success) => SUCCESS,
        Ok(Status::NotSupported) => NOT_SUPPORTED,
        Ok(Status::NotFound) => NOT_FOUND,
        Ok(Status::Failed) | Err(_) => FAILED,
    }
}

/// Writes where charon wants something to be written, if it does.
fn give<T>(to: Option<&mut T>, value: T) {
    if let Some(to) = to {
        *to = value;
    }
}

/// Seconds of the monotonic clock, as `time_t`.
fn time(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

unsafe extern "C" fn get_features(_: *mut KernelIpsec) -> c_uint {
    // With policies that name SPIs, charon installs a new outbound SA at once and switches by the policy.
    KERNEL_ESP_V3_TFC | KERNEL_POLICY_SPI
}

unsafe extern "C" fn get_spi(
    this: *mut KernelIpsec,
    _source: *const Host,
    destination: Option<&Host>,
    protocol: u8,
    spi: Option<&mut u32>,
) -> c_uint {
    answer(this, |session| {
        if protocol != ESP {
            return Ok(Status::NotSupported);
        }
        Ok(match session.allocate_spi(convert::address(destination)?) {
            Ok(allocated) => {
                give(spi, allocated.to_be());
                Status::Success
            }
            Err(status) => status,
        })
    })
}

unsafe extern "C" fn get_cpi(
    _: *mut KernelIpsec,
    _source: *const Host,
    _destination: *const Host,
    _cpi: *mut u16,
) -> c_uint {
    NOT_SUPPORTED
}

unsafe extern "C" fn add_sa(this: *mut KernelIpsec, id: &SaId, data: &AddSa) -> c_uint {
    answer(this, |session| Ok(session.add_sa(convert::sa(id, data)?)))
}

unsafe extern "C" fn update_sa(this: *mut KernelIpsec, id: &SaId, data: &UpdateSa) -> c_uint {
    answer(this, |session| {
        Ok(session.update_sa(convert::update(id, data)?))
    })
}

unsafe extern "C" fn query_sa(
    this: *mut KernelIpsec,
    id: &SaId,
    _data: *const c_void,
    bytes: Option<&mut u64>,
    packets: Option<&mut u64>,
    last_use: Option<&mut i64>,
) -> c_uint {
    answer(this, |session| {
        Ok(match session.query_sa(convert::sa_name(id)?) {
            Ok(usage) => {
                give(bytes, usage.bytes);
                give(packets, usage.packets);
                give(last_use, time(usage.last_use));
                Status::Success
            }
            Err(status) => status,
        })
    })
}

unsafe extern "C" fn del_sa(this: *mut KernelIpsec, id: &SaId, _data: *const c_void) -> c_uint {
    answer(
        this,
        |session| Ok(session.delete_sa(&convert::sa_name(id)?)),
    )
}

unsafe extern "C" fn flush_sas(this: *mut KernelIpsec) -> c_uint {
    answer(this, |session| Ok(session.flush_sas()))
}

unsafe extern "C" fn add_policy(
    this: *mut KernelIpsec,
    id: &PolicyId,
    data: &ManagePolicy,
) -> c_uint {
    answer(this, |session| {
        Ok(session.add_policy(&convert::policy(id, data)?))
    })
}

unsafe extern "C" fn query_policy(
    this: *mut KernelIpsec,
    id: &PolicyId,
    _data: *const c_void,
    last_use: Option<&mut i64>,
) -> c_uint {
    answer(this, |session| {
        Ok(match session.query_policy(convert::policy_name(id)?) {
            Ok(usage) => {
                give(last_use, time(usage.last_use));
                Status::Success
            }
            Err(status) => status,
        })
    })
}

unsafe extern "C" fn del_policy(
    this: *mut KernelIpsec,
    id: &PolicyId,
    data: &ManagePolicy,
) -> c_uint {
    answer(this, |session| {
        Ok(session.delete_policy(convert::policy(id, data)?))
    })
}

unsafe extern "C" fn flush_policies(this: *mut KernelIpsec) -> c_uint {
    answer(this, |session| Ok(session.flush_policies()))
}

unsafe extern "C" fn bypass_socket(this: *mut KernelIpsec, socket: c_int, family: c_int) -> bool {
    prepare(this, || ike_socket::bypass(socket, family))
}

unsafe extern "C" fn enable_udp_decap(
    this: *mut KernelIpsec,
    socket: c_int,
    _family: c_int,
    _port: u16,
) -> bool {
    prepare(this, || ike_socket::take_esp_in_udp(socket))
}

/// Makes a socket ready for kernel IPsec. Culvert's datapath tells ESP from IKE itself, and never captures IKE: so what
/// fails is said, and no reason for charon to go without the socket.
fn prepare(this: *mut KernelIpsec, work: impl FnOnce() -> Result<(), String>) -> bool {
    answer(this, |_| work().map(|()| Status::Success));
    true
}

unsafe extern "C" fn destroy(this: *mut KernelIpsec) {
    // SAFETY: `create` made it, and charon calls this once, last.
    let backend = unsafe { Box::from_raw(this.cast::<Backend>()) };
    // What panics has nothing left to do.
    let _ = catch_unwind(AssertUnwindSafe(|| drop(backend)));
}

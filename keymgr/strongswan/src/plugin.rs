//! The entry point: whether this charon is known, and what it is given.

#![expect(unsafe_code, reason = "called by C, with pointers of C")]

use std::ffi::{c_char, c_int, c_void};
use std::hash::{BuildHasher, RandomState};
use std::path::PathBuf;
use std::ptr;
use std::sync::Arc;

use culvert_bridge::Request;
use culvert_bridge::records::Hello;

use crate::backend;
use crate::charon::{Charon, Log};
use crate::client::Client;
use crate::layout::{
    FEATURE_CALLBACK, FEATURE_CUSTOM, FEATURE_NONE, FEATURE_PROVIDE, Feature, KNOWN, Plugin,
    VERSION,
};
use crate::{os, version};

/// What charon has a pointer to: its part comes first.
#[repr(C)]
struct Culvert {
    public: Plugin,
    features: [Feature; 2],
}

/// charon calls this when it loads the plugin. NULL: it is refused, and kernel-netlink's IPsec is in its place.
#[unsafe(no_mangle)]
extern "C" fn kernel_culvert_plugin_create() -> *mut c_void {
    std::panic::catch_unwind(create).unwrap_or(ptr::null_mut())
}

fn create() -> *mut c_void {
    let running = version::running();
    let name = match &running {
        Some(version) => format!("strongSwan {version}"),
        None => "a strongSwan of unknown version".to_owned(),
    };
    if !running.is_some_and(|version| KNOWN.contains(&version.as_str())) {
        let known = KNOWN.join(", ");
        return refuse(&name, &format!("this plugin is for {known}"));
    }
    let charon = match Charon::find() {
        Ok(charon) => Arc::new(charon),
        Err(text) => return refuse(&name, &text),
    };
    let charon = backend::CHARON.get_or_init(|| charon);
    let culvert = Culvert {
        public: Plugin {
            get_name,
            get_features,
            reload,
            destroy,
        },
        features: [
            Feature {
                kind: FEATURE_CALLBACK,
                of: FEATURE_NONE,
                argument: [charon.register(), backend::create as *const c_void],
            },
            Feature {
                kind: FEATURE_PROVIDE,
                of: FEATURE_CUSTOM,
                argument: [c"kernel-ipsec".as_ptr().cast(), ptr::null()],
            },
        ],
    };
    Box::into_raw(Box::new(culvert)).cast()
}

/// What is said of ourselves.
pub(crate) fn hello() -> Hello {
    Hello {
        version: culvert_bridge::VERSION,
        program: format!(
            "strongSwan {VERSION}, plugin kernel-culvert {}",
            env!("CARGO_PKG_VERSION")
        ),
        // Hashing nothing with random keys is a random number.
        instance: RandomState::new().hash_one(()),
    }
}

/// Tells charon's log, and the key manager if it is there.
fn refuse(name: &str, why: &str) -> *mut c_void {
    let text = format!(
        "kernel-culvert is not loaded into {name}: {why}; Culvert serves nothing of this charon, kernel IPsec is in \
         its place"
    );
    if let Some(log) = Log::find() {
        log.write(&text);
    }
    // Where its settings are is not known of this version. charon does not wait for it, and the code stays.
    let client = Client {
        path: PathBuf::from(culvert_bridge::SOCKET),
        hello: Hello {
            program: format!(
                "{name}, plugin kernel-culvert {}",
                env!("CARGO_PKG_VERSION")
            ),
            ..hello()
        },
        owner: 0,
    };
    let request = Request::Unserved(text);
    // Nobody is left to be told.
    let _ = os::spawn(move || drop(client.ask(&request)));
    ptr::null_mut()
}

unsafe extern "C" fn get_name(_: *mut Plugin) -> *const c_char {
    c"kernel-culvert".as_ptr()
}

unsafe extern "C" fn get_features(this: *mut Plugin, features: *mut *const Feature) -> c_int {
    // SAFETY: charon passes what `create` gave it, until it calls `destroy`.
    let culvert = unsafe { &*this.cast::<Culvert>() };
    // SAFETY: it is to be written.
    unsafe { *features = culvert.features.as_ptr() };
    2
}

unsafe extern "C" fn reload(_: *mut Plugin) -> bool {
    false
}

unsafe extern "C" fn destroy(this: *mut Plugin) {
    // SAFETY: `create` made it, and charon calls this once, last.
    drop(unsafe { Box::from_raw(this.cast::<Culvert>()) });
}

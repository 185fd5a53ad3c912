//! Asking the daemons.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use culvert_proto::channel::{Channel, ChannelError};
use culvert_proto::message::{Changes, DatapathReply, DatapathRequest, KeymgrReply, KeymgrRequest};
use culvert_proto::status::{DatapathStatus, KeymgrStatus};
use culvert_proto::{DATAPATH_SOCKET, KEYMGR_SOCKET, RUN_DIRECTORY};
use ipnet::IpNet;

/// Name and release, as greetings have it.
const PROGRAM: &str = concat!("culvert ", env!("CARGO_PKG_VERSION"));

/// The daemons, by the names of their programs and services.
pub(crate) const DATAPATH: &str = "culvert-datapath";
pub(crate) const KEYMGR: &str = "culvert-keymgr";

impl std::error::Error for Trouble {}

/// Why a daemon did not answer.
#[derive(Clone, Debug)]
pub(crate) enum Trouble {
    /// It does not run.
    Down {
        /// Which.
        program: &'static str,
        /// Its socket, on which nobody listens.
        socket: PathBuf,
        /// The command that starts it.
        start: String,
    },
    /// It runs, or we may not know; the text says which daemon and what to do.
    Other(String),
}

impl fmt::Display for Trouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Down {
                program,
                socket,
                start,
            } => {
                let meanwhile = if *program == DATAPATH {
                    "what it protected goes by the kernel's IPsec meanwhile, or is dropped"
                } else {
                    "what the datapath has goes on, but nothing of it changes meanwhile"
                };
                write!(
                    f,
                    "{program} is not running (nobody listens on {}); start it with: {start}; {meanwhile}",
                    socket.display()
                )
            }
            Self::Other(text) => f.write_str(text),
        }
    }
}

/// State of the datapath.
pub(crate) fn datapath_status(run: &Path) -> Result<DatapathStatus, Trouble> {
    match ask_datapath(run, &DatapathRequest::Status)? {
        DatapathReply::Status(status) => Ok(*status),
        _ => Err(explain(DATAPATH, run, ChannelError::Unexpected)),
    }
}

/// Ends the datapath; it has begun to when this returns.
pub(crate) fn end_datapath(run: &Path) -> Result<(), Trouble> {
    match ask_datapath(run, &DatapathRequest::End)? {
        DatapathReply::Done => Ok(()),
        DatapathReply::Refused(text) => Err(refused(DATAPATH, &text)),
        _ => Err(explain(DATAPATH, run, ChannelError::Unexpected)),
    }
}

/// State of the key manager.
pub(crate) fn keymgr_status(run: &Path) -> Result<KeymgrStatus, Trouble> {
    match ask_keymgr(run, &KeymgrRequest::Status)? {
        KeymgrReply::Status(status) => Ok(*status),
        _ => Err(explain(KEYMGR, run, ChannelError::Unexpected)),
    }
}

/// Lets the key manager reload.
pub(crate) fn reload(run: &Path) -> Result<Changes, Trouble> {
    match ask_keymgr(run, &KeymgrRequest::Reload)? {
        KeymgrReply::Reloaded(changes) => Ok(changes),
        KeymgrReply::Refused(text) => Err(Trouble::Other(format!(
            "refused, what ran goes on:\n{text}"
        ))),
        _ => Err(explain(KEYMGR, run, ChannelError::Unexpected)),
    }
}

/// Lets the key manager let go of a peer, or of all, that are held.
pub(crate) fn release(run: &Path, peer: Option<IpNet>) -> Result<Vec<IpNet>, Trouble> {
    match ask_keymgr(run, &KeymgrRequest::Release(peer))? {
        KeymgrReply::Released(released) => Ok(released),
        _ => Err(explain(KEYMGR, run, ChannelError::Unexpected)),
    }
}

/// Hands everything over to the kernel's IPsec.
pub(crate) fn drain(run: &Path) -> Result<(), Trouble> {
    order_keymgr(run, &KeymgrRequest::Drain)
}

/// Lets the datapath serve again.
pub(crate) fn resume(run: &Path) -> Result<(), Trouble> {
    order_keymgr(run, &KeymgrRequest::Resume)
}

/// Ends the key manager; it has begun to when this returns.
pub(crate) fn end_keymgr(run: &Path) -> Result<(), Trouble> {
    order_keymgr(run, &KeymgrRequest::End)
}

/// A request that is done or refused.
fn order_keymgr(run: &Path, request: &KeymgrRequest) -> Result<(), Trouble> {
    match ask_keymgr(run, request)? {
        KeymgrReply::Done => Ok(()),
        KeymgrReply::Refused(text) => Err(refused(KEYMGR, &text)),
        _ => Err(explain(KEYMGR, run, ChannelError::Unexpected)),
    }
}

fn refused(program: &str, text: &str) -> Trouble {
    Trouble::Other(format!("{program} refuses: {text}"))
}

fn ask_datapath(run: &Path, request: &DatapathRequest) -> Result<DatapathReply, Trouble> {
    let ask = || {
        let mut channel = Channel::connect(&run.join(DATAPATH_SOCKET), DATAPATH)?;
        channel.greet::<DatapathRequest, DatapathReply>(PROGRAM)?;
        channel.send(request)?;
        channel.answer()
    };
    ask().map_err(|error| explain(DATAPATH, run, error))
}

fn ask_keymgr(run: &Path, request: &KeymgrRequest) -> Result<KeymgrReply, Trouble> {
    let ask = || {
        let mut channel = Channel::connect(&run.join(KEYMGR_SOCKET), KEYMGR)?;
        channel.greet::<KeymgrRequest, KeymgrReply>(PROGRAM)?;
        channel.send(request)?;
        channel.answer()
    };
    ask().map_err(|error| explain(KEYMGR, run, error))
}

fn explain(program: &'static str, run: &Path, error: ChannelError) -> Trouble {
    match error {
        // No socket, or one that a dead process left.
        ChannelError::Absent { path, source, .. }
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            Trouble::Down {
                program,
                socket: path,
                start: if run == Path::new(RUN_DIRECTORY) {
                    program.to_owned()
                } else {
                    format!("{program} --run-dir {}", run.display())
                },
            }
        }
        error => Trouble::Other(format!("{program}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::channel::Listener;

    #[test]
    fn who_is_down_is_named_with_the_command_that_starts_it() {
        let run = tempfile::tempdir().unwrap();
        let error = datapath_status(run.path()).unwrap_err().to_string();
        assert!(error.contains("culvert-datapath is not running"), "{error}");
        let start = format!("culvert-datapath --run-dir {}", run.path().display());
        assert!(error.contains(&start), "{error}");
        // A dead one's socket is still there.
        drop(std::os::unix::net::UnixListener::bind(run.path().join(KEYMGR_SOCKET)).unwrap());
        let error = keymgr_status(run.path()).unwrap_err().to_string();
        assert!(error.contains("culvert-keymgr is not running"), "{error}");
    }

    #[test]
    fn a_reload_that_is_refused_says_why() {
        if !nix::unistd::geteuid().is_root() {
            return;
        }
        let run = tempfile::tempdir().unwrap();
        let listener = Listener::bind(&run.path().join(KEYMGR_SOCKET)).unwrap();
        let server = std::thread::spawn(move || {
            let mut channel = listener.accept().unwrap();
            channel
                .greeted::<KeymgrRequest, KeymgrReply>("test")
                .unwrap();
            let request = channel.receive().unwrap();
            assert!(matches!(request, Some(KeymgrRequest::Reload)));
            channel
                .send(&KeymgrReply::Refused("x.toml:3: wrong".to_owned()))
                .unwrap();
        });
        let error = reload(run.path()).unwrap_err().to_string();
        assert!(
            error.contains("what ran goes on") && error.contains("x.toml:3"),
            "{error}"
        );
        server.join().unwrap();
    }
}

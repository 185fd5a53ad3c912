//! Asking the daemons.

use std::io;
use std::path::Path;

use culvert_proto::channel::{Channel, ChannelError};
use culvert_proto::message::{
    Changes, DatapathReply, DatapathRequest, KeymgrReply, KeymgrRequest,
};
use culvert_proto::status::{DatapathStatus, KeymgrStatus};
use culvert_proto::{DATAPATH_SOCKET, KEYMGR_SOCKET};

/// Name and release, as greetings have it.
const PROGRAM: &str = concat!("culvert ", env!("CARGO_PKG_VERSION"));

/// The daemons, by the names of their programs and services.
pub(crate) const DATAPATH: &str = "culvert-datapath";
pub(crate) const KEYMGR: &str = "culvert-keymgr";

/// State of the datapath, or a text that says what is wrong and what to do.
pub(crate) fn datapath_status(run: &Path) -> Result<DatapathStatus, String> {
    let ask = || {
        let mut channel = Channel::connect(&run.join(DATAPATH_SOCKET), DATAPATH)?;
        channel.greet::<DatapathRequest, DatapathReply>(PROGRAM)?;
        channel.send(&DatapathRequest::Status)?;
        match channel.answer()? {
            DatapathReply::Status(status) => Ok(*status),
            _ => Err(ChannelError::Unexpected),
        }
    };
    ask().map_err(|error| explain(DATAPATH, &error))
}

/// State of the key manager, or a text that says what is wrong and what to do.
pub(crate) fn keymgr_status(run: &Path) -> Result<KeymgrStatus, String> {
    match ask_keymgr(run, &KeymgrRequest::Status)? {
        KeymgrReply::Status(status) => Ok(*status),
        _ => Err(explain(KEYMGR, &ChannelError::Unexpected)),
    }
}

/// Lets the key manager reload; a text says why it did not.
pub(crate) fn reload(run: &Path) -> Result<Changes, String> {
    match ask_keymgr(run, &KeymgrRequest::Reload)? {
        KeymgrReply::Reloaded(changes) => Ok(changes),
        KeymgrReply::Refused(text) => Err(format!("refused, what ran goes on:\n{text}")),
        _ => Err(explain(KEYMGR, &ChannelError::Unexpected)),
    }
}

fn ask_keymgr(run: &Path, request: &KeymgrRequest) -> Result<KeymgrReply, String> {
    let ask = || {
        let mut channel = Channel::connect(&run.join(KEYMGR_SOCKET), KEYMGR)?;
        channel.greet::<KeymgrRequest, KeymgrReply>(PROGRAM)?;
        channel.send(request)?;
        channel.answer()
    };
    ask().map_err(|error: ChannelError| explain(KEYMGR, &error))
}

fn explain(program: &str, error: &ChannelError) -> String {
    match error {
        // No socket, or one that a dead process left.
        ChannelError::Absent { path, source, .. }
            if matches!(
                source.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
            ) =>
        {
            let meanwhile = if program == DATAPATH {
                "Geneve to and from the peers that it protected stays blocked meanwhile"
            } else {
                "what the datapath has goes on, but nothing of it changes meanwhile"
            };
            format!(
                "{program} is not running (nobody listens on {}); start it with \"systemctl start \
                 {program}\"; {meanwhile}",
                path.display()
            )
        }
        error => format!("{program}: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use culvert_proto::channel::Listener;

    #[test]
    fn who_is_down_is_named_with_the_command_that_starts_it() {
        let run = tempfile::tempdir().unwrap();
        let error = datapath_status(run.path()).unwrap_err();
        assert!(error.contains("culvert-datapath is not running"), "{error}");
        assert!(error.contains("systemctl start culvert-datapath"), "{error}");
        // A dead one's socket is still there.
        drop(std::os::unix::net::UnixListener::bind(run.path().join(KEYMGR_SOCKET)).unwrap());
        let error = keymgr_status(run.path()).unwrap_err();
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
            channel.greeted::<KeymgrRequest, KeymgrReply>("test").unwrap();
            let request = channel.receive().unwrap();
            assert!(matches!(request, Some(KeymgrRequest::Reload)));
            channel.send(&KeymgrReply::Refused("x.toml:3: wrong".to_owned())).unwrap();
        });
        let error = reload(run.path()).unwrap_err();
        assert!(error.contains("what ran goes on") && error.contains("x.toml:3"), "{error}");
        server.join().unwrap();
    }
}

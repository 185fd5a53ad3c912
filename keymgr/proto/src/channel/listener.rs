//! Where connections come in.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use super::{Channel, ChannelError, check_peer};

/// A socket that is listened on: mode 0600 from its first moment.
#[derive(Debug)]
pub struct Listener {
    listener: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds `path`, in place of what a dead process left there: the caller holds the [`Lock`](super::Lock), so nobody
    /// alive listens on it.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn bind(path: &Path) -> io::Result<Self> {
        // Bound under a name that nobody connects to, then renamed: it is never there with a wider mode.
        let hidden = path.with_extension("new");
        for stale in [&hidden, path] {
            match fs::remove_file(stale) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        let listener = UnixListener::bind(&hidden)?;
        fs::set_permissions(&hidden, fs::Permissions::from_mode(0o600))?;
        fs::rename(&hidden, path)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
        })
    }

    /// The next connection.
    ///
    /// # Errors
    /// The kernel has none, or the peer is not root.
    pub fn accept(&self) -> Result<Channel, ChannelError> {
        Channel::new(self.accept_stream()?)
    }

    /// The next connection, for another protocol than this one.
    ///
    /// # Errors
    /// As [`Listener::accept`].
    pub fn accept_stream(&self) -> Result<UnixStream, ChannelError> {
        let (stream, _) = self.listener.accept()?;
        check_peer(&stream)?;
        Ok(stream)
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = fs::remove_file(&self.path);
    }
}

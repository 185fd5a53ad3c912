//! The directory of a program's sockets, and the right to be the only one in it.

use std::fs;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

/// Makes a directory that only root can write to, or takes the one that is there.
///
/// # Errors
/// It cannot be made, or others can write to the one that is there.
pub fn make_directory(path: &Path) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, MetadataExt};
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)?;
    // Whoever can write to it can put a socket or a region of his own there.
    let metadata = fs::metadata(path)?;
    let path = path.display();
    if metadata.uid() != nix::unistd::geteuid().as_raw() {
        return Err(io::Error::other(format!(
            "it belongs to user {}; chown root {path}",
            metadata.uid()
        )));
    }
    if metadata.mode() & 0o022 != 0 {
        return Err(io::Error::other(format!(
            "others can write to it; chmod go-w {path}"
        )));
    }
    Ok(())
}

/// The right to be the only one of a program in a run directory. Kept until dropped, or the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: Flock<fs::File>,
}

/// Somebody else has the lock, or it cannot be taken.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    /// It runs already.
    #[error("{program} is running already{}", .pid.as_ref().map(|pid| format!(" (process {pid})")).unwrap_or_default())]
    Held {
        /// Which program.
        program: String,
        /// Its process id, if it says.
        pid: Option<String>,
    },
    /// No lock file.
    #[error("cannot lock {path}: {source}")]
    Io {
        /// The lock file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
}

impl Lock {
    /// Takes the lock of `program` in `directory`.
    ///
    /// # Errors
    /// Another process has it.
    pub fn take(directory: &Path, program: &str) -> Result<Self, LockError> {
        let path = directory.join(format!("{program}.lock"));
        let failed = |source| LockError::Io {
            path: path.clone(),
            source,
        };
        let file = fs::File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(file) => {
                file.set_len(0).map_err(failed)?;
                io::Write::write_all(&mut &*file, std::process::id().to_string().as_bytes())
                    .map_err(failed)?;
                Ok(Self { _file: file })
            }
            Err((mut file, nix::Error::EWOULDBLOCK)) => {
                let mut pid = String::new();
                let read = file.read_to_string(&mut pid).is_ok_and(|count| count > 0);
                Err(LockError::Held {
                    program: program.to_owned(),
                    pid: read.then_some(pid),
                })
            }
            Err((_, error)) => Err(failed(error.into())),
        }
    }
}

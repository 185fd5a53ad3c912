//! A connection: framing, patience, and the greeting.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::records::{Hello, wipe};
use crate::wire::{Wire, decode};
use crate::{MAX_MESSAGE, VERSION};

/// How long an answer, or the rest of a message, may take.
const PATIENCE: Duration = Duration::from_secs(5);

/// What can go wrong.
#[derive(Debug)]
pub enum Error {
    /// Nobody is there, or no more.
    Io(io::Error),
    /// The other end has closed.
    Closed,
    /// Longer than [`MAX_MESSAGE`].
    TooLong(usize),
    /// Not a message of this protocol.
    Garbage,
    /// Another version; the text says who.
    Version(Hello),
}

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Io(error) if error.kind() == io::ErrorKind::WouldBlock => {
                write!(f, "no answer within {} s", PATIENCE.as_secs())
            }
            Self::Io(error) => write!(f, "{error}"),
            Self::Closed => f.write_str("the connection was closed"),
            Self::TooLong(length) => {
                write!(
                    f,
                    "message of {length} bytes refused: the limit is {MAX_MESSAGE}"
                )
            }
            Self::Garbage => f.write_str("message not understood"),
            Self::Version(theirs) => write!(
                f,
                "{} speaks version {} of the bridge's protocol, this is version {VERSION}; install the same release \
                 of all of Culvert and restart it",
                theirs.program, theirs.version
            ),
        }
    }
}

impl std::error::Error for Error {}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    stream: UnixStream,
}

impl Connection {
    /// Takes over a stream. Whether the other end is root is for the caller to check: the standard library cannot.
    ///
    /// # Errors
    /// It has no time limits.
    pub fn new(stream: UnixStream) -> Result<Self, Error> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self { stream })
    }

    /// The stream, to ask the kernel who is at its other end.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }

    /// Sends a message.
    ///
    /// # Errors
    /// It is too long, or the other end does not take it.
    pub fn send(&mut self, message: &impl Wire) -> Result<(), Error> {
        // A buffer that grew would leave parts of itself behind, with keys in them.
        let mut buffer = Vec::with_capacity(1024);
        buffer.extend_from_slice(&[0; 4]);
        message.write(&mut buffer);
        let body = buffer.len() - 4;
        let result = match u32::try_from(body) {
            Ok(length) if length <= MAX_MESSAGE => {
                buffer[..4].copy_from_slice(&length.to_le_bytes());
                self.stream.write_all(&buffer).map_err(Error::from)
            }
            _ => Err(Error::TooLong(body)),
        };
        wipe(&mut buffer);
        result
    }

    /// The next message, which must come soon.
    ///
    /// # Errors
    /// None comes, or none that is understood.
    pub fn receive<T: Wire>(&mut self) -> Result<T, Error> {
        let mut length = [0; 4];
        self.fill(&mut length)?;
        let length = u32::from_le_bytes(length);
        let size = usize::try_from(length).unwrap_or(usize::MAX);
        if length > MAX_MESSAGE {
            return Err(Error::TooLong(size));
        }
        let mut body = vec![0; size];
        let result = self
            .fill(&mut body)
            .and_then(|()| decode(&body).ok_or(Error::Garbage));
        wipe(&mut body);
        result
    }

    /// Waits for the next message for ever, or until somebody shuts the stream down.
    ///
    /// # Errors
    /// The connection has ended, or what came is not understood.
    pub fn wait<T: Wire>(&mut self) -> Result<T, Error> {
        self.stream.set_read_timeout(None)?;
        let result = self.receive();
        self.stream.set_read_timeout(Some(PATIENCE))?;
        result
    }

    fn fill(&mut self, buffer: &mut [u8]) -> Result<(), Error> {
        match self.stream.read_exact(buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(Error::Closed),
            other => Ok(other?),
        }
    }

    /// Greets as the side that connected, and says who the other one is.
    ///
    /// # Errors
    /// It is of another version, or silent.
    pub fn greet(&mut self, hello: &Hello) -> Result<Hello, Error> {
        self.send(hello)?;
        same_version(self.receive()?)
    }

    /// Greets as the side that listens, and says who the other one is.
    ///
    /// # Errors
    /// It is of another version (it was told ours), or does not greet.
    pub fn greeted(&mut self, hello: &Hello) -> Result<Hello, Error> {
        let theirs = self.receive();
        self.send(hello)?;
        same_version(theirs?)
    }
}

fn same_version(theirs: Hello) -> Result<Hello, Error> {
    if theirs.version == VERSION {
        Ok(theirs)
    } else {
        Err(Error::Version(theirs))
    }
}

#[cfg(test)]
mod tests;

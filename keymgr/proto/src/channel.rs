//! The socket: framing, descriptors, and who may speak.

mod listener;
mod lock;

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, getsockopt, recvmsg, sendmsg, sockopt,
};
use serde::{Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

pub use self::listener::Listener;
pub use self::lock::{Lock, LockError, make_directory};
use crate::message::{DatapathReply, DatapathRequest, Hello, KeymgrReply, KeymgrRequest};
use crate::{MAX_MESSAGE, VERSION};

/// How long the rest of a message, or an answer, may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// What can go wrong on the socket; the text says what, which and what to do.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Nobody listens.
    #[error("cannot reach {path}: {source}; is {program} running?")]
    Absent {
        /// The socket.
        path: PathBuf,
        /// Who should listen.
        program: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// Not allowed.
    #[error("cannot reach {path}: permission denied; run this as root")]
    Denied {
        /// The socket.
        path: PathBuf,
    },
    /// The other end is not root.
    #[error("peer with user id {0} refused: only root may speak here")]
    Stranger(u32),
    /// Another release.
    #[error(
        "{theirs} speaks protocol version {their_version}, this is version {VERSION}; install the same release of all of Culvert and restart it"
    )]
    Version {
        /// The other program.
        theirs: String,
        /// Its version.
        their_version: u16,
    },
    /// Too long.
    #[error("message of {0} bytes refused: the limit is {MAX_MESSAGE}")]
    TooLong(usize),
    /// Cut off in the middle.
    #[error("the connection ended in the middle of a message")]
    CutOff,
    /// No answer.
    #[error("no answer within {} s", PATIENCE.as_secs())]
    Silent,
    /// Not postcard, or not this message.
    #[error("message not understood: {0}")]
    Garbage(#[from] postcard::Error),
    /// Something other than was asked for.
    #[error("unexpected answer")]
    Unexpected,
    /// The connection was closed.
    #[error("the connection was closed")]
    Closed,
    /// Anything else.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl From<nix::Error> for ChannelError {
    fn from(error: nix::Error) -> Self {
        Self::Io(error.into())
    }
}

/// A message type that has a greeting.
pub trait Greeting: Sized {
    /// The greeting.
    fn from_hello(hello: Hello) -> Self;
    /// The greeting, if it is one.
    fn as_hello(&self) -> Option<&Hello>;
}

macro_rules! greeting {
    ($($message:ident)*) => {$(
        impl Greeting for $message {
            fn from_hello(hello: Hello) -> Self {
                Self::Hello(hello)
            }
            fn as_hello(&self) -> Option<&Hello> {
                match self {
                    Self::Hello(hello) => Some(hello),
                    _ => None,
                }
            }
        }
    )*};
}
greeting!(DatapathRequest DatapathReply KeymgrRequest KeymgrReply);

/// A message as it goes over a socket: the length of its body, and the body.
///
/// # Errors
/// It is too long.
pub fn encode<T: Serialize>(message: &T) -> Result<Zeroizing<Vec<u8>>, ChannelError> {
    // Sized first, written once: no copy of a key is left behind by a buffer that grew.
    let size = postcard::experimental::serialized_size(message)?;
    let length = u32::try_from(size)
        .ok()
        .filter(|length| *length <= MAX_MESSAGE)
        .ok_or(ChannelError::TooLong(size))?;
    let mut buffer = Zeroizing::new(vec![0; 4 + size]);
    buffer[..4].copy_from_slice(&length.to_le_bytes());
    postcard::to_slice(message, &mut buffer[4..])?;
    Ok(buffer)
}

/// The message of a body. Bytes that are left do not matter: a [`Hello`] of another version may have more.
///
/// # Errors
/// It is not understood.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, ChannelError> {
    Ok(postcard::from_bytes(body)?)
}

/// One connection.
#[derive(Debug)]
pub struct Channel {
    stream: UnixStream,
    descriptor: Option<OwnedFd>,
}

impl Channel {
    /// Connects to the socket that `program` listens on.
    ///
    /// # Errors
    /// Nobody listens, we may not, or the other end is not root.
    pub fn connect(path: &Path, program: &'static str) -> Result<Self, ChannelError> {
        let stream = UnixStream::connect(path).map_err(|source| {
            let path = path.to_owned();
            if source.kind() == io::ErrorKind::PermissionDenied {
                ChannelError::Denied { path }
            } else {
                ChannelError::Absent {
                    path,
                    program,
                    source,
                }
            }
        })?;
        Self::new(stream)
    }

    /// A connection on `stream`, whose other end must be root.
    ///
    /// # Errors
    /// It is not.
    pub fn new(stream: UnixStream) -> Result<Self, ChannelError> {
        check_peer(&stream)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream,
            descriptor: None,
        })
    }

    /// The process at the other end, as it was when it bound or connected its socket.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn peer_process(&self) -> Result<i32, ChannelError> {
        Ok(getsockopt(&self.stream, sockopt::PeerCredentials)?.pid())
    }

    /// Waits no longer than that for what the other end says, or takes.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_patience(&self, patience: Duration) -> Result<(), ChannelError> {
        self.stream.set_read_timeout(Some(patience))?;
        Ok(self.stream.set_write_timeout(Some(patience))?)
    }

    /// Sends a message.
    ///
    /// # Errors
    /// It is too long, or the connection is gone.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), ChannelError> {
        self.transmit(message, &[])
    }

    /// Sends a message with a file descriptor.
    ///
    /// # Errors
    /// As [`Channel::send`].
    pub fn send_with<T: Serialize>(
        &mut self,
        message: &T,
        descriptor: BorrowedFd<'_>,
    ) -> Result<(), ChannelError> {
        self.transmit(message, &[descriptor.as_raw_fd()])
    }

    fn transmit<T: Serialize>(
        &mut self,
        message: &T,
        descriptors: &[i32],
    ) -> Result<(), ChannelError> {
        let buffer = encode(message)?;
        let rights = [ControlMessage::ScmRights(descriptors)];
        let mut control = if descriptors.is_empty() {
            &[][..]
        } else {
            &rights[..]
        };
        let mut sent = 0;
        while sent < buffer.len() {
            let part = [IoSlice::new(&buffer[sent..])];
            match sendmsg::<()>(
                self.stream.as_raw_fd(),
                &part,
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(count) => sent += count,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) => return Err(ChannelError::Silent),
                Err(nix::Error::EPIPE | nix::Error::ECONNRESET) => {
                    return Err(ChannelError::Closed);
                }
                Err(error) => return Err(error.into()),
            }
            // The descriptor went with the first bytes.
            if sent > 0 {
                control = &[];
            }
        }
        Ok(())
    }

    /// The next message, however long it takes to begin; `None` when the other end has closed.
    ///
    /// # Errors
    /// A message that is too long, cut off, or not understood.
    pub fn receive<T: DeserializeOwned>(&mut self) -> Result<Option<T>, ChannelError> {
        self.receive_within(true)
    }

    /// The answer to a message that was sent.
    ///
    /// # Errors
    /// As [`Channel::receive`], and if it does not come.
    pub fn answer<T: DeserializeOwned>(&mut self) -> Result<T, ChannelError> {
        self.receive_within(false)?.ok_or(ChannelError::Closed)
    }

    fn receive_within<T: DeserializeOwned>(
        &mut self,
        forever: bool,
    ) -> Result<Option<T>, ChannelError> {
        let mut header = [0; 4];
        if !self.fill(&mut header, forever, true)? {
            return Ok(None);
        }
        let length = u32::from_le_bytes(header);
        if length > MAX_MESSAGE {
            return Err(ChannelError::TooLong(length as usize));
        }
        let mut buffer = Zeroizing::new(vec![0; length as usize]);
        self.fill(&mut buffer, false, false)?;
        decode(&buffer).map(Some)
    }

    /// Fills `buffer`; false if the stream ended before its first byte and that is allowed.
    fn fill(
        &mut self,
        buffer: &mut [u8],
        forever: bool,
        may_end: bool,
    ) -> Result<bool, ChannelError> {
        let mut got = 0;
        while got < buffer.len() {
            match self.read_some(&mut buffer[got..]) {
                Ok(0) if got == 0 && may_end => return Ok(false),
                Ok(0) => return Err(ChannelError::CutOff),
                Ok(count) => got += count,
                Err(nix::Error::EINTR) => {}
                Err(nix::Error::EAGAIN) if got == 0 && forever => {}
                Err(nix::Error::EAGAIN) => return Err(ChannelError::Silent),
                Err(nix::Error::ECONNRESET) if got == 0 && may_end => return Ok(false),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(true)
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> nix::Result<usize> {
        let mut space = nix::cmsg_space!(i32);
        let mut parts = [IoSliceMut::new(buffer)];
        let message = recvmsg::<()>(
            self.stream.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        )?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                for descriptor in descriptors {
                    self.descriptor = Some(adopt(descriptor));
                }
            }
        }
        Ok(message.bytes)
    }

    /// The file descriptor that came with the messages received so far, the newest.
    pub fn take_descriptor(&mut self) -> Option<OwnedFd> {
        self.descriptor.take()
    }

    /// Greets as the side that asks.
    ///
    /// # Errors
    /// The other end is of another version, or silent.
    pub fn greet<Request, Reply>(&mut self, program: &str) -> Result<(), ChannelError>
    where
        Request: Greeting + Serialize,
        Reply: Greeting + DeserializeOwned,
    {
        self.send(&Request::from_hello(hello(program)))?;
        same_version(self.answer::<Reply>()?.as_hello())
    }

    /// Greets as the side that answers.
    ///
    /// # Errors
    /// The other end is of another version (it was told ours), or does not greet.
    pub fn greeted<Request, Reply>(&mut self, program: &str) -> Result<(), ChannelError>
    where
        Request: Greeting + DeserializeOwned,
        Reply: Greeting + Serialize,
    {
        let first = self.answer::<Request>();
        self.send(&Reply::from_hello(hello(program)))?;
        same_version(first?.as_hello())
    }

    /// Whether the other end has closed, or has sent what nobody asked for; waits for it up to `timeout`.
    ///
    /// # Errors
    /// The kernel cannot tell.
    pub fn hung_up(&self, timeout: Duration) -> Result<bool, ChannelError> {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        let mut descriptors = [PollFd::new(self.stream.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
        match poll(&mut descriptors, timeout) {
            Ok(ready) => Ok(ready > 0),
            Err(nix::Error::EINTR) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }
}

/// Only root may speak here.
fn check_peer(stream: &UnixStream) -> Result<(), ChannelError> {
    let peer = getsockopt(stream, sockopt::PeerCredentials)?;
    if peer.uid() == 0 {
        Ok(())
    } else {
        Err(ChannelError::Stranger(peer.uid()))
    }
}

#[expect(unsafe_code, reason = "recvmsg gives descriptors as numbers")]
fn adopt(descriptor: i32) -> OwnedFd {
    // SAFETY: the kernel has just made this descriptor for us, and nobody else has its number.
    unsafe { OwnedFd::from_raw_fd(descriptor) }
}

fn hello(program: &str) -> Hello {
    Hello {
        version: VERSION,
        program: program.to_owned(),
    }
}

fn same_version(hello: Option<&Hello>) -> Result<(), ChannelError> {
    match hello {
        None => Err(ChannelError::Unexpected),
        Some(hello) if hello.version == VERSION => Ok(()),
        Some(hello) => Err(ChannelError::Version {
            theirs: hello.program.clone(),
            their_version: hello.version,
        }),
    }
}

#[cfg(test)]
mod tests;

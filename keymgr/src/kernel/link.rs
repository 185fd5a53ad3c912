//! A netlink socket to the kernel's XFRM: requests and their answers, and what is announced.
//!
//! What goes through has keys in it. Our buffers are overwritten; the kernel's copies in its sockets' queues are not
//! ours to overwrite.

use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkBuffer, NetlinkMessage,
    NlasIterator,
};
use netlink_packet_xfrm::XfrmMessage;
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};
use nix::errno::Errno;
use nix::libc::{MSG_DONTWAIT, MSG_TRUNC};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use zeroize::{Zeroize, Zeroizing};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// `NLM_F_ACK_TLVS`: attributes come behind an error.
const ACK_TLVS: u16 = 0x200;
/// `NLMSGERR_ATTR_MSG`: what is wrong, in words.
const ATTR_MSG: u16 = 1;
/// The kernel answers in pieces of at most 32 KiB.
const BUFFER: usize = 64 << 10;
/// So long an answer is waited for; it is made before the request's call returns.
const PATIENCE: Duration = Duration::from_secs(5);
/// How often a dump is begun anew that something changed under.
const DUMPS: u32 = 5;

/// Why a request was not done.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) error: io::Error,
    /// The kernel's words for it.
    text: Option<String>,
}

impl Failure {
    pub(super) fn is(&self, errno: Errno) -> bool {
        self.error.raw_os_error() == Some(errno as i32)
    }
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { error, text: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(text) = &self.text {
            write!(f, "{text}: ")?;
        }
        self.error.fmt(f)
    }
}

/// A message from the kernel.
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) sequence: u32,
    pub(super) port: u32,
    flags: u16,
    pub(super) payload: &'a [u8],
}

/// A socket.
#[derive(Debug)]
pub(super) struct Link {
    socket: Socket,
    /// What the kernel calls this socket.
    pub(super) port: u32,
    /// Number of the last request.
    pub(super) sequence: u32,
    buffer: Zeroizing<Vec<u8>>,
}

impl Link {
    pub(super) fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_XFRM)?;
        let port = socket.bind_auto()?.port_number();
        socket.connect(&SocketAddr::new(0, 0))?;
        // Without these, errors have the request in them, and no words. Old kernels have neither.
        let _ = socket.set_cap_ack(true);
        let _ = socket.set_ext_ack(true);
        Ok(Self {
            socket,
            port,
            sequence: 0,
            buffer: Zeroizing::new(vec![0; BUFFER]),
        })
    }

    pub(super) fn join(&self, group: u32) -> io::Result<()> {
        self.socket.add_membership(group)
    }

    pub(super) fn leave(&self, group: u32) -> io::Result<()> {
        self.socket.drop_membership(group)
    }

    /// Sends a request, and waits until it is done. Every answer before that is handed to `each`.
    pub(super) fn ask(
        &mut self,
        request: XfrmMessage,
        each: impl FnMut(&Message) -> io::Result<()>,
    ) -> Result<(), Failure> {
        self.send(request, 0)?;
        self.answers(each).map(drop)
    }

    /// Asks for all there is; again, if that changed meanwhile.
    pub(super) fn dump<T>(
        &mut self,
        request: impl Fn() -> XfrmMessage,
        mut each: impl FnMut(&Message, &mut Vec<T>) -> io::Result<()>,
    ) -> Result<Vec<T>, Failure> {
        let mut all = Vec::new();
        for _ in 0..DUMPS {
            all.clear();
            self.send(request(), NLM_F_DUMP)?;
            if !self.answers(|message| each(message, &mut all))? {
                break;
            }
        }
        Ok(all)
    }

    fn send(&mut self, request: XfrmMessage, flags: u16) -> Result<(), Failure> {
        self.sequence = self.sequence.wrapping_add(1).max(1);
        let mut message = NetlinkMessage::from(request);
        message.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        message.header.sequence_number = self.sequence;
        message.header.port_number = self.port;
        message.finalize();
        let mut bytes = Zeroizing::new(vec![0; message.buffer_len()]);
        message.serialize(&mut bytes);
        if let netlink_packet_core::NetlinkPayload::InnerMessage(request) = &mut message.payload {
            wipe(request);
        }
        let sent = self.socket.send(&bytes, 0)?;
        if sent != bytes.len() {
            return Err(io::Error::from(io::ErrorKind::WriteZero).into());
        }
        Ok(())
    }

    /// Reads until the last request is done; whether what it asked for changed meanwhile.
    fn answers(
        &mut self,
        mut each: impl FnMut(&Message) -> io::Result<()>,
    ) -> Result<bool, Failure> {
        let deadline = Instant::now() + PATIENCE;
        let sequence = self.sequence;
        let mut changed = false;
        let mut done = None;
        while done.is_none() {
            if !self.wait(deadline)? {
                let text = "the kernel does not answer";
                return Err(io::Error::new(io::ErrorKind::TimedOut, text).into());
            }
            self.receive(&mut |message| {
                if message.sequence != sequence || done.is_some() {
                    return Ok(());
                }
                changed |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => done = Some(result(message)),
                    _ => each(message)?,
                }
                Ok(())
            })?;
        }
        done.unwrap_or(Ok(())).map(|()| changed)
    }

    /// Waits until there is something to be received; `false`: it is time to stop.
    pub(super) fn wait(&self, deadline: Instant) -> io::Result<bool> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = left.as_micros().div_ceil(1000);
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if Instant::now() >= deadline => return Ok(false),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(true),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Receives what is there, without waiting for it.
    pub(super) fn receive(
        &mut self,
        each: &mut dyn FnMut(&Message) -> io::Result<()>,
    ) -> io::Result<()> {
        let flags = MSG_DONTWAIT | MSG_TRUNC;
        let (length, from) = self.socket.recv_from(&mut &mut self.buffer[..], flags)?;
        let received = self
            .buffer
            .get_mut(..length)
            .ok_or_else(|| io::Error::other(format!("a message of {length} bytes is too long")));
        let received = match received {
            Ok(received) => received,
            Err(error) => {
                self.buffer.as_mut_slice().zeroize();
                return Err(error);
            }
        };
        // Others may send to us, too.
        let result = if from.port_number() == 0 {
            split(received, each)
        } else {
            Ok(())
        };
        received.zeroize();
        result
    }

    /// Throws away what is there.
    pub(super) fn drain(&mut self) -> io::Result<()> {
        loop {
            match self.receive(&mut |_| Ok(())) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if overrun(&error) => {}
                other => other?,
            }
        }
    }
}

/// Whether messages were lost, for want of room in the socket's queue.
pub(super) fn overrun(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::ENOBUFS as i32)
}

/// The messages of one datagram.
pub(super) fn split(
    mut rest: &[u8],
    each: &mut dyn FnMut(&Message) -> io::Result<()>,
) -> io::Result<()> {
    while !rest.is_empty() {
        let message = NetlinkBuffer::new_checked(rest).map_err(io::Error::other)?;
        let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
        each(&Message {
            kind: message.message_type(),
            flags: message.flags(),
            sequence: message.sequence_number(),
            port: message.port_number(),
            payload: message.payload(),
        })?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Ok(())
}

/// What an error, or the end of a dump, says: a code, and words behind the header of the request.
fn result(message: &Message) -> Result<(), Failure> {
    const HEADER: usize = 16;
    let code = message
        .payload
        .first_chunk()
        .copied()
        .map(i32::from_ne_bytes);
    let errno = match code {
        Some(0) => return Ok(()),
        // There may be a dump's end without a code.
        None if message.kind == NLMSG_DONE => return Ok(()),
        Some(code) => code.wrapping_neg(),
        None => Errno::EPROTO as i32,
    };
    let words = (message.flags & ACK_TLVS != 0)
        .then(|| message.payload.get(4 + HEADER..))
        .flatten()
        .unwrap_or_default();
    let text = attributes(words)
        .flatten()
        .find(|(kind, _)| *kind == ATTR_MSG)
        .map(|(_, text)| {
            String::from_utf8_lossy(text)
                .trim_end_matches('\0')
                .to_owned()
        });
    Err(Failure {
        error: io::Error::from_raw_os_error(errno),
        text,
    })
}

/// Attributes: kinds and values.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = io::Result<(u16, &[u8])>> {
    NlasIterator::new(bytes).map(|attribute| {
        let attribute = attribute.map_err(io::Error::other)?;
        let (kind, length) = (attribute.kind(), usize::from(attribute.length()));
        Ok((
            kind,
            attribute.into_inner().get(4..length).unwrap_or_default(),
        ))
    })
}

/// Overwrites the keys in a request: the library keeps them in plain vectors.
fn wipe(request: &mut XfrmMessage) {
    use netlink_packet_xfrm::XfrmAttrs;
    if let XfrmMessage::AddSa(request) | XfrmMessage::UpdateSa(request) = request {
        for attribute in &mut request.nlas {
            match attribute {
                XfrmAttrs::EncryptionAlgAead(algorithm) => algorithm.alg_key.zeroize(),
                XfrmAttrs::EncryptionAlg(algorithm) => algorithm.alg_key.zeroize(),
                XfrmAttrs::AuthenticationAlgTrunc(algorithm) => algorithm.alg_key.zeroize(),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(flags: u16, payload: &[u8]) -> Message<'_> {
        Message {
            kind: NLMSG_ERROR,
            sequence: 1,
            port: 0,
            flags,
            payload,
        }
    }

    #[test]
    fn errors_come_with_their_words() {
        assert!(result(&message(0, &[0; 20])).is_ok());
        let mut payload = (-22_i32).to_ne_bytes().to_vec();
        payload.extend([0; 16]);
        payload.extend(7_u16.to_ne_bytes());
        payload.extend(ATTR_MSG.to_ne_bytes());
        payload.extend(b"no\0\0");
        let text = |flags| result(&message(flags, &payload)).unwrap_err().to_string();
        assert_eq!(text(ACK_TLVS), "no: Invalid argument (os error 22)");
        assert_eq!(text(0), "Invalid argument (os error 22)");
    }

    #[test]
    fn messages_are_told_apart() {
        let mut bytes = Vec::new();
        for kind in [20_u16, 21] {
            bytes.extend(18_u32.to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend([0; 10]);
            bytes.extend([7, 8, 0, 0]);
        }
        let mut kinds = Vec::new();
        let mut each = |message: &Message| {
            assert_eq!(message.payload, [7, 8]);
            kinds.push(message.kind);
            Ok(())
        };
        split(&bytes, &mut each).unwrap();
        assert_eq!(kinds, [20, 21]);
        assert!(split(&bytes[..10], &mut |_| Ok(())).is_err());
    }
}

//! Connections to the key manager.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use culvert_bridge::records::{Hello, Refused};
use culvert_bridge::{Connection, Error, Refusal, Reply, Request};

use crate::os;

/// How long it may take to connect.
const CONNECT: Duration = Duration::from_secs(2);

/// Where the key manager is, and who we are.
pub(crate) struct Client {
    /// Its socket.
    pub(crate) path: PathBuf,
    /// What we say of ourselves.
    pub(crate) hello: Hello,
    /// Who must have started it: root.
    pub(crate) owner: u32,
}

/// Why something was not done.
pub(crate) enum Failure {
    /// There is no session, and nothing was asked.
    Away(Trouble),
    /// It was asked, and whether it was done is not known.
    Unanswered(Trouble),
    /// The key manager says no.
    Refused(Refused),
}

/// What is wrong with the key manager.
pub(crate) struct Trouble {
    pub(crate) text: String,
    /// It is there, and does not move in time.
    pub(crate) hangs: bool,
}

impl From<String> for Trouble {
    fn from(text: String) -> Self {
        Self { text, hangs: false }
    }
}

impl From<Trouble> for String {
    fn from(trouble: Trouble) -> Self {
        trouble.text
    }
}

impl Client {
    /// Connects, and makes sure who is there.
    pub(crate) fn connect(&self) -> Result<Connection, Trouble> {
        let path = self.path.display();
        let connection = os::connect_within(CONNECT, &self.path)
            .map_err(Error::from)
            .and_then(Connection::new)
            .map_err(|error| self.unreachable(&error))?;
        let owner = os::peer(connection.stream())
            .map_err(|error| format!("who listens at {path} is not known: {error}"))?;
        if owner != self.owner {
            return Err(format!(
                "user {owner} listens at {path}, not root: that is not culvert-keymgr, and gets no key"
            )
            .into());
        }
        Ok(connection)
    }

    /// Greets; says who the other one is.
    pub(crate) fn greet(&self, connection: &mut Connection) -> Result<Hello, Trouble> {
        connection
            .greet(&self.hello)
            .map_err(|error| self.unreachable(&error))
    }

    /// Asks one thing on a connection of its own.
    pub(crate) fn ask(&self, request: &Request) -> Result<Reply, Failure> {
        let mut connection = self.connect().map_err(Failure::Away)?;
        self.greet(&mut connection).map_err(Failure::Away)?;
        connection.send(request).map_err(unanswered)?;
        match connection.receive().map_err(unanswered)? {
            Reply::Refused(Refused {
                refusal: Refusal::Away,
                text,
            }) => Err(Failure::Away(text.into())),
            Reply::Refused(refused) => Err(Failure::Refused(refused)),
            reply => Ok(reply),
        }
    }

    /// What to say of an error before anything was asked.
    pub(crate) fn unreachable(&self, error: &Error) -> Trouble {
        let path = self.path.display();
        let text = match error {
            Error::Version(_) => error.to_string(),
            _ => format!("culvert-keymgr is not reachable at {path}: is it running? ({error})"),
        };
        Trouble {
            text,
            hangs: is_timeout(error),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err gives it away")]
fn unanswered(error: Error) -> Failure {
    Failure::Unanswered(Trouble {
        text: format!("culvert-keymgr gave no answer ({error})"),
        hangs: is_timeout(&error),
    })
}

fn is_timeout(error: &Error) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error, Error::Io(error) if matches!(error.kind(), TimedOut | WouldBlock))
}

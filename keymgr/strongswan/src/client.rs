//! Connections to the key manager.

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
    Away(String),
    /// It was asked, and whether it was done is not known.
    Unanswered(String),
    /// The key manager says no.
    Refused(Refused),
}

impl Client {
    /// Connects, and makes sure who is there.
    pub(crate) fn connect(&self) -> Result<Connection, String> {
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
            ));
        }
        Ok(connection)
    }

    /// Greets; says who the other one is.
    pub(crate) fn greet(&self, connection: &mut Connection) -> Result<Hello, String> {
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
            }) => Err(Failure::Away(text)),
            Reply::Refused(refused) => Err(Failure::Refused(refused)),
            reply => Ok(reply),
        }
    }

    /// What to say of an error before anything was asked.
    pub(crate) fn unreachable(&self, error: &Error) -> String {
        let path = self.path.display();
        match error {
            Error::Version(_) => error.to_string(),
            _ => format!("culvert-keymgr is not reachable at {path}: is it running? ({error})"),
        }
    }
}

#[expect(clippy::needless_pass_by_value, reason = "map_err gives it away")]
fn unanswered(error: Error) -> Failure {
    Failure::Unanswered(error.to_string())
}

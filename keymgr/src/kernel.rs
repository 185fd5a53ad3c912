//! The kernel's IPsec (XFRM), which serves what Culvert's datapath cannot: SAs and policies there, their numbers and
//! counters carried over both ways.
//!
//! [`Kernel`] asks, one request at a time; [`listen`] hears. [`KernelSa`] and [`KernelPolicy`] are what is asked for;
//! [`Progress`] is how far an SA is. Everything of ours has a priority that says so ([`priority`]), by which it is known
//! again after a restart.

mod algorithm;
mod events;
mod link;
mod policy;
mod progress;
mod read;
mod sa;
mod window;

use std::fmt::Display;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use culvert_proto::sa::{Direction, Keymat, SaId};
use netlink_packet_xfrm::constants::{
    AF_INET, AF_INET6, IPPROTO_ESP, XFRM_MODE_TRANSPORT, XFRM_MODE_TUNNEL, XFRM_MSG_DELSA,
    XFRM_MSG_NEWPOLICY, XFRM_MSG_NEWSA, XFRMA_SA, XFRMNLGRP_SA,
};
use netlink_packet_xfrm::state::{DelGetMessage, GetDumpMessage, ModifyMessage};
use netlink_packet_xfrm::{
    Address, Alg, AlgAead, AlgAuth, EncapTmpl, Id, UserSaId, UserSaInfo, XFRM_USER_SA_ID_LEN,
    XfrmAttrs, XfrmMessage,
};
use nix::errno::Errno;

pub use self::algorithm::Algorithm;
pub use self::events::{Acquire, KernelEvent, Listener, listen};
pub use self::policy::{Action, KernelPolicy, Sas, Side, Template, Way, priority};
pub use self::progress::{Numbers, Progress, Taken};
pub use self::read::Found;
pub use self::sa::KernelSa;
pub use self::window::Window;

use self::link::{Failure, Link, Message};

/// `XFRM_STATE_AF_UNSPEC`: what is in the tunnel may be of either IP version.
const STATE_AF_UNSPEC: u8 = 32;
/// `XFRM_STATE_ESN`.
const STATE_ESN: u8 = 128;
/// `UDP_ENCAP_ESPINUDP`.
const ESP_IN_UDP: u16 = 2;
/// How often it is tried to replace what packets have left in an SA's place.
const LARVAE: u32 = 5;
/// So long the announcement of a deletion is waited for. It is made before the deletion is answered.
const ANNOUNCEMENT: Duration = Duration::from_millis(200);

/// What the kernel did not do: which SA or policy, what is wrong, and what the kernel says.
#[derive(Debug, thiserror::Error)]
#[error("{what}: {text}")]
pub struct KernelError {
    what: String,
    text: String,
    #[source]
    error: io::Error,
}

impl KernelError {
    /// What the kernel said.
    #[must_use]
    pub fn kind(&self) -> io::ErrorKind {
        self.error.kind()
    }

    fn new(what: impl Display, failure: Failure) -> Self {
        let text = failure.to_string();
        Self {
            what: what.to_string(),
            text,
            error: failure.error,
        }
    }
}

/// Asks the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Kernel {
    requests: Link,
    /// Hears of deletions, while we delete.
    deletions: Link,
}

impl Kernel {
    /// Opens the sockets.
    ///
    /// # Errors
    /// The kernel has no XFRM, or we may not use it.
    pub fn open() -> io::Result<Self> {
        Ok(Self {
            requests: Link::open()?,
            deletions: Link::open()?,
        })
    }

    /// Installs an SA whose numbers, window, counters and age go on from `progress`. To be done before the policy that
    /// names it.
    ///
    /// # Errors
    /// The kernel refuses, or has one of that name.
    pub fn add_sa(&mut self, sa: &KernelSa, progress: &Progress) -> Result<(), KernelError> {
        let mut result = self.ask(XfrmMessage::AddSa(sa_request(sa, progress)));
        for _ in 0..LARVAE {
            // A packet that came while a policy named it and it was not there has left a larva, which is to be replaced.
            match &result {
                Err(failure) if failure.is(Errno::EEXIST) && self.is_larva(&sa.id)? => {
                    result = self.ask(XfrmMessage::UpdateSa(sa_request(sa, progress)));
                }
                // It was gone before.
                Err(failure) if failure.is(Errno::ESRCH) => {
                    result = self.ask(XfrmMessage::AddSa(sa_request(sa, progress)));
                }
                _ => break,
            }
        }
        result.map_err(|failure| {
            let missing = if failure.is(Errno::EPROTONOSUPPORT) {
                Some("the kernel has no ESP".to_owned())
            } else if failure.is(Errno::ENOENT) || failure.is(Errno::ENOSYS) {
                Some(format!("the kernel has no {}", sa.algorithm))
            } else {
                None
            };
            let mut error = KernelError::new(sa, failure);
            if let Some(missing) = missing {
                error.text = format!("{missing}: {}", error.text);
            }
            error
        })
    }

    /// How far an SA is. `None`: there is none.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn read_sa(&mut self, id: &SaId) -> Result<Option<Progress>, KernelError> {
        Ok(self.find(id)?.map(|found| found.progress(id.direction)))
    }

    /// Removes an SA and says how far it was. `None`: there was none; one that has reached its hard lifetime is removed
    /// by the kernel.
    ///
    /// What is said of an outbound SA is exact: no number can be given out behind it. A packet that an inbound SA was just
    /// opening on another CPU may still be delivered, and its number is missing then. So nothing must reach the kernel any
    /// more for some milliseconds before an inbound SA is taken.
    ///
    /// # Errors
    /// The kernel refuses; the SA is there as before.
    pub fn take_sa(&mut self, id: &SaId) -> Result<Option<Taken>, KernelError> {
        // Between deletions nothing is heard, so that no keys lie in the socket's queue.
        let heard = self.deletions.join(XFRMNLGRP_SA);
        let taken = self.take_heard(id, heard.is_ok());
        if heard.is_ok() {
            let _ = self.deletions.leave(XFRMNLGRP_SA);
        }
        let _ = self.deletions.drain();
        taken
    }

    fn take_heard(&mut self, id: &SaId, heard: bool) -> Result<Option<Taken>, KernelError> {
        let heard = heard && self.deletions.drain().is_ok();
        let Some(before) = self.find(id)? else {
            return Ok(None);
        };
        match self.ask(XfrmMessage::DeleteSa(sa_id(id))) {
            Ok(()) => {}
            Err(failure) if failure.is(Errno::ESRCH) => return Ok(None),
            Err(failure) => return Err(KernelError::new(id, failure)),
        }
        let last = heard.then(|| self.last_words(id)).flatten();
        let esn = before.esn();
        let (progress, exact) = match last {
            Some(last) => (last.progress(id.direction), true),
            None => (before.progress(id.direction).with_margin(esn), false),
        };
        Ok(Some(Taken {
            exhausted: progress.exhausted(esn),
            progress,
            exact,
        }))
    }

    /// What the kernel announces of the SA that we have just deleted: it was dead already, so nothing has come after that.
    fn last_words(&mut self, id: &SaId) -> Option<Found> {
        let deadline = Instant::now() + ANNOUNCEMENT;
        let (port, sequence) = (self.requests.port, self.requests.sequence);
        let mut last = None;
        while last.is_none() && self.deletions.wait(deadline).ok()? {
            let result = self.deletions.receive(&mut |message| {
                let ours = message.port == port && message.sequence == sequence;
                if message.kind == XFRM_MSG_DELSA && ours && last.is_none() {
                    last = deleted(message)?.filter(|found| found.id(id.direction) == *id);
                }
                Ok(())
            });
            // What else is in the queue may be it.
            match result {
                Err(error) if !link::overrun(&error) => return None,
                _ => {}
            }
        }
        last
    }

    /// Adds a policy, or replaces the one with the same direction and selector, whoever made it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn set_policy(&mut self, policy: &KernelPolicy) -> Result<(), KernelError> {
        self.ask(policy.set_request())
            .map_err(|failure| KernelError::new(policy, failure))
    }

    /// Removes the policy with this direction and selector; whether there was one.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn delete_policy(&mut self, policy: &KernelPolicy) -> Result<bool, KernelError> {
        match self.ask(policy.delete_request()) {
            Ok(()) => Ok(true),
            Err(failure) if failure.is(Errno::ENOENT) || failure.is(Errno::ESRCH) => Ok(false),
            Err(failure) => Err(KernelError::new(policy, failure)),
        }
    }

    /// All ESP SAs of the kernel, also those of others.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn sas(&mut self) -> Result<Vec<Found>, KernelError> {
        let request = || XfrmMessage::GetDumpSa(GetDumpMessage::default());
        self.requests
            .dump(request, |message, all| {
                if message.kind == XFRM_MSG_NEWSA {
                    all.extend(read::found(message.payload)?);
                }
                Ok(())
            })
            .map_err(|failure| KernelError::new("SAs", failure))
    }

    /// Our policies in the kernel, known by their priorities.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn policies(&mut self) -> Result<Vec<KernelPolicy>, KernelError> {
        self.requests
            .dump(policy::dump_request, |message, all| {
                if message.kind == XFRM_MSG_NEWPOLICY {
                    all.extend(KernelPolicy::read(message.payload)?);
                }
                Ok(())
            })
            .map_err(|failure| KernelError::new("policies", failure))
    }

    /// Whether the kernel has ESP: installs an SA to nobody, and removes it.
    ///
    /// # Errors
    /// Why it has not.
    pub fn probe(&mut self, ipv6: bool) -> Result<(), String> {
        // Where there is no AES-GCM, there may be ESP all the same, or not.
        let [aead, separate] = sa::to_nobody(ipv6)?;
        self.try_sa(&aead).or_else(|_| self.try_sa(&separate))
    }

    fn try_sa(&mut self, sa: &KernelSa) -> Result<(), String> {
        match self.add_sa(sa, &Progress::fresh(Direction::Out, 0)) {
            Ok(()) => {
                let _ = self.ask(XfrmMessage::DeleteSa(sa_id(&sa.id)));
                Ok(())
            }
            // Somebody else is trying.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error.text),
        }
    }

    /// A request that is answered by nothing but that it was done.
    fn ask(&mut self, request: XfrmMessage) -> Result<(), Failure> {
        self.requests.ask(request, |_| Ok(()))
    }

    fn find(&mut self, id: &SaId) -> Result<Option<Found>, KernelError> {
        let mut found = None;
        let result = self.requests.ask(XfrmMessage::GetSa(sa_id(id)), |message| {
            if message.kind == XFRM_MSG_NEWSA {
                found = read::found(message.payload)?;
            }
            Ok(())
        });
        match result {
            Ok(()) => Ok(found),
            Err(failure) if failure.is(Errno::ESRCH) => Ok(None),
            Err(failure) => Err(KernelError::new(id, failure)),
        }
    }

    /// Whether there is something of that name that has no keys.
    fn is_larva(&mut self, id: &SaId) -> Result<bool, KernelError> {
        let (mut there, mut keys) = (false, false);
        self.requests
            .ask(XfrmMessage::GetSa(sa_id(id)), |message| {
                there |= message.kind == XFRM_MSG_NEWSA;
                keys |= there && read::found(message.payload)?.is_some();
                Ok(())
            })
            .map_err(|failure| KernelError::new(id, failure))?;
        Ok(there && !keys)
    }
}

/// What the announcement of a deletion says: the SA's name, then everything of it.
fn deleted(message: &Message) -> io::Result<Option<Found>> {
    let rest = message
        .payload
        .get(XFRM_USER_SA_ID_LEN..)
        .unwrap_or_default();
    for attribute in link::attributes(rest) {
        if let (XFRMA_SA, info) = attribute? {
            return read::of(info, rest);
        }
    }
    Ok(None)
}

fn family(address: IpAddr) -> u16 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn sa_id(id: &SaId) -> DelGetMessage {
    DelGetMessage {
        user_sa_id: UserSaId {
            daddr: Address::from_ip(&id.destination),
            spi: id.spi.get(),
            family: family(id.destination),
            proto: IPPROTO_ESP,
        },
        nlas: Vec::new(),
    }
}

/// What installs an SA. Its keys are overwritten when it was sent.
fn sa_request(sa: &KernelSa, progress: &Progress) -> ModifyMessage {
    let mut flags = 0;
    if sa.tunnel {
        flags |= STATE_AF_UNSPEC;
    }
    if sa.esn {
        flags |= STATE_ESN;
    }
    let user_sa_info = UserSaInfo {
        id: Id {
            daddr: Address::from_ip(&sa.id.destination),
            spi: sa.id.spi.get(),
            proto: IPPROTO_ESP,
        },
        saddr: Address::from_ip(&sa.source),
        lifetime_cfg: sa::limits(&sa.lifetime),
        reqid: sa.reqid,
        family: family(sa.id.destination),
        mode: if sa.tunnel {
            XFRM_MODE_TUNNEL
        } else {
            XFRM_MODE_TRANSPORT
        },
        flags,
        ..UserSaInfo::default()
    };
    let mut nlas = algorithms(sa);
    nlas.push(XfrmAttrs::ReplayStateEsn(progress.replay()));
    nlas.push(XfrmAttrs::LifetimeBytes(progress.lifetime()));
    if let Some((source, destination)) = sa.encapsulation {
        nlas.push(XfrmAttrs::EncapsulationTemplate(EncapTmpl {
            encap_type: ESP_IN_UDP,
            encap_sport: source,
            encap_dport: destination,
            encap_oa: Address::default(),
        }));
    }
    // The kernel refuses it in transport mode.
    if sa.tfc != 0 && sa.tunnel {
        nlas.push(XfrmAttrs::TfcPadding(sa.tfc));
    }
    ModifyMessage { user_sa_info, nlas }
}

fn algorithms(sa: &KernelSa) -> Vec<XfrmAttrs> {
    fn named<const N: usize>(name: &str) -> [u8; N] {
        let mut field = [0; N];
        // A zero ends it.
        for (to, from) in field[..N - 1].iter_mut().zip(name.bytes()) {
            *to = from;
        }
        field
    }
    let bits = |key: &Keymat| u32::try_from(key.bytes().len() * 8).unwrap_or(u32::MAX);
    match &sa.algorithm {
        Algorithm::Aead { name, icv_bits } => vec![XfrmAttrs::EncryptionAlgAead(AlgAead {
            alg_name: named(name),
            alg_key_len: bits(&sa.key),
            alg_icv_len: *icv_bits,
            alg_key: sa.key.bytes().to_vec(),
        })],
        Algorithm::Separate {
            encryption,
            integrity,
            icv_bits,
        } => vec![
            XfrmAttrs::EncryptionAlg(Alg {
                alg_name: named(encryption),
                alg_key_len: bits(&sa.key),
                alg_key: sa.key.bytes().to_vec(),
            }),
            XfrmAttrs::AuthenticationAlgTrunc(AlgAuth {
                alg_name: named(integrity),
                alg_key_len: bits(&sa.integrity_key),
                alg_trunc_len: *icv_bits,
                alg_key: sa.integrity_key.bytes().to_vec(),
            }),
        ],
    }
}

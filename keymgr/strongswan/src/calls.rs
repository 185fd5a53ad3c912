//! What charon asks, asked of the key manager.
//!
//! What is for an SA waits a little for a session, as the key manager may just be starting, and fails then. A policy
//! is noted in any case: it goes with the next session.

use std::net::IpAddr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use culvert_bridge::records::{PolicyName, SaUpdate, Usage};
use culvert_bridge::{Policy, Refusal, Reply, Request, Sa, SaName};

use crate::client::Failure;
use crate::mirror::Removed;
use crate::session::{Session, Shared};

/// How long a call waits for a session.
const PATIENCE: Duration = Duration::from_secs(1);

/// How often it looks, as the session's end may not have been seen yet.
const LOOK: Duration = Duration::from_millis(50);

/// What charon is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    Success,
    Failed,
    NotSupported,
    NotFound,
}

/// What comes back.
pub(crate) type Answer = Result<Reply, Failure>;

impl Session {
    /// An SPI for an inbound SA.
    pub(crate) fn allocate_spi(&self, destination: IpAddr) -> Result<u32, Status> {
        let request = Request::AllocateSpi(destination);
        match self.shared.patiently(|| self.shared.ask(&request)) {
            Ok(Reply::Spi(spi)) => Ok(spi),
            other => Err(self.tell(other, "no SPI is allocated")),
        }
    }

    /// Installs an SA.
    pub(crate) fn add_sa(&self, sa: Sa) -> Status {
        let (name, inbound) = (sa.name.clone(), sa.inbound);
        let request = Request::AddSa(Box::new(sa));
        let answer = self.shared.patiently(|| {
            let answer = self.shared.ask(&request);
            // It may be there if nobody answers, too: then it is for charon to delete.
            if matches!(answer, Ok(_) | Err(Failure::Unanswered(_))) {
                self.shared.mirror().add_sa(name.clone(), inbound);
            }
            answer
        });
        self.tell(answer, &format!("{name} is not installed"))
    }

    /// Gives an SA other ends.
    pub(crate) fn update_sa(&self, update: SaUpdate) -> Status {
        let name = update.name.clone();
        let moved = SaName {
            spi: name.spi,
            destination: update.destination.ip(),
        };
        let request = Request::UpdateSa(update);
        let answer = self.shared.patiently(|| {
            let answer = self.shared.ask(&request);
            if answer.is_ok() {
                self.shared.mirror().move_sa(&name, moved.clone());
            }
            answer
        });
        self.tell(answer, &format!("{name} is not updated"))
    }

    /// How much an SA was used.
    pub(crate) fn query_sa(&self, name: SaName) -> Result<Usage, Status> {
        let what = format!("the use of {name} is not known");
        self.usage(&Request::QuerySa(name), &what)
    }

    /// Removes an SA. It may be one that was never more than an SPI.
    pub(crate) fn delete_sa(&self, name: &SaName) -> Status {
        let _gate = self.shared.shared_gate();
        if !self.shared.mirror().delete_sa(name) {
            return Status::Success;
        }
        self.tell_later(
            self.shared.delete_sa(name),
            &format!("{name} is not removed"),
            "it is removed later",
        )
    }

    /// Removes all SAs.
    pub(crate) fn flush_sas(&self) -> Status {
        let _gate = self.shared.shared_gate();
        self.shared.mirror().delete_sas();
        let answer = self.shared.ask(&Request::FlushSas);
        if answer.is_ok() {
            self.shared.mirror().forget_sas();
        }
        self.tell_later(answer, "the SAs are not removed", "they are removed later")
    }

    /// Installs a policy.
    pub(crate) fn add_policy(&self, policy: &Policy) -> Status {
        let _gate = self.shared.shared_gate();
        if !self.shared.mirror().add_policy(policy) {
            return Status::Success;
        }
        let answer = self
            .shared
            .ask(&Request::AddPolicy(Box::new(policy.clone())));
        if matches!(answer, Err(Failure::Refused(_))) {
            self.shared.mirror().remove_policy(policy);
        }
        let what = format!("{} is not installed", policy.name);
        self.tell_later(answer, &what, "it is noted, and handed over later")
    }

    /// When the SAs of a policy were used last.
    pub(crate) fn query_policy(&self, name: PolicyName) -> Result<Usage, Status> {
        let what = format!("the use of {name} is not known");
        self.usage(&Request::QueryPolicy(name), &what)
    }

    /// Removes a policy.
    pub(crate) fn delete_policy(&self, policy: Policy) -> Status {
        let _gate = self.shared.shared_gate();
        match self.shared.mirror().remove_policy(&policy) {
            // charon also deletes what it has not come to install.
            Removed::Unknown => return Status::NotFound,
            Removed::StillUsed => return Status::Success,
            Removed::Gone => {}
        }
        self.tell_end();
        let what = format!("{} is not removed", policy.name);
        let answer = self.shared.ask(&Request::DeletePolicy(Box::new(policy)));
        self.tell_later(answer, &what, "it is removed later")
    }

    /// Removes all policies.
    pub(crate) fn flush_policies(&self) -> Status {
        let _gate = self.shared.shared_gate();
        self.shared.mirror().flush_policies();
        self.tell_end();
        let answer = self.shared.ask(&Request::FlushPolicies);
        self.tell_later(
            answer,
            "the policies are not removed",
            "they are removed later",
        )
    }

    /// Tells the key manager, before the first policy goes with charon's end, that nobody wants it so.
    fn tell_end(&self) {
        if thread::current().id() != self.main || self.ending.load(Ordering::Relaxed) {
            return;
        }
        let answer = self.shared.ask(&Request::Ending);
        if matches!(answer, Err(Failure::Away(_))) {
            // It is told of no removal either, and of the end before the next one.
            return;
        }
        let told = !matches!(answer, Err(Failure::Unanswered(_)));
        self.ending.store(told, Ordering::Relaxed);
        self.tell(answer, "culvert-keymgr does not know that charon ends");
    }

    /// Writes that something could not even be asked.
    pub(crate) fn refuse(&self, text: &str) -> Status {
        self.shared.charon.log(text);
        Status::Failed
    }

    fn usage(&self, request: &Request, what: &str) -> Result<Usage, Status> {
        let _gate = self.shared.shared_gate();
        match self.shared.ask(request) {
            Ok(Reply::Usage(usage)) => Ok(usage),
            other => Err(self.tell(other, what)),
        }
    }

    /// What charon is told of an answer; its log is told what was not done and why.
    fn tell(&self, answer: Answer, what: &str) -> Status {
        let (text, status) = match answer {
            Ok(Reply::Done) => return Status::Success,
            Ok(_) => (
                "the answer of culvert-keymgr is not to the question".to_owned(),
                Status::Failed,
            ),
            Err(Failure::Away(trouble) | Failure::Unanswered(trouble)) => {
                (trouble.text, Status::Failed)
            }
            Err(Failure::Refused(refused)) => {
                let status = match refused.refusal {
                    Refusal::Failed | Refusal::Away => Status::Failed,
                    Refusal::NotSupported => Status::NotSupported,
                    Refusal::NotFound => Status::NotFound,
                };
                (refused.text, status)
            }
        };
        self.shared.charon.log(&format!("{what}: {text}"));
        status
    }

    /// The same, for what the next session makes up for.
    fn tell_later(&self, answer: Answer, what: &str, later: &str) -> Status {
        let why = match answer {
            // Why it is away has been logged once.
            Err(Failure::Away(_)) => "culvert-keymgr is away".to_owned(),
            Err(Failure::Unanswered(trouble)) => trouble.text,
            other => return self.tell(other, what),
        };
        self.shared
            .charon
            .log(&format!("{what} yet: {why}; {later}"));
        Status::Success
    }
}

impl Shared {
    fn shared_gate(&self) -> impl Drop {
        self.gate.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has an SA deleted that the mirror holds as such.
    pub(crate) fn delete_sa(&self, name: &SaName) -> Answer {
        let answer = self.ask(&Request::DeleteSa(name.clone()));
        if matches!(answer, Ok(_) | Err(Failure::Refused(_))) {
            self.mirror().forget_sa(name);
        }
        answer
    }

    fn ask(&self, request: &Request) -> Answer {
        let session = self.up().map_err(|text| Failure::Away(text.into()))?;
        let answer = self.client.ask(request);
        if let Err(Failure::Away(trouble) | Failure::Unanswered(trouble)) = &answer
            && trouble.hangs
        {
            self.give_up(session, &trouble.text);
        }
        answer
    }

    /// Tries again for a while if the key manager is away. What it may have got is not sent again: two that use one
    /// key are the end of that key.
    fn patiently(&self, attempt: impl Fn() -> Answer) -> Answer {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let gate = self.shared_gate();
            let answer = attempt();
            drop(gate);
            if !matches!(answer, Err(Failure::Away(_))) || Instant::now() >= deadline {
                return answer;
            }
            self.wait(LOOK);
        }
    }
}

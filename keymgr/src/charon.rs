//! The SAs and policies of strongSwan's charon, as its plugin hands them over.
//!
//! [`sa`] and [`policy`] make charon's records ours, [`leaving`] keeps what is needed for a moment more, [`guard`]
//! remembers whom to block, [`usage`] when SAs were used, [`events`] is what charon hears, and [`listen`] the socket. What is here changes under one lock, and is made what is wanted as a whole
//! ([`crate::manager`]): a policy and its SAs change together.
//!
//! A charon that ends or crashes leaves its SAs and policies in force, as with the kernel: another one that
//! comes takes their place. A key manager that starts again has lost them all, and says so by another instance
//! number, upon which the plugin lets charon negotiate anew.

mod events;
mod guard;
mod installed;
mod leaving;
pub(crate) mod listen;
pub(crate) mod policy;
pub(crate) mod sa;
mod spd;
mod usage;

use std::collections::btree_map::Entry::Vacant;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use culvert_bridge::records::SaUpdate;
use culvert_bridge::{Event, Hello, Policy, Sa, SaName};
use culvert_proto::policy::{Action, Geneve, Mode, Place, PolicySpec, Selector};
use culvert_proto::sa::{Direction, SaId, Spi, StateRef};
use culvert_proto::status::{CharonStatus, TunnelStatus};
use ipnet::IpNet;
use log::{info, warn};

use self::guard::Guard;
use self::installed::{Installed, Served};
use self::leaving::Entry;
use crate::goal::{Goal, KernelOnly};
use crate::kernel::{KernelPolicy, KernelSa};
use crate::spi;
use crate::state::State;
use crate::wanted::Wanted;

/// `ipsec_mode_t`.
const TRANSPORT: u32 = 1;
/// How long an SPI waits for its SA, as in the kernel (`net.core.xfrm_acq_expires`).
const RESERVED: Duration = Duration::from_secs(165);
/// Refusals that the status tells of.
const REFUSALS: usize = 32;

/// Something that Culvert does not serve, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct NotServed(String);

impl NotServed {
    fn new(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// The charon that is, or was last, connected.
#[derive(Debug)]
struct Session {
    hello: Hello,
    /// Which connection it is.
    number: u64,
    /// None once it has ended.
    events: Option<Sender<Event>>,
    /// It has said that it ends.
    ending: bool,
}

/// All that charon has installed.
#[derive(Debug)]
pub(crate) struct Charon {
    session: Option<Session>,
    sessions: u64,
    sas: BTreeMap<SaId, Installed>,
    /// In the order of their installation.
    policies: Vec<Entry>,
    guard: Guard,
    /// Policies for what is not Geneve, which the kernel serves, as charon has them.
    others: Vec<(Policy, KernelPolicy)>,
    /// Whether the kernel can stand in, or why not.
    pub(crate) kernel: Result<(), String>,
    /// SPIs for inbound SAs that are to come.
    reserved: HashMap<SaId, Instant>,
    /// When charon was asked for SAs, by reqid.
    asked: HashMap<u32, Instant>,
    /// What was refused, by the peer that it was for.
    refused: BTreeMap<String, String>,
}

impl Charon {
    /// Nothing yet, but whom to hold, from the file in `run`.
    pub(crate) fn open(run: &Path) -> io::Result<Self> {
        Ok(Self {
            session: None,
            sessions: 0,
            sas: BTreeMap::new(),
            policies: Vec::new(),
            guard: Guard::open(run.join(crate::leftovers::HELD))?,
            others: Vec::new(),
            kernel: Err("it was not asked yet".to_owned()),
            reserved: HashMap::new(),
            asked: HashMap::new(),
            refused: BTreeMap::new(),
        })
    }

    /// Begins a session with the policies that the charon has. One that was not here before begins with no SAs.
    fn begin(
        &mut self,
        hello: Hello,
        policies: Vec<Policy>,
        state: &mut State,
        file: &Wanted,
    ) -> Result<(u64, Receiver<Event>), String> {
        let known = self.session.as_ref();
        let same = known.is_some_and(|session| session.hello.instance == hello.instance);
        if let Some(session) = known.filter(|session| !same && session.events.is_some()) {
            return Err(format!(
                "{} is connected already; one charon a host is served",
                session.hello.program
            ));
        }
        if !same {
            self.flush_sas(state);
            self.refused.clear();
        }
        self.policies.clear();
        self.others.clear();
        for policy in policies {
            let remote = policy::remote(&policy);
            // Why, is in the log and in the status. Charon takes it that it is protected: nothing goes in clear.
            if self.add_policy(policy, file).is_err()
                && let Some(remote) = remote
            {
                self.guard.hold(remote);
            }
        }
        self.guard(false);
        let (sender, events) = channel();
        for sa in self.sas.values() {
            if let Some(hard) = sa.reached {
                let _ = sender.send(events::expired(sa, hard));
            }
        }
        info!("{} has come", hello.program);
        self.sessions += 1;
        self.session = Some(Session {
            hello,
            number: self.sessions,
            events: Some(sender),
            ending: false,
        });
        Ok((self.sessions, events))
    }

    /// The connection of a session has ended.
    fn end(&mut self, number: u64) {
        if let Some(session) = self.session.as_mut()
            && session.number == number
        {
            session.events = None;
            self.guard.hold_all();
            warn!(
                "{} is gone; what it has installed stays until it comes back",
                session.hello.program
            );
        }
    }

    /// It has said that it ends: what it takes out from now on is held.
    fn ending(&mut self) {
        if let Some(session) = self.session.as_mut() {
            session.ending = true;
        }
        self.guard.hold_all();
    }

    /// Whether a call is that of the charon that has the session.
    pub(crate) fn is_here(&self, hello: &Hello) -> bool {
        let session = self.session.as_ref();
        session.is_some_and(|session| {
            session.events.is_some() && session.hello.instance == hello.instance
        })
    }

    /// An SPI for an inbound SA to `destination`.
    fn allocate_spi(&mut self, destination: IpAddr, file: &Wanted) -> Option<Spi> {
        let now = Instant::now();
        self.reserved.retain(|_, since| now - *since < RESERVED);
        let taken = |spi| {
            let id = SaId {
                direction: Direction::In,
                spi,
                destination,
            };
            self.reserved.contains_key(&id)
                || self.sas.contains_key(&id)
                || file.sas.contains_key(&id)
        };
        let spi = spi::allocate(destination, taken)?;
        let id = SaId {
            direction: Direction::In,
            spi,
            destination,
        };
        self.reserved.insert(id, now);
        Some(spi)
    }

    fn add_sa(&mut self, sa: &Sa, state: &mut State, file: &Wanted) -> Result<SaId, NotServed> {
        let peer = if sa.inbound {
            sa.source.ip()
        } else {
            sa.name.destination
        };
        let result = self.try_add_sa(sa, state, file);
        if let Err(NotServed(text)) = &result {
            self.refuse(&peer.to_string(), &format!("{}: {text}", sa.name));
        } else {
            self.refused.remove(&peer.to_string());
        }
        result
    }

    fn try_add_sa(&mut self, sa: &Sa, state: &mut State, file: &Wanted) -> Result<SaId, NotServed> {
        let mut served = self.accept(sa)?;
        let id = match &served {
            Served::Culvert(spec) => spec.id,
            Served::Kernel(only) => only.sa.id,
        };
        if self.sas.contains_key(&id) || file.sas.contains_key(&id) {
            return Err(NotServed::new("there is one of this name already"));
        }
        match &mut served {
            Served::Culvert(spec) => state.claim_fresh(spec),
            Served::Kernel(only) => state.claim_for_kernel(only),
        }
        .map_err(|error| NotServed(format!("{error:#}")))?;
        self.reserved.remove(&id);
        let installed = Installed {
            served,
            reqid: sa.reqid,
            reached: None,
            packets: 0,
            last_use: 0,
            leaves: None,
        };
        self.sas.insert(id, installed);
        Ok(id)
    }

    /// Who can serve an SA: Culvert, or else the kernel.
    fn accept(&self, sa: &Sa) -> Result<Served, NotServed> {
        let NotServed(why) = match sa::accept(sa) {
            Ok(spec) => return Ok(Served::Culvert(spec)),
            Err(why) => why,
        };
        let unable =
            |problem: &str| NotServed(format!("{why}; and the kernel cannot stand in: {problem}"));
        self.kernel.clone().map_err(|problem| unable(&problem))?;
        let kernel_sa = KernelSa::of_charon(sa).map_err(|problem| unable(&problem))?;
        let state = StateRef {
            offset: 0,
            words: 0,
        };
        Ok(Served::Kernel(KernelOnly {
            sa: kernel_sa,
            state,
            why,
        }))
    }

    /// Notes what was refused, for the log and the status.
    fn refuse(&mut self, what: &str, text: &str) {
        warn!("strongSwan: {text}");
        if self.refused.len() == REFUSALS && !self.refused.contains_key(what) {
            self.refused.pop_first();
        }
        self.refused.insert(what.to_owned(), text.to_owned());
    }

    pub(crate) fn find(&self, name: &SaName) -> Option<SaId> {
        let spi = Spi::new(name.spi).ok()?;
        [Direction::In, Direction::Out]
            .map(|direction| SaId {
                direction,
                spi,
                destination: name.destination,
            })
            .into_iter()
            .find(|id| self.sas.get(id).is_some_and(|sa| sa.leaves.is_none()))
    }

    /// Gives an SA other ends. Its key stays, and so do its numbers.
    fn update_sa(&mut self, update: &SaUpdate, file: &Wanted) -> Option<()> {
        let before = self.find(&update.name)?;
        let (source, destination) = (update.source.ip(), update.destination.ip());
        let id = SaId {
            destination,
            ..before
        };
        let taken = self.sas.contains_key(&id) || file.sas.contains_key(&id);
        if (id != before && taken) || source.is_ipv4() != destination.is_ipv4() {
            return None;
        }
        let mut sa = self.sas.remove(&before)?;
        let encapsulation = sa::encapsulation(
            update.encapsulated,
            update.source.port(),
            update.destination.port(),
        );
        sa.move_to(source, destination, encapsulation);
        if update.reqid != 0 {
            sa.reqid = update.reqid;
        }
        self.sas.insert(id, sa);
        Some(())
    }

    /// Removes an SA, or gives back an SPI that was to be one's.
    fn delete_sa(&mut self, name: &SaName, state: &mut State) -> Option<()> {
        let Some(id) = self.find(name) else {
            let id = SaId {
                direction: Direction::In,
                spi: Spi::new(name.spi).ok()?,
                destination: name.destination,
            };
            return self.reserved.remove(&id).map(drop);
        };
        if !self.lingers(&id) {
            let sa = self.sas.remove(&id)?;
            state.retire(sa.fingerprint());
        }
        Some(())
    }

    fn flush_sas(&mut self, state: &mut State) {
        for sa in std::mem::take(&mut self.sas).into_values() {
            state.retire(sa.fingerprint());
        }
    }

    /// Adds what charon wants to `goal`, which has what the file wants, and says where it all comes from.
    pub(crate) fn add_to(&self, goal: &mut Goal) -> Vec<TunnelStatus> {
        let mut tunnels: Vec<TunnelStatus> = goal
            .wanted
            .policies
            .keys()
            .map(|selector| tunnel(selector.clone(), "file"))
            .collect();
        for (id, sa) in &self.sas {
            goal.reqids.insert(*id, sa.reqid);
            match &sa.served {
                Served::Culvert(spec) => {
                    goal.wanted.sas.insert(*id, spec.clone());
                }
                Served::Kernel(only) => {
                    goal.kernel_only.insert(*id, only.clone());
                }
            }
        }
        goal.others
            .extend(self.others.iter().map(|(_, policy)| *policy));
        let policies = self.policies.iter();
        let policies = policies.map(|entry| (&entry.selector, &entry.policy));
        for composed in policy::compose(policies, &self.sas) {
            // What the file has counts.
            let selector = composed.spec.selector.clone();
            if let Vacant(place) = goal.wanted.policies.entry(selector.clone()) {
                place.insert(composed.spec);
                tunnels.push(composed.tunnel);
                goal.hows.entry(selector).or_default().trap = composed.trap;
            }
        }
        for net in self.guard.held() {
            let selector = everything_with(net);
            tunnels.push(tunnel(selector.clone(), "held"));
            let held = PolicySpec {
                selector: selector.clone(),
                // Whatever the file says of it comes first.
                order: u32::MAX,
                action: Action::Protect {
                    outbound: None,
                    inbound: Vec::new(),
                },
            };
            goal.wanted.policies.entry(selector).or_insert(held);
        }
        tunnels
    }

    /// What SAs of it clash with those that the file is to have. Of policies, the file's count.
    pub(crate) fn clashes(&self, file: &crate::config::Config) -> Vec<String> {
        let sas = file.sas.iter().map(|sa| sa.id);
        let sas = sas.filter(|id| self.sas.contains_key(id));
        sas.map(|id| format!("{id}: strongSwan has one of this name; use another SPI"))
            .collect()
    }

    /// Some times a second: when SAs are used, what is made anew, and what is let go. Whether the latter changes
    /// anything.
    pub(crate) fn tick(&mut self, state: &mut State) -> bool {
        for sa in self.sas.values_mut() {
            usage::look(sa, state);
        }
        self.renew(state);
        let now = Instant::now();
        let gone = self.let_go(now, state);
        if gone {
            self.guard(true);
        }
        self.guard.expire(now) || gone
    }

    /// Lets go of peers that are held.
    pub(crate) fn release(&mut self, which: Option<IpNet>) -> Vec<IpNet> {
        self.guard.release(which)
    }

    /// Peers that are held.
    pub(crate) fn held(&self) -> Vec<IpNet> {
        self.guard.held().collect()
    }

    /// What was refused.
    pub(crate) fn refused(&self) -> &BTreeMap<String, String> {
        &self.refused
    }

    /// Policies that are the kernel's, as people read them.
    pub(crate) fn others(&self) -> Vec<String> {
        let others = self.others.iter();
        others.map(|(policy, _)| policy.name.to_string()).collect()
    }

    /// Who it is.
    pub(crate) fn status(&self) -> Option<CharonStatus> {
        let session = self.session.as_ref()?;
        Some(CharonStatus {
            program: session.hello.program.clone(),
            connected: session.events.is_some(),
            sas: self.sas.len(),
            policies: self.policies.len(),
        })
    }
}

fn tunnel(selector: Selector, source: &str) -> TunnelStatus {
    TunnelStatus {
        selector,
        source: source.to_owned(),
        ike_peer: None,
        reqid: None,
        trap: false,
        mode: Mode::default(),
        place: Place::Culvert,
        why: None,
    }
}

fn everything_with(remote: IpNet) -> Selector {
    let local = match remote {
        IpNet::V4(_) => IpNet::V4(ipnet::Ipv4Net::default()),
        IpNet::V6(_) => IpNet::V6(ipnet::Ipv6Net::default()),
    };
    Selector {
        local,
        remote,
        geneve: Geneve::Either,
        vnis: Vec::new(),
    }
}

#[cfg(test)]
pub(crate) mod tests;

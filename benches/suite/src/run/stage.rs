//! Two hypervisors, each with an [`agent`](crate::agent): in namespaces with a wire that is watched, or two machines.

use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use culvert_tests::lab::{Lab, Plan, WIRE};
use culvert_tests::record::OnWire;
use culvert_tests::wire;

use crate::agent::load::{Done, Load};
use crate::agent::packets::Flood;
use crate::agent::{Hello, Reply, Request, Setup};
use culvert_tests::record::Latency;

/// Two machines.
#[derive(Clone, Debug)]
pub struct Remote {
    /// The other one, as ssh knows it.
    pub host: String,
    /// What to call in the place of `ssh`, as words.
    pub ssh: Vec<String>,
    /// Our NIC.
    pub wire: String,
    /// The other one's.
    pub remote_wire: String,
    /// Where `culvert-bench` is on the other one.
    pub program: String,
}

/// MTU of the wire in namespaces: as much more than the usual 1500 as an underlay for tunnels has.
pub const WIRE_MTU: u32 = 1600;
/// What Geneve and ESP may take of it, over IPv6 too: 70 for Geneve's headers and 30 for ESP's with as much padding, rounded.
pub const OVERHEAD: u32 = 100;

/// How long an agent may take to clean up, at most.
const PATIENCE: Duration = Duration::from_secs(30);

/// Both ends, fresh. All that they have made goes when this is dropped.
pub struct Stage {
    agents: [Agent; 2],
    lab: Option<Lab>,
    /// Names of their NICs.
    pub wires: [String; 2],
}

impl Stage {
    /// Two namespaces of this machine; or this one and another. The wire between namespaces is a pair of veths, or if it is to be
    /// watched, has a bridge in its middle.
    ///
    /// # Errors
    /// The machine lacks something, or the other one cannot be reached.
    pub fn new(remote: Option<&Remote>, queues: u32, watched: bool) -> Result<Self> {
        let own = std::env::current_exe()?;
        let Some(remote) = remote else {
            let lab = Lab::new(Plan {
                tunnel: false,
                mtu: WIRE_MTU,
                queues,
                watched,
                ..Plan::default()
            })?;
            let agent = |number: usize| {
                let namespace = &lab.sides[number].namespace;
                Agent::start(namespace.command(&own), ["a", "b"][number])
            };
            return Ok(Self {
                agents: [agent(0)?, agent(1)?],
                wires: [WIRE; 2].map(str::to_owned),
                lab: Some(lab),
            });
        };
        let (program, options) = remote.ssh.split_first().context("no ssh")?;
        let mut ssh = Command::new(program);
        ssh.args(options).args([&remote.host, &remote.program]);
        Ok(Self {
            agents: [
                Agent::start(Command::new(own), "here")?,
                Agent::start(ssh, &remote.host)?,
            ],
            wires: [remote.wire.clone(), remote.remote_wire.clone()],
            lab: None,
        })
    }

    /// What the two machines are.
    ///
    /// # Errors
    /// One of them does not answer.
    pub fn hello(&mut self) -> Result<[Hello; 2]> {
        let wires = self.wires.clone();
        let mut hello = |number: usize| {
            let wire = wires[number].clone();
            match self.agents[number].ask(&Request::Hello { wire })? {
                Reply::Hello(hello) => Ok(*hello),
                other => bail!("unexpected answer {other:?}"),
            }
        };
        Ok([hello(0)?, hello(1)?])
    }

    /// The underlay addresses: two that can be of one network.
    ///
    /// # Errors
    /// There are none of one family.
    pub fn outer(hello: &[Hello; 2]) -> Result<[IpAddr; 2]> {
        let of = |number: usize, v4: bool| {
            let mut addresses = hello[number].addresses.iter();
            addresses.find(|address| address.is_ipv4() == v4).copied()
        };
        [true, false]
            .into_iter()
            .find_map(|v4| Some([of(0, v4)?, of(1, v4)?]))
            .context("the two NICs have no addresses of one family")
    }

    /// Sets both up, and waits until both are ready.
    ///
    /// # Errors
    /// One of them cannot.
    pub fn set_up(&mut self, setup: &Setup) -> Result<()> {
        let there = std::thread::available_parallelism()?.get();
        for number in 0..2 {
            let setup = Setup {
                number,
                wire: self.wires[number].clone(),
                // Each side has cores of its own, as long as there are enough; on two machines there are.
                cores: match &self.lab {
                    Some(_) => setup
                        .cores
                        .iter()
                        .map(|core| (core + number) % there)
                        .collect(),
                    None => setup.cores.clone(),
                },
                ..setup.clone()
            };
            self.done(number, &Request::Setup(Box::new(setup)))?;
        }
        // The second is asked first: the first one may begin to talk to it.
        self.done(1, &Request::Ready)?;
        self.done(0, &Request::Ready)
    }

    /// Asks one for something that has no answer but that it is done.
    ///
    /// # Errors
    /// It fails.
    pub fn done(&mut self, number: usize, request: &Request) -> Result<()> {
        match self.agents[number].ask(request)? {
            Reply::Done => Ok(()),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Has the first one send.
    ///
    /// # Errors
    /// It cannot.
    pub fn load(
        &mut self,
        load: Load,
        seconds: u32,
        probe: u32,
    ) -> Result<(Done, Option<Latency>)> {
        let request = Request::Load {
            load,
            to: Setup::inner(1),
            seconds,
            probe,
        };
        match self.agents[0].ask(&request)? {
            Reply::Loaded(done, latency) => Ok((done, latency)),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// Has the first one send packets; how many.
    ///
    /// # Errors
    /// It cannot.
    pub fn flood(&mut self, flood: Flood) -> Result<u64> {
        match self.agents[0].ask(&Request::Flood(flood))? {
            Reply::Sent(count) => Ok(count),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// What one has used up.
    ///
    /// # Errors
    /// It does not say.
    pub fn usage(&mut self, number: usize) -> Result<crate::agent::Usage> {
        match self.agents[number].ask(&Request::Usage)? {
            Reply::Usage(usage) => Ok(*usage),
            other => bail!("unexpected answer {other:?}"),
        }
    }

    /// What crossed the wire since the last time, if somebody counts there.
    ///
    /// # Errors
    /// nftables does not say.
    pub fn counted(&self) -> Result<Option<OnWire>> {
        let Some(lab) = self.lab.as_ref().filter(|lab| lab.plan().watched) else {
            return Ok(None);
        };
        let counts = wire::take_counts(&lab.underlay)?;
        Ok(Some(OnWire {
            esp: counts.esp.packets,
            geneve: counts.plaintext_geneve.packets,
            other: counts.other.packets,
        }))
    }

    /// Whether both ends are on one machine.
    #[must_use]
    pub fn one_machine(&self) -> bool {
        self.lab.is_some()
    }
}

/// An agent's process, here or behind ssh. It cleans up when its input ends.
struct Agent {
    name: String,
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Agent {
    fn start(mut command: Command, name: &str) -> Result<Self> {
        let mut process = command
            .arg("agent")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start the agent of {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            input: process.stdin.take(),
            output: BufReader::new(process.stdout.take().context("no output")?),
            process,
        })
    }

    fn ask(&mut self, request: &Request) -> Result<Reply> {
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        let gone = || format!("the agent of {} has ended", self.name);
        let input = self.input.as_mut().with_context(gone)?;
        input.write_all(line.as_bytes()).with_context(gone)?;
        let mut answer = String::new();
        self.output.read_line(&mut answer)?;
        ensure!(!answer.is_empty(), gone());
        match serde_json::from_str(&answer).context("not understood")? {
            Reply::Failed(why) => bail!("{}: {why}", self.name),
            reply => Ok(reply),
        }
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.input.take());
        let end = Instant::now() + PATIENCE;
        while matches!(self.process.try_wait(), Ok(None)) {
            if Instant::now() > end {
                let _ = self.process.kill();
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

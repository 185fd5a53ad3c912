//! One hypervisor of a measurement: a process in its namespace, or on its machine behind ssh, that does what lines of JSON
//! on its standard input ask for, and answers on its standard output. When its input ends, it takes away all that it made.

mod charon;
mod culvert;
mod kernel;
pub mod load;
pub mod packets;
mod probe;
mod tunnel;
mod usage;
mod wireguard;

use std::io::{BufRead, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use culvert_tests::netns::Home;
use culvert_tests::record::{Host, Latency, Wire};
use serde::{Deserialize, Serialize};

use crate::way::Way;
use load::{Done, Load};
use packets::{Flood, Sink};
pub use usage::Usage;

/// What an agent is asked for.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// What machine it is, and what its NIC `wire` is.
    Hello {
        /// The underlay NIC.
        wire: String,
    },
    /// To make its end of the tunnel, protected.
    Setup(Box<Setup>),
    /// To wait until it is protected; the second side is set up by then.
    Ready,
    /// To be the server of one iperf3 client.
    Serve {
        /// Where.
        address: IpAddr,
    },
    /// To send, to where a server is, with probes beside it.
    Load {
        /// What.
        load: Load,
        /// To where.
        to: IpAddr,
        /// For how long.
        seconds: u32,
        /// How often to probe, in microseconds; 0: never.
        probe: u32,
    },
    /// To count Geneve packets that arrive.
    Sink,
    /// To send Geneve packets.
    Flood(Flood),
    /// What it has used up.
    Usage,
}

/// What it answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Reply {
    /// It is done.
    Done,
    /// Itself.
    Hello(Box<Hello>),
    /// What came of a load.
    Loaded(Done, Option<Latency>),
    /// Packets sent.
    Sent(u64),
    /// What it has used up.
    Usage(Box<Usage>),
    /// It failed, for that reason.
    Failed(String),
}

/// A machine.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Hello {
    /// What it is.
    pub host: Host,
    /// Its NIC.
    pub wire: Wire,
    /// Addresses of the NIC.
    pub addresses: Vec<IpAddr>,
    /// What it cannot do, and why.
    pub lacks: Vec<(Way, String)>,
}

/// One end of a tunnel.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Setup {
    /// Which: 0 or 1.
    pub number: usize,
    /// The underlay NIC.
    pub wire: String,
    /// Both underlay addresses.
    pub outer: [IpAddr; 2],
    /// MTU of the inner side.
    pub inner_mtu: u32,
    /// Who protects it.
    pub way: Way,
    /// By which cipher.
    pub cipher: Option<String>,
    /// What the way needs in the way of secrets; see its module.
    pub secrets: Vec<String>,
    /// Number of SAs in each direction, each for a VNI of its own, the first one for that of the tunnel device; 0: one for all.
    pub sas: u32,
    /// Workers, and the cores they are bound to; empty: as Culvert has it by itself.
    pub cores: Vec<usize>,
    /// No tunnel device: packets are made otherwise.
    pub bare: bool,
}

impl Setup {
    /// The inner address of a side.
    #[must_use]
    pub fn inner(number: usize) -> IpAddr {
        IpAddr::from([10, 99, 0, if number == 0 { 1 } else { 2 }])
    }

    fn ends(&self) -> [IpAddr; 2] {
        [self.outer[self.number], self.outer[1 - self.number]]
    }

    fn cipher(&self) -> Result<&str> {
        self.cipher.as_deref().context("no cipher")
    }
}

/// What protects.
enum Protection {
    None,
    Culvert(culvert::Culvert),
    Kernel(kernel::Xfrm),
    Wireguard(wireguard::Wireguard),
    Charon(charon::Charon),
}

/// An agent. What it has made goes in this order.
struct Agent {
    end: Arc<AtomicBool>,
    sink: Option<Sink>,
    protection: Protection,
    tunnel: Option<tunnel::Tunnel>,
    home: Home,
}

/// Serves until the input ends.
///
/// # Errors
/// Not root; or nobody takes the answers.
pub fn serve() -> Result<()> {
    // ^C is for who asks us: the end of our input follows, and then we clean up.
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGHUP] {
        signal_hook::flag::register(signal, Arc::new(AtomicBool::new(false)))?;
    }
    let mut agent = Agent {
        end: Arc::default(),
        sink: None,
        protection: Protection::None,
        tunnel: None,
        home: Home::new(false)?,
    };
    for line in std::io::stdin().lock().lines() {
        let Ok(line) = line else { break };
        let reply = serde_json::from_str(&line)
            .context("not understood")
            .and_then(|request| agent.answer(request))
            .unwrap_or_else(|error| Reply::Failed(format!("{error:#}")));
        let mut out = std::io::stdout().lock();
        serde_json::to_writer(&mut out, &reply)?;
        out.write_all(b"\n")?;
        out.flush()?;
    }
    Ok(())
}

impl Agent {
    fn answer(&mut self, request: Request) -> Result<Reply> {
        match request {
            Request::Hello { wire } => Ok(Reply::Hello(Box::new(usage::hello(&wire)?))),
            Request::Setup(setup) => self.set_up(&setup).map(|()| Reply::Done),
            Request::Ready => self.ready().map(|()| Reply::Done),
            Request::Serve { address } => {
                load::serve(&self.home, Command::new("iperf3"), address)?;
                probe::echo(address, &self.end)?;
                Ok(Reply::Done)
            }
            Request::Load {
                load,
                to,
                seconds,
                probe,
            } => {
                let probing = probe::Probe::start(to, probe)?;
                let done = load::send(&load, to, seconds);
                Ok(Reply::Loaded(done?, probing.end()?))
            }
            Request::Sink => {
                self.sink = Some(Sink::open()?);
                Ok(Reply::Done)
            }
            Request::Flood(flood) => Ok(Reply::Sent(packets::flood(&flood)?)),
            Request::Usage => Ok(Reply::Usage(Box::new(self.usage()?))),
        }
    }

    fn set_up(&mut self, setup: &Setup) -> Result<()> {
        if setup.way.is_geneve() && !setup.bare {
            self.tunnel = Some(tunnel::Tunnel::new(setup, &self.home.path())?);
        }
        self.protection = match setup.way {
            Way::Plain => Protection::None,
            Way::Null | Way::NullTap | Way::Culvert | Way::CulvertTap | Way::CulvertBusy => {
                Protection::Culvert(culvert::Culvert::start(setup, &self.home)?)
            }
            Way::KernelXfrm => Protection::Kernel(kernel::Xfrm::new(setup, &self.home.path())?),
            Way::WireguardGo | Way::Boringtun => {
                Protection::Wireguard(wireguard::Wireguard::start(setup, &self.home)?)
            }
            Way::StrongswanLibipsec => {
                Protection::Charon(charon::Charon::start(setup, &self.home)?)
            }
        };
        if let (Protection::Culvert(_), Some(tunnel)) = (&self.protection, &mut self.tunnel) {
            tunnel.listen_on(culvert::HOST_PORT)?;
        }
        Ok(())
    }

    fn ready(&mut self) -> Result<()> {
        match &mut self.protection {
            Protection::Culvert(culvert) => culvert.wait(),
            Protection::Charon(charon) => charon.wait(),
            Protection::None | Protection::Kernel(_) | Protection::Wireguard(_) => Ok(()),
        }
    }

    fn usage(&mut self) -> Result<Usage> {
        let mut usage = Usage::of_machine()?;
        match &self.protection {
            Protection::Culvert(culvert) => culvert.usage(&mut usage)?,
            Protection::Kernel(xfrm) => usage.sealed = Some(xfrm.sealed()?),
            Protection::Wireguard(wireguard) => usage.process(wireguard.name(), wireguard.pid())?,
            Protection::Charon(charon) => usage.process("charon", charon.pid())?,
            Protection::None => {}
        }
        usage.arrived = self.sink.as_ref().map(Sink::count);
        Ok(usage)
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        self.end.store(true, std::sync::atomic::Ordering::Relaxed);
    }
}

/// A program that came with this one: built beside it, or installed.
fn own_program(name: &str) -> Result<PathBuf> {
    culvert_tests::lab::program(name).or_else(|error| {
        let own = std::env::current_exe()?;
        let installed = own.with_file_name("../sbin").join(name);
        installed.is_file().then_some(installed).ok_or(error)
    })
}

//! What workers are made of: the queues of both ports, and the memory that a worker's ports share.

use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use culvert_gso::vnet::Layout;
use culvert_proto::status::PortStatus;
use log::info;

use crate::frame::Pool;
use crate::host_port::HostPort;
use crate::lengths::Buffers;
use crate::nic::Nic;
use crate::port::Port;
use crate::port::host::HostPort as HostQueue;
use crate::port::tap::{Lengths, TapPort};
use crate::port::xsk::{Memory, Mode, XskPort};
use crate::steer::{Role, Steering};

/// What a worker is made of.
pub(crate) struct Part {
    pub(crate) wire: Vec<XskPort>,
    wire_queues: Vec<u32>,
    pub(crate) host: HostQueue,
    pub(crate) pool: Pool,
}

impl Part {
    /// Lets steering send the worker's queues to its sockets.
    pub(crate) fn register(&self, steering: &mut Steering, number: u32) -> Result<()> {
        for (queue, port) in self.wire_queues.iter().zip(&self.wire) {
            let descriptor = port.descriptor().context("a socket")?;
            steering.set_socket(Role::Wire, *queue, descriptor)?;
        }
        match &self.host {
            HostQueue::Veth(port) => {
                let descriptor = port.descriptor().context("a socket")?;
                steering.set_socket(Role::Host, number, descriptor)
            }
            HostQueue::Tap(_) => Ok(()),
        }
    }
}

/// How the ports are to be.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) workers: u32,
    pub(crate) buffers: Buffers,
    /// Of the wire's queues.
    pub(crate) busy_poll: bool,
}

/// The sockets of a worker; the inner end's one, if the host port has such an end.
struct Sockets {
    wire: Vec<XskPort>,
    wire_queues: Vec<u32>,
    host: Option<XskPort>,
    pool: Pool,
}

/// Opens every queue of both ports: in zero-copy mode if the kernel does it, else in copy mode. `inner` is the inner end of a veth
/// pair.
pub(crate) fn open_ports(
    wire: &Nic,
    inner: &str,
    host: HostPort,
    wanted: Wanted,
) -> Result<(Mode, Vec<Part>)> {
    let inner = matches!(host, HostPort::Veth).then_some(inner);
    let (mode, mut sockets) = open_sockets(wire, inner, wanted.workers, wanted.buffers)?;
    let wires = sockets.iter_mut().flat_map(|sockets| &mut sockets.wire);
    for port in wires.filter(|_| wanted.busy_poll) {
        port.prefer_busy_poll()?;
    }
    let lengths = Lengths::of_wire(wire.mtu.min(wanted.buffers.longest()) as usize);
    let (queues, layout) = match host {
        HostPort::Veth => (Vec::new(), Layout::V1),
        HostPort::Tap(tap) => (tap.queues, tap.layout),
    };
    let mut queues = queues.into_iter();
    let part = |sockets: Sockets| {
        let host = match sockets.host {
            Some(port) => HostQueue::Veth(port),
            None => HostQueue::Tap(TapPort::new(
                queues.next().context("a queue of the TAP")?,
                layout,
                lengths,
            )),
        };
        Ok(Part {
            wire: sockets.wire,
            wire_queues: sockets.wire_queues,
            host,
            pool: sockets.pool,
        })
    };
    let parts = sockets.into_iter().map(part).collect::<Result<_>>()?;
    Ok((mode, parts))
}

fn open_sockets(
    wire: &Nic,
    inner: Option<&str>,
    workers: u32,
    buffers: Buffers,
) -> Result<(Mode, Vec<Sockets>)> {
    let open = |mode| open_in_mode(wire, inner, workers, mode, buffers);
    match open(Mode::ZeroCopy) {
        Ok(sockets) => return Ok((Mode::ZeroCopy, sockets)),
        Err(error) => info!("no zero-copy: {error:#}"),
    }
    // The kernel lets go of the queues of sockets that were closed, or whose process died, only after a moment.
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        match open(Mode::Copy) {
            Err(error) if is_busy(&error) && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            result => {
                let sockets = result.context(
                    "AF_XDP sockets cannot be opened; `culvert doctor` says what this machine lacks",
                )?;
                return Ok((Mode::Copy, sockets));
            }
        }
    }
}

/// What fails here leaves nothing: sockets that stayed bound would keep out those of the next try.
#[expect(unsafe_code, reason = "memory that frames point into")]
fn open_in_mode(
    wire: &Nic,
    inner: Option<&str>,
    workers: u32,
    mode: Mode,
    buffers: Buffers,
) -> Result<Vec<Sockets>> {
    let opened = (0..workers)
        .map(|number| {
            let wire_queues: Vec<u32> = (number..wire.queues).step_by(workers as usize).collect();
            let count = u32::try_from(wire_queues.len())? + u32::from(inner.is_some());
            // SAFETY: what goes out of this function, is kept below; what fails before, touches no frame.
            let (memory, pool) = unsafe { Memory::new(count, mode, buffers) }?;
            let wire = wire_queues
                .iter()
                .map(|queue| XskPort::open(&memory, &wire.name, *queue))
                .collect::<Result<Vec<_>>>()?;
            let host = inner
                .map(|inner| XskPort::open(&memory, inner, number))
                .transpose()?;
            let last = host.as_ref().or(wire.last()).context("no queue")?;
            let got = last.mode()?;
            if got != mode {
                bail!("asked for {}, got {}", mode.name(), got.name());
            }
            let sockets = Sockets {
                wire,
                wire_queues,
                host,
                pool,
            };
            Ok((memory, sockets))
        })
        .collect::<Result<Vec<_>>>()?;
    let keep = |(memory, mut sockets): (Memory, Sockets)| {
        memory.keep(&mut sockets.pool);
        sockets
    };
    Ok(opened.into_iter().map(keep).collect())
}

/// Whether a queue has a socket.
fn is_busy(error: &anyhow::Error) -> bool {
    let mut causes = error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<io::Error>());
    causes.any(|cause| cause.raw_os_error() == Some(libc::EBUSY))
}

/// What there is, as `culvert status` shows it.
pub(crate) fn describe(
    wire: &Nic,
    host: &Nic,
    host_kind: &str,
    steering: &Steering,
    mode: Mode,
) -> Vec<PortStatus> {
    [
        ("wire", wire, Role::Wire, "NIC"),
        ("host", host, Role::Host, host_kind),
    ]
    .map(|(name, nic, role, kind)| PortStatus {
        role: name.to_owned(),
        interface: nic.name.clone(),
        kind: kind.to_owned(),
        xdp: steering.mode(role).to_owned(),
        af_xdp: if steering.mode(role) == "none" {
            "none".to_owned()
        } else {
            mode.name().to_owned()
        },
        queues: nic.queues,
        mtu: nic.mtu,
    })
    .into()
}

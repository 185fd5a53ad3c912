//! Attaching programs so that they outlive us. A link is pinned under a name that says what it is of:
//! `PROGRAM-INTERFACEINDEX-MODE`.
//!
//! A pinned link is given up only when it holds nothing any more, or the program cannot be attached as the
//! settings want while it is there: a start that fails leaves in force what was.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{SchedClassifier, TcAttachType, Xdp as XdpProgram, tc};
use log::{info, warn};
use nix::net::if_::{if_nameindex, if_nametoindex};

use crate::lengths::Buffers;
use crate::settings::Xdp;

/// The programs, as their pins' names begin.
const PROGRAMS: [&str; 3] = ["wire", "host", "egress"];

const NATIVE: &str = "native";
const GENERIC: &str = "generic";
const TCX: &str = "tcx";

/// Where the egress filter stands when the kernel has no tcx: before others, under a handle that is Culvert's.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0x6081, 1);

/// An XDP program: its name in pins, and its name in the object.
#[derive(Clone, Copy)]
pub(super) struct Kind {
    name: &'static str,
    program: &'static str,
}

impl Kind {
    /// What stands on the NIC. Packets in several buffers need a program that says that it knows of them; where there are none,
    /// the kernel is not asked for it, as drivers make more of it than the flag.
    pub(super) const fn wire(buffers: Buffers) -> Self {
        Self {
            name: "wire",
            program: match buffers {
                Buffers::One => "wire",
                Buffers::Several => "wire_frags",
            },
        }
    }

    /// The same on the inner end of the host port.
    pub(super) const fn host(buffers: Buffers) -> Self {
        Self {
            name: "host",
            program: match buffers {
                Buffers::One => "host",
                Buffers::Several => "host_frags",
            },
        }
    }
}

/// Attaches an XDP program and pins its link. Returns the mode: `native` or `generic`.
pub(super) fn xdp(
    programs: &mut Ebpf,
    Kind { name, program }: Kind,
    interface: &str,
    choice: Xdp,
    pins: &Path,
) -> Result<&'static str> {
    let index = if_nametoindex(interface).with_context(|| format!("interface {interface}"))?;
    let program: &mut XdpProgram = programs
        .program_mut(program)
        .with_context(|| format!("no eBPF program {program}"))?
        .try_into()?;
    program
        .load()
        .with_context(|| format!("the kernel refuses the eBPF program {name}"))?;

    look_after_others(pins, name, index)?;
    let mut former = None;
    for mode in [NATIVE, GENERIC] {
        let pin = pin_path(pins, name, index, mode);
        if !pin.exists() {
            continue;
        }
        if choice != Xdp::Auto && (choice == Xdp::Native) != (mode == NATIVE) {
            // The kernel has one mode at a time: the old one must go before the new one can come.
            info!("{interface}: XDP program {name} leaves {mode} mode, as the settings want");
            fs::remove_file(&pin)?;
            former = Some(mode);
        } else if take_over(&pin, |link| {
            program.attach_to_link(XdpLink::try_from(link)?)?;
            Ok(())
        })? {
            info!("{interface}: XDP program {name} replaced in place, {mode} mode");
            return Ok(mode);
        }
    }

    let modes: &[_] = match choice {
        Xdp::Auto => &[NATIVE, GENERIC],
        Xdp::Native => &[NATIVE],
        Xdp::Generic => &[GENERIC],
    };
    let mut problem = anyhow!("no XDP mode");
    for &mode in modes {
        let pin = pin_path(pins, name, index, mode);
        let tried = once_free(former, || attach_xdp(program, interface, mode, &pin));
        match tried {
            Ok(()) => {
                info!("{interface}: XDP program {name} attached, {mode} mode");
                return Ok(mode);
            }
            Err(error) => {
                info!("{interface}: no XDP in {mode} mode: {error:#}");
                problem = error;
            }
        }
    }
    if let Some(mode) = former {
        let pin = pin_path(pins, name, index, mode);
        once_free(former, || attach_xdp(program, interface, mode, &pin))
            .with_context(|| format!("{interface} is without XDP program {name}"))?;
    }
    Err(problem).with_context(|| format!("XDP cannot be attached to {interface}"))
}

/// Attaches; if the interface had a program of ours in another mode, when that is gone. The kernel detaches what
/// was unpinned only after a moment.
fn once_free(former: Option<&str>, mut attach: impl FnMut() -> Result<()>) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        match attach() {
            Err(error)
                if former.is_some()
                    && matches!(errno(&error), Some(libc::EBUSY | libc::EEXIST))
                    && Instant::now() < until =>
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            result => return result,
        }
    }
}

fn attach_xdp(
    program: &mut XdpProgram,
    interface: &str,
    mode: &'static str,
    pin: &Path,
) -> Result<()> {
    let flags = if mode == NATIVE {
        XdpMode::Driver
    } else {
        XdpMode::Skb
    };
    let id = program.attach(interface, flags).map_err(|error| {
        let error = anyhow!(error);
        match errno(&error) {
            // One of the same mode, or of the other one.
            Some(libc::EBUSY | libc::EEXIST) => error.context(format!(
                "another XDP program is attached to {interface}, see `ip -d link show {interface}`; \
                 `ip link set dev {interface} xdp off` removes it, unless it is held by a link"
            )),
            _ => error,
        }
    })?;
    pin_link(program.take_link(id)?.try_into()?, pin)
}

/// Attaches the egress program: by tcx if the kernel has it (Linux 6.6), else by clsact.
pub(super) fn egress(programs: &mut Ebpf, interface: &str, pins: &Path) -> Result<()> {
    let name = "egress";
    let index = if_nametoindex(interface).with_context(|| format!("interface {interface}"))?;
    let program: &mut SchedClassifier = programs
        .program_mut(name)
        .with_context(|| format!("no eBPF program {name}"))?
        .try_into()?;
    program
        .load()
        .with_context(|| format!("the kernel refuses the eBPF program {name}"))?;

    look_after_others(pins, name, index)?;
    let pin = pin_path(pins, name, index, TCX);
    if pin.exists()
        && take_over(&pin, |link| {
            program.attach_to_link(SchedClassifierLink::try_from(link)?)?;
            Ok(())
        })?
    {
        info!("{interface}: tc program {name} replaced in place");
        return Ok(());
    }
    // First, so that no other program lets a packet go before this one has seen it.
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    match program.attach_with_options(interface, TcAttachType::Egress, order) {
        Ok(id) => {
            pin_link(program.take_link(id)?.try_into()?, &pin)?;
            info!("{interface}: tc program {name} attached by tcx");
            Ok(())
        }
        Err(error) => {
            info!("{interface}: no tcx, clsact instead: {:#}", anyhow!(error));
            egress_by_clsact(program, interface)
        }
    }
}

/// A clsact filter stays by itself: nothing to pin. An older one of ours is replaced in place.
fn egress_by_clsact(program: &mut SchedClassifier, interface: &str) -> Result<()> {
    let there = clsact_filter(interface)?;
    let id = if let Ok(id) = program.attach_to_link(there) {
        id
    } else {
        // It fails if there is a clsact already, which is as good.
        let _ = tc::qdisc_add_clsact(interface);
        let options = TcAttachOptions::Netlink(NlOptions {
            priority: PRIORITY,
            handle: HANDLE,
            classid: None,
        });
        program
            .attach_with_options(interface, TcAttachType::Egress, options)
            .with_context(|| {
                format!("tc program cannot be attached to the egress of {interface}")
            })?
    };
    // Dropping the link would detach the filter.
    std::mem::forget(program.take_link(id)?);
    info!("{interface}: tc program egress attached by clsact");
    Ok(())
}

fn clsact_filter(interface: &str) -> io::Result<SchedClassifierLink> {
    SchedClassifierLink::attached(interface, TcAttachType::Egress, PRIORITY, HANDLE, None)
}

/// Unpins every link, and so detaches the programs.
pub(super) fn remove(pins: &Path, wire: &str) -> Result<()> {
    for program in PROGRAMS {
        for (pin, _) in list(pins, program)? {
            fs::remove_file(&pin).with_context(|| pin.display().to_string())?;
        }
    }
    // Dropping it detaches the filter, if there is one; no interface, no filter.
    drop(clsact_filter(wire));
    Ok(())
}

/// Puts a program on a pinned link, by `update`. Says whether it did; if the interface of the link is gone,
/// it did not, and the pin is gone, too.
fn take_over(pin: &Path, update: impl FnOnce(FdLink) -> Result<()>) -> Result<bool> {
    let link = FdLink::from(PinnedLink::from_pin(pin).with_context(|| pin.display().to_string())?);
    match update(link) {
        Ok(()) => Ok(true),
        Err(error) if errno(&error) == Some(libc::ENOLINK) => {
            fs::remove_file(pin)?;
            Ok(false)
        }
        Err(error) => Err(error.context(format!(
            "the program that {} holds cannot be replaced, and stays in force",
            pin.display()
        ))),
    }
}

fn errno(error: &anyhow::Error) -> Option<i32> {
    error
        .chain()
        .find_map(|cause| cause.downcast_ref::<io::Error>()?.raw_os_error())
}

fn pin_link(link: FdLink, path: &Path) -> Result<()> {
    link.pin(path)
        .map(drop)
        .with_context(|| format!("cannot pin {}", path.display()))
}

fn pin_path(pins: &Path, program: &str, index: u32, mode: &str) -> PathBuf {
    pins.join(format!("{program}-{index}-{mode}"))
}

/// Looks after pins of a program on other interfaces than the one with `index`: those of interfaces that are gone
/// are removed; those of an earlier NIC protect until they are removed on purpose.
fn look_after_others(pins: &Path, program: &str, index: u32) -> Result<()> {
    let interfaces = if_nameindex()?;
    for (pin, other) in list(pins, program)? {
        if other == index {
            continue;
        }
        if interfaces
            .iter()
            .any(|interface| interface.index() == other)
        {
            warn!(
                "{} is of another interface than the one that is set now, and goes on protecting it; \
                 remove the file if it should not",
                pin.display()
            );
        } else {
            fs::remove_file(&pin).with_context(|| pin.display().to_string())?;
        }
    }
    Ok(())
}

/// Gives up the links of a program whose interfaces are gone.
pub(super) fn give_up(pins: &Path, program: &str) -> Result<()> {
    // No interface has the index 0.
    look_after_others(pins, program, 0)
}

/// The pinned links of a program, each with the index of its interface.
fn list(pins: &Path, program: &str) -> Result<Vec<(PathBuf, u32)>> {
    if !pins.exists() {
        return Ok(Vec::new());
    }
    let mut list = Vec::new();
    for entry in fs::read_dir(pins).with_context(|| pins.display().to_string())? {
        let pin = entry?.path();
        let name = pin.file_name().unwrap_or_default().to_string_lossy();
        let mut parts = name.split('-');
        if parts.next() != Some(program) {
            continue;
        }
        if let Some(index) = parts.next().and_then(|index| index.parse().ok()) {
            list.push((pin.clone(), index));
        }
    }
    Ok(list)
}

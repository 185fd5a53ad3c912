//! Attaching programs so that they outlive us. A link is pinned under a name that says what it is of:
//! `PROGRAM-INTERFACEINDEX-MODE`.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use aya::Ebpf;
use aya::programs::links::{FdLink, LinkOrder, PinnedLink};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{SchedClassifier, TcAttachType, Xdp as XdpProgram, tc};
use log::{info, warn};
use nix::net::if_::if_nametoindex;

use crate::settings::Xdp;

const NATIVE: &str = "native";
const GENERIC: &str = "generic";
const TCX: &str = "tcx";

/// Where the egress filter stands when the kernel has no tcx.
const PRIORITY: u16 = 1;
const HANDLE: TcHandle = TcHandle::new(0, 1);

/// Attaches an XDP program and pins its link. Returns the mode: `native` or `generic`.
pub(super) fn xdp(
    programs: &mut Ebpf,
    name: &str,
    interface: &str,
    choice: Xdp,
    pins: &Path,
) -> Result<&'static str> {
    let index = if_nametoindex(interface).with_context(|| format!("interface {interface}"))?;
    let program: &mut XdpProgram = programs
        .program_mut(name)
        .with_context(|| format!("no eBPF program {name}"))?
        .try_into()?;
    program
        .load()
        .with_context(|| format!("the kernel refuses the eBPF program {name}"))?;

    drop_strangers(pins, name, index)?;
    for mode in [NATIVE, GENERIC] {
        let pin = pin_path(pins, name, index, mode);
        if !pin.exists() {
            continue;
        }
        let wanted = choice == Xdp::Auto || (choice == Xdp::Native) == (mode == NATIVE);
        match wanted.then(|| take_over_xdp(program, &pin)) {
            Some(Ok(())) => {
                info!("{interface}: XDP program {name} replaced in place, {mode} mode");
                return Ok(mode);
            }
            // The interface was deleted and made again under the same number, or the mode is to change.
            Some(Err(_)) | None => fs::remove_file(&pin)?,
        }
    }

    let modes: &[_] = match choice {
        Xdp::Auto => &[(XdpMode::Driver, NATIVE), (XdpMode::Skb, GENERIC)],
        Xdp::Native => &[(XdpMode::Driver, NATIVE)],
        Xdp::Generic => &[(XdpMode::Skb, GENERIC)],
    };
    let mut problem = anyhow!("no XDP mode");
    for (mode, mode_name) in modes {
        match program.attach(interface, *mode) {
            Ok(id) => {
                let link: FdLink = program.take_link(id)?.try_into()?;
                pin_link(link, &pin_path(pins, name, index, mode_name))?;
                info!("{interface}: XDP program {name} attached, {mode_name} mode");
                return Ok(mode_name);
            }
            Err(error) => problem = anyhow!(error),
        }
    }
    Err(problem).with_context(|| {
        format!(
            "XDP cannot be attached to {interface}; `ip -d link show {interface}` says whether another \
             program is there"
        )
    })
}

fn take_over_xdp(program: &mut XdpProgram, pin: &Path) -> Result<()> {
    let link = FdLink::from(PinnedLink::from_pin(pin)?);
    program.attach_to_link(XdpLink::try_from(link)?)?;
    Ok(())
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

    drop_strangers(pins, name, index)?;
    let pin = pin_path(pins, name, index, TCX);
    if pin.exists() {
        let link = FdLink::from(PinnedLink::from_pin(&pin)?);
        let replaced = SchedClassifierLink::try_from(link)
            .map_err(anyhow::Error::from)
            .and_then(|link| Ok(program.attach_to_link(link)?));
        match replaced {
            Ok(_) => {
                info!("{interface}: tc program {name} replaced in place");
                return Ok(());
            }
            Err(_) => fs::remove_file(&pin)?,
        }
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::default());
    if let Ok(id) = program.attach_with_options(interface, TcAttachType::Egress, order) {
        let link: FdLink = program.take_link(id)?.try_into()?;
        pin_link(link, &pin)?;
        info!("{interface}: tc program {name} attached by tcx");
        return Ok(());
    }
    egress_by_clsact(program, interface)
}

/// A clsact filter stays by itself: nothing to pin. An older one of ours is replaced in place.
fn egress_by_clsact(program: &mut SchedClassifier, interface: &str) -> Result<()> {
    let there = SchedClassifierLink::attached(
        interface,
        TcAttachType::Egress,
        PRIORITY,
        HANDLE,
        None,
    )?;
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
            .with_context(|| format!("tc program cannot be attached to the egress of {interface}"))?
    };
    // Dropping the link would detach the filter.
    std::mem::forget(program.take_link(id)?);
    info!("{interface}: tc program egress attached by clsact");
    Ok(())
}

/// Unpins every link, and so detaches the programs.
pub(super) fn remove(pins: &Path, wire: &str) -> Result<()> {
    for pin in list(pins)? {
        fs::remove_file(&pin).with_context(|| pin.display().to_string())?;
    }
    match tc::qdisc_detach_program(wire, TcAttachType::Egress, "egress") {
        Ok(()) | Err(TcError::IoError(_) | TcError::NetlinkError(_)) => Ok(()),
        Err(error) => bail!("filter on the egress of {wire}: {error}"),
    }
}

fn pin_link(link: FdLink, path: &Path) -> Result<()> {
    link.pin(path)
        .map(drop)
        .with_context(|| format!("cannot pin {}", path.display()))
}

fn pin_path(pins: &Path, program: &str, index: u32, mode: &str) -> PathBuf {
    pins.join(format!("{program}-{index}-{mode}"))
}

/// Looks after pins of a program on other interfaces than the one with `index`. Those of the host port are of an
/// interface that is gone; those of the NIC protect until they are removed on purpose.
fn drop_strangers(pins: &Path, program: &str, index: u32) -> Result<()> {
    for pin in list(pins)? {
        let name = pin.file_name().unwrap_or_default().to_string_lossy();
        let mut parts = name.split('-');
        if parts.next() != Some(program) || parts.next() == Some(index.to_string().as_str()) {
            continue;
        }
        if program == "host" {
            fs::remove_file(&pin)?;
        } else {
            warn!(
                "{} is of another interface than the NIC that is set now, and goes on protecting it; \
                 remove the file if it should not",
                pin.display()
            );
        }
    }
    Ok(())
}

/// The pinned links.
fn list(pins: &Path) -> Result<Vec<PathBuf>> {
    if !pins.exists() {
        return Ok(Vec::new());
    }
    let mut list = Vec::new();
    for entry in fs::read_dir(pins).with_context(|| pins.display().to_string())? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            list.push(entry.path());
        }
    }
    Ok(list)
}

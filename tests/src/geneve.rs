//! A Geneve endpoint from eBPF, for kernels that have no geneve device: see the fixture's programs.

use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::Array;
use aya::programs::links::{FdLink, LinkOrder};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use culvert_packet::headers::{Address, mapped};
use culvert_packet::maps::GeneveSettings;
use nix::net::if_::if_nametoindex;

/// The VNI of the lab's tunnels.
pub const VNI: u32 = 77;

/// An address as eBPF sees it.
fn address(ip: IpAddr) -> Address {
    match ip {
        IpAddr::V4(v4) => mapped(v4.octets()),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// The endpoint, loaded. Its programs are pinned, so that they outlive the process if the lab does.
#[derive(Debug)]
pub struct Fixture {
    programs: Ebpf,
}

impl Fixture {
    /// Makes an endpoint between `local` and `remote`: what comes in at `tunnel` leaves wrapped by `underlay`.
    /// Runs in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn new(
        tunnel: &str,
        underlay: &str,
        local: IpAddr,
        remote: IpAddr,
        dont_fragment: bool,
        pins: &Path,
    ) -> Result<Self> {
        let mut programs = EbpfLoader::new().load(culvert_ebpf::GENEVE_FIXTURE)?;
        let map = programs.map_mut("GENEVE").context("no map GENEVE")?;
        let mut settings: Array<_, GeneveSettings> = Array::try_from(map)?;
        settings.set(
            0,
            GeneveSettings {
                local: address(local),
                remote: address(remote),
                underlay: if_nametoindex(underlay)?,
                tunnel: if_nametoindex(tunnel)?,
                vni: VNI,
                v6: u32::from(local.is_ipv6()),
                fragmentable: u32::from(!dont_fragment),
            },
            0,
        )?;
        for name in ["encap", "decap"] {
            program(&mut programs, name)?
                .load()
                .with_context(|| format!("the kernel refuses {name}"))?;
        }
        let mut this = Self { programs };
        this.attach("encap", tunnel, pins)?;
        this.decap_on(underlay, pins)?;
        Ok(this)
    }

    /// Strips what arrives at `interface`, too, if it does not yet. Runs in the namespace of the calling thread.
    ///
    /// # Errors
    /// The kernel refuses it.
    pub fn decap_on(&mut self, interface: &str, pins: &Path) -> Result<()> {
        self.attach("decap", interface, pins)
    }

    fn attach(&mut self, name: &str, interface: &str, pins: &Path) -> Result<()> {
        // Another interface may come under the same name.
        let pin = pins.join(format!("{name}-{interface}-{}", if_nametoindex(interface)?));
        if pin.exists() {
            return Ok(());
        }
        let program = program(&mut self.programs, name)?;
        let order = TcAttachOptions::TcxOrder(LinkOrder::default());
        let id = program
            .attach_with_options(interface, TcAttachType::Ingress, order)
            .with_context(|| format!("{name} on {interface}"))?;
        let link: FdLink = program.take_link(id)?.try_into()?;
        link.pin(pin)?;
        Ok(())
    }
}

fn program<'a>(programs: &'a mut Ebpf, name: &str) -> Result<&'a mut SchedClassifier> {
    let program = programs
        .program_mut(name)
        .with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

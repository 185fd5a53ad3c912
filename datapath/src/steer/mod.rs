//! Steering from userspace: loads the eBPF programs, or takes over those that a datapath before this one
//! left pinned, and keeps their maps.
//!
//! Programs and maps are pinned on a bpffs, so that they outlive the datapath and go on dropping what must
//! not be in clear. A start replaces pinned programs in place: at no moment is there none, unless the settings
//! name another XDP mode.

mod attach;
mod pinned;

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, XskMap};
use aya::{Ebpf, EbpfLoader, Pod};
use culvert_packet::maps::{PeerKey, Settings, SpiKey};
use culvert_packet::reason::DropReason;
use hashbrown::HashSet;
use log::info;
use nix::net::if_::if_nametoindex;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::settings::Xdp;

/// What to attach where.
#[derive(Clone, Debug)]
pub struct SteeringConfig {
    /// The underlay NIC.
    pub wire: String,
    /// Outer end of the host port, which captured Geneve goes to.
    pub host_outer: String,
    /// Inner end of the host port, where the workers take it.
    pub host_inner: String,
    /// Folder for pins; it becomes a bpffs if it is on none.
    pub pins: PathBuf,
    /// XDP mode of the NIC.
    pub xdp: Xdp,
}

impl SteeringConfig {
    fn maps(&self) -> PathBuf {
        self.pins.join("maps")
    }
}

/// Which port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The NIC.
    Wire,
    /// The host port's inner end.
    Host,
}

/// The attached programs' maps.
pub struct Steering {
    spis: HashMap<MapData, SpiKey, u32>,
    peers: HashMap<MapData, PeerKey, u32>,
    counters: PerCpuArray<MapData, u64>,
    wire_sockets: XskMap<MapData>,
    host_sockets: XskMap<MapData>,
    modes: [&'static str; 2],
    /// Keeps programs and links open; they are pinned, so dropping this detaches nothing.
    _programs: Ebpf,
}

impl Steering {
    /// Attaches the programs, in place of those that are pinned already.
    ///
    /// # Errors
    /// The kernel refuses a program, or an interface has an XDP program of somebody else.
    pub fn attach(config: &SteeringConfig) -> Result<Self> {
        make_bpffs(&config.pins)?;
        let maps = config.maps();
        std::fs::create_dir_all(&maps)
            .with_context(|| format!("cannot make {}", maps.display()))?;
        pinned::prepare(culvert_ebpf::STEER, &maps)?;
        let mut programs = EbpfLoader::new()
            .default_map_pin_directory(&maps)
            .load(culvert_ebpf::STEER)
            .with_context(|| format!("cannot make the eBPF maps in {}", maps.display()))?;

        // Where egress sends to, before egress runs.
        let mut settings: Array<_, Settings> = take(&mut programs, "SETTINGS")?;
        let host_port = if_nametoindex(config.host_outer.as_str())
            .with_context(|| format!("interface {}", config.host_outer))?;
        settings.set(0, Settings { host_port }, 0)?;

        let pins = &config.pins;
        let host = attach::xdp(&mut programs, "host", &config.host_inner, Xdp::Native, pins)?;
        let wire = attach::xdp(&mut programs, "wire", &config.wire, config.xdp, pins)?;
        attach::egress(&mut programs, &config.wire, pins)?;
        Ok(Self {
            spis: take(&mut programs, "SPIS")?,
            peers: take(&mut programs, "PEERS")?,
            counters: take(&mut programs, "COUNTERS")?,
            wire_sockets: take(&mut programs, "WIRE_SOCKETS")?,
            host_sockets: take(&mut programs, "HOST_SOCKETS")?,
            modes: [wire, host],
            _programs: programs,
        })
    }

    /// Detaches everything on purpose.
    ///
    /// # Errors
    /// A pin cannot be removed.
    pub fn remove(config: &SteeringConfig) -> Result<()> {
        attach::remove(&config.pins, &config.wire)?;
        pinned::remove(culvert_ebpf::STEER, &config.maps())?;
        // It stays if it is a mount point, or has something else in it.
        let _ = std::fs::remove_dir(&config.pins);
        Ok(())
    }

    /// How XDP is attached: `native` or `generic`.
    #[must_use]
    pub fn mode(&self, role: Role) -> &'static str {
        match role {
            Role::Wire => self.modes[0],
            Role::Host => self.modes[1],
        }
    }

    /// Sends `queue` of a port to an AF_XDP socket, which is taken out by the kernel when it closes.
    ///
    /// # Errors
    /// More queues than the map takes.
    pub fn set_socket(&mut self, role: Role, queue: u32, socket: BorrowedFd<'_>) -> Result<()> {
        use std::os::fd::AsRawFd;
        let map = match role {
            Role::Wire => &mut self.wire_sockets,
            Role::Host => &mut self.host_sockets,
        };
        map.set(queue, socket.as_raw_fd(), 0)
            .with_context(|| format!("socket of queue {queue}"))
    }

    /// Makes `peers` those that must be protected. What is new is added before what is old is removed.
    ///
    /// # Errors
    /// The map is full.
    pub fn set_peers(&mut self, peers: &HashSet<PeerKey>) -> Result<()> {
        reconcile(&mut self.peers, peers).context("map of protected peers")
    }

    /// Makes `spis` those that the workers open.
    ///
    /// # Errors
    /// The map is full.
    pub fn set_spis(&mut self, spis: &HashSet<SpiKey>) -> Result<()> {
        reconcile(&mut self.spis, spis).context("map of SPIs")
    }

    /// Packets that the programs dropped since they were first loaded, by [`DropReason::index`].
    ///
    /// # Errors
    /// The map cannot be read.
    pub fn drops(&self) -> Result<[u64; DropReason::COUNT]> {
        let mut drops = [0; DropReason::COUNT];
        for (index, drops) in (0..).zip(&mut drops) {
            *drops = self.counters.get(&index, 0)?.iter().sum();
        }
        Ok(drops)
    }
}

fn take<M>(programs: &mut Ebpf, name: &str) -> Result<M>
where
    M: TryFrom<Map, Error = aya::maps::MapError>,
{
    let map = programs
        .take_map(name)
        .with_context(|| format!("no eBPF map {name}"))?;
    M::try_from(map).with_context(|| format!("eBPF map {name}"))
}

fn reconcile<K: Pod + Eq + std::hash::Hash>(
    map: &mut HashMap<MapData, K, u32>,
    wanted: &HashSet<K>,
) -> Result<()> {
    let present: HashSet<K> = map.keys().collect::<Result<_, _>>()?;
    for key in wanted.difference(&present) {
        map.insert(key, 0, 0)?;
    }
    for key in present.difference(wanted) {
        map.remove(key)?;
    }
    Ok(())
}

/// Makes sure that `folder` is on a bpffs, by mounting one there if need be. (`/sys/fs/bpf` is a bpffs
/// on most machines, but not in every mount namespace.)
fn make_bpffs(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if statfs(folder)?.filesystem_type() == BPF_FS_MAGIC {
        return Ok(());
    }
    info!("mounting a bpffs on {}", folder.display());
    nix::mount::mount(
        Some("bpffs"),
        folder,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        Some("mode=0700"),
    )
    .with_context(|| format!("cannot mount a bpffs on {}", folder.display()))?;
    if statfs(folder)?.filesystem_type() != BPF_FS_MAGIC {
        bail!("{} is no bpffs", folder.display());
    }
    Ok(())
}

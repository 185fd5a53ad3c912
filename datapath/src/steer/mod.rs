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
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, XskMap};
use aya::{Ebpf, EbpfLoader, Pod};
use culvert_packet::maps::{Clear, PeerKey, PrefixData, PrefixKey, Settings, SpiKey};
use culvert_packet::reason::DropReason;
use hashbrown::{HashMap as Wanted, HashSet};
use log::info;
use nix::net::if_::if_nametoindex;
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};

use crate::guard::Guarded;
use crate::lengths::Buffers;
use crate::settings::Xdp;

/// What to attach where.
#[derive(Clone, Debug)]
pub struct SteeringConfig {
    /// The underlay NIC.
    pub wire: String,
    /// Outer end of the host port, which captured Geneve goes to.
    pub host_outer: String,
    /// Inner end of the host port, where the workers take it; none of a TAP.
    pub host_inner: Option<String>,
    /// Folder for pins; it becomes a bpffs if it is on none.
    pub pins: PathBuf,
    /// XDP mode of the NIC.
    pub xdp: Xdp,
    /// In how many buffers a packet may be.
    pub buffers: Buffers,
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
    prefixes: LpmTrie<MapData, PrefixData, u32>,
    settings: Array<MapData, Settings>,
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
        let trie: LpmTrie<_, PrefixData, u32> = take(&mut programs, "PREFIXES")?;
        // What a datapath before this one guards, stays guarded.
        let prefixes = u32::from(trie.keys().next().is_some());
        let egress = Settings {
            host_port,
            prefixes,
        };
        settings.set(0, egress, 0)?;

        let pins = &config.pins;
        let host = match &config.host_inner {
            Some(inner) => {
                let kind = attach::Kind::host(config.buffers);
                attach::xdp(&mut programs, kind, inner, Xdp::Native, pins)?
            }
            None => {
                // That of a veth pair that was there before went with it.
                attach::give_up(pins, "host")?;
                "none"
            }
        };
        let kind = attach::Kind::wire(config.buffers);
        let wire = attach::xdp(&mut programs, kind, &config.wire, config.xdp, pins)?;
        attach::egress(&mut programs, &config.wire, pins)?;
        Ok(Self {
            spis: take(&mut programs, "SPIS")?,
            peers: take(&mut programs, "PEERS")?,
            prefixes: trie,
            settings,
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

    /// Guards those peers, and no others. All that is new is added before anything that is old is removed, as a
    /// prefix may take the place of hosts: what is in force may be what a datapath before this one has left.
    ///
    /// # Errors
    /// A map is full.
    pub fn set_guarded(&mut self, guarded: &Guarded) -> Result<()> {
        let key = |key: &PrefixKey| Key::new(key.length, key.data);
        add(&mut self.peers, &guarded.hosts).context("map of guarded peers")?;
        for (prefix, clear) in &guarded.prefixes {
            self.prefixes
                .insert(&key(prefix), *clear as u32, 0)
                .context("map of guarded prefixes")?;
        }
        if !guarded.prefixes.is_empty() {
            self.ask_prefixes(true)?;
        }
        remove_others(&mut self.peers, &guarded.hosts).context("map of guarded peers")?;
        let present: Vec<_> = self.prefixes.keys().collect::<Result<_, _>>()?;
        for old in present {
            let prefix = PrefixKey {
                length: old.prefix_len(),
                data: old.data(),
            };
            if !guarded.prefixes.contains_key(&prefix) {
                self.prefixes.remove(&old)?;
            }
        }
        self.ask_prefixes(!guarded.prefixes.is_empty())
    }

    /// Whether the programs look into the map of prefixes.
    fn ask_prefixes(&mut self, ask: bool) -> Result<()> {
        let mut settings = self.settings.get(&0, 0)?;
        settings.prefixes = u32::from(ask);
        self.settings.set(0, settings, 0)?;
        Ok(())
    }

    /// Makes `spis` those that the workers open.
    ///
    /// # Errors
    /// The map is full.
    pub fn set_spis(&mut self, spis: &HashSet<SpiKey>) -> Result<()> {
        let spis = spis.iter().map(|spi| (*spi, Clear::Drop)).collect();
        add(&mut self.spis, &spis)
            .and_then(|()| remove_others(&mut self.spis, &spis))
            .context("map of SPIs")
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

/// Adds to a map what of `wanted` it does not have.
fn add<K: Pod + Eq + std::hash::Hash>(
    map: &mut HashMap<MapData, K, u32>,
    wanted: &Wanted<K, Clear>,
) -> Result<()> {
    let present: Wanted<K, u32> = map.iter().collect::<Result<_, _>>()?;
    for (key, clear) in wanted {
        if present.get(key) != Some(&(*clear as u32)) {
            map.insert(key, *clear as u32, 0)?;
        }
    }
    Ok(())
}

/// Removes from a map what is not `wanted`.
fn remove_others<K: Pod + Eq + std::hash::Hash>(
    map: &mut HashMap<MapData, K, u32>,
    wanted: &Wanted<K, Clear>,
) -> Result<()> {
    let present: Vec<K> = map.keys().collect::<Result<_, _>>()?;
    for key in present.iter().filter(|key| !wanted.contains_key(*key)) {
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

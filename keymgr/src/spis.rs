//! The eBPF map of the SPIs that go to the workers: what the kernel is to open must not be in it.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData, MapError};
use culvert_packet::headers::mapped;
use culvert_packet::maps::SpiKey;
use culvert_proto::sa::SaId;
use log::warn;

/// Name of the map.
const MAP: &str = "SPIS";

/// The pinned map, opened when it is needed: the datapath may not have run yet, or have made it anew.
#[derive(Debug)]
pub(crate) struct Spis {
    path: PathBuf,
}

impl Spis {
    /// Below the folder that is `pins` in the datapath's settings.
    pub(crate) fn new(pins: &Path) -> Self {
        Self {
            path: pins.join("maps").join(MAP),
        }
    }

    /// Lets the kernel have the packets of an inbound SA.
    pub(crate) fn leave_to_kernel(&self, id: &SaId) {
        // Without a datapath so far, everything is the kernel's.
        if self.path.exists()
            && let Err(error) = self.remove(id)
        {
            warn!("{id}: its packets do not get to the kernel: {error:#}");
        }
    }

    fn remove(&self, id: &SaId) -> Result<()> {
        let path = self.path.display().to_string();
        let map = MapData::from_pin(&self.path).context(path)?;
        let mut map: HashMap<_, SpiKey, u32> = HashMap::try_from(Map::HashMap(map))?;
        let key = SpiKey {
            destination: match id.destination {
                std::net::IpAddr::V4(v4) => mapped(v4.octets()),
                std::net::IpAddr::V6(v6) => v6.octets(),
            },
            spi: id.spi.get(),
        };
        match map.remove(&key) {
            Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
            Err(MapError::SyscallError(error))
                if error.io_error.kind() == std::io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }
}

//! SAs for the kernel, and what becomes of Culvert's and charon's.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use culvert_proto::sa::{Direction, Keymat, Lifetime, Limits, REPLAY_WINDOW, SaId, SaSpec, Spi};
use culvert_state::region::Fingerprint;

use super::Algorithm;
use crate::charon::sa::{LEAST_WINDOW, lifetime};

/// The IP protocol.
const ESP: u8 = 50;

/// An SA for the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KernelSa {
    /// Direction, SPI, destination.
    pub id: SaId,
    /// Source address.
    pub source: IpAddr,
    /// Ties it to policies.
    pub reqid: u32,
    /// Tunnel mode; else transport mode.
    pub tunnel: bool,
    /// Algorithms.
    pub algorithm: Algorithm,
    /// Key of the AEAD with its salt, or of what encrypts.
    pub key: Keymat,
    /// Key of what authenticates; empty with an AEAD.
    pub integrity_key: Keymat,
    /// Extended sequence numbers.
    pub esn: bool,
    /// Size of the replay window in packets; inbound only.
    pub replay_window: u32,
    /// Source and destination port of UDP encapsulation.
    pub encapsulation: Option<(u16, u16)>,
    /// Bytes to which packets are padded; 0: they are not. The kernel pads in tunnel mode only.
    pub tfc: u32,
    /// Lifetimes, counted from the SA's beginning, wherever that was.
    pub lifetime: Lifetime,
}

impl KernelSa {
    /// An SA of Culvert's.
    ///
    /// # Errors
    /// The kernel does not have its cipher.
    pub fn of(sa: &SaSpec, reqid: u32) -> Result<Self, String> {
        let algorithm = Algorithm::of(sa.cipher)
            .ok_or_else(|| format!("the kernel has no {} (implicit IVs)", sa.cipher))?;
        Ok(Self {
            id: sa.id,
            source: sa.source,
            reqid,
            tunnel: false,
            algorithm,
            key: sa.keymat.clone(),
            integrity_key: Keymat::new(Vec::new()),
            esn: sa.esn,
            replay_window: sa.replay_window,
            encapsulation: sa
                .encapsulation
                .map(|udp| (udp.source_port, udp.destination_port)),
            tfc: sa.tfc.into(),
            lifetime: sa.lifetime,
        })
    }

    /// An SA of charon's, whether Culvert could serve it or not.
    ///
    /// # Errors
    /// It is not served by the kernel through us.
    pub fn of_charon(sa: &culvert_bridge::Sa) -> Result<Self, String> {
        if sa.protocol != ESP {
            return Err("AH is not served, only ESP is".to_owned());
        }
        if sa.ipcomp != 0 {
            return Err("IPComp is not served".to_owned());
        }
        if let Some(restriction) = &sa.restriction {
            return Err(format!("{restriction}: not served"));
        }
        let tunnel = is_tunnel(sa.mode)?;
        let (source, destination) = (sa.source.ip(), sa.name.destination);
        if source.is_ipv4() != destination.is_ipv4() {
            return Err(format!(
                "{source} and {destination} are not the ends of an SA"
            ));
        }
        Ok(Self {
            id: SaId {
                direction: if sa.inbound {
                    Direction::In
                } else {
                    Direction::Out
                },
                spi: Spi::new(sa.name.spi).map_err(|error| error.to_string())?,
                destination,
            },
            source,
            reqid: sa.reqid,
            tunnel,
            algorithm: Algorithm::of_transforms(sa.encryption, sa.integrity)?,
            key: Keymat::new(sa.key.bytes().to_vec()),
            integrity_key: Keymat::new(sa.integrity_key.bytes().to_vec()),
            esn: sa.esn,
            replay_window: sa.replay_window.clamp(LEAST_WINDOW, *REPLAY_WINDOW.end()),
            encapsulation: sa
                .encapsulated
                .then_some((sa.source.port(), sa.destination_port)),
            tfc: sa.tfc,
            lifetime: lifetime(sa.lifetimes),
        })
    }

    /// What stands for its keys.
    #[must_use]
    pub fn fingerprint(&self) -> Fingerprint {
        self.algorithm
            .fingerprint(self.key.bytes(), self.integrity_key.bytes())
    }
}

/// SAs that do no harm: they are to nobody, and nothing has them in a policy. With an AEAD, and without.
pub(super) fn to_nobody(ipv6: bool) -> Result<[KernelSa; 2], String> {
    // The discard-only prefix of RFC 6666, the dummy address of RFC 7600.
    let nobody: IpAddr = if ipv6 {
        Ipv6Addr::new(0x100, 0, 0, 0, 0, 0, 0, 1).into()
    } else {
        Ipv4Addr::new(192, 0, 0, 8).into()
    };
    let random = |length| {
        let mut bytes = vec![0; length];
        aws_lc_rs::rand::fill(&mut bytes).map_err(|_| "there are no random numbers")?;
        Ok::<_, String>(bytes)
    };
    let spi = random(4)?
        .iter()
        .fold(0, |spi, byte| spi << 8 | u32::from(*byte));
    let spi = Spi::new(spi | 0xc000_0000).map_err(|error| error.to_string())?;
    let sa = |algorithm, key, integrity_key| KernelSa {
        id: SaId {
            direction: Direction::Out,
            spi,
            destination: nobody,
        },
        source: nobody,
        reqid: 0,
        tunnel: false,
        algorithm,
        key: Keymat::new(key),
        integrity_key: Keymat::new(integrity_key),
        esn: false,
        replay_window: 32,
        encapsulation: None,
        tfc: 0,
        lifetime: Lifetime::default(),
    };
    Ok([
        sa(Algorithm::of_transforms(20, 0)?, random(20)?, Vec::new()),
        sa(Algorithm::of_transforms(12, 12)?, random(16)?, random(32)?),
    ])
}

/// Whether a mode of charon's (`ipsec_mode_t`) is tunnel mode; else it is transport mode.
pub(super) fn is_tunnel(mode: u32) -> Result<bool, String> {
    match mode {
        1 => Ok(false),
        2 => Ok(true),
        3 => Err("BEET mode is not served".to_owned()),
        other => Err(format!("mode {other} is not known")),
    }
}

/// The kernel's way to say that there is no limit.
pub(super) fn limits(lifetime: &Lifetime) -> netlink_packet_xfrm::LifetimeConfig {
    const NONE: u64 = netlink_packet_xfrm::constants::XFRM_INF;
    let Lifetime { soft, hard } = lifetime;
    let count = |limit: &Option<u64>| limit.unwrap_or(NONE);
    // For times it is 0, and they are signed.
    let time = |limit: &Option<u64>| limit.map_or(0, |limit| limit.clamp(1, i64::MAX as u64 >> 2));
    let [
        (soft_bytes, soft_packets, soft_add, soft_use),
        (hard_bytes, hard_packets, hard_add, hard_use),
    ] = [soft, hard].map(|limits: &Limits| {
        (
            count(&limits.bytes),
            count(&limits.packets),
            time(&limits.seconds),
            time(&limits.seconds_in_use),
        )
    });
    netlink_packet_xfrm::LifetimeConfig {
        soft_byte_limit: soft_bytes,
        hard_byte_limit: hard_bytes,
        soft_packet_limit: soft_packets,
        hard_packet_limit: hard_packets,
        soft_add_expires_seconds: soft_add,
        hard_add_expires_seconds: hard_add,
        soft_use_expires_seconds: soft_use,
        hard_use_expires_seconds: hard_use,
    }
}

impl fmt::Display for KernelSa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.id.fmt(f)
    }
}

#[cfg(test)]
mod tests;

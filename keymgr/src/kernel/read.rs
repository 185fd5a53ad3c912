//! What the kernel says of an SA. Its keys are looked at where they lie in the buffer, and not copied.

use std::io;
use std::net::IpAddr;

use culvert_proto::sa::{Direction, SaId, Spi};
use culvert_state::region::Fingerprint;
use netlink_packet_core::DecodeError;
use netlink_packet_xfrm::constants::{
    AF_INET6, IPPROTO_ESP, XFRM_MODE_TUNNEL, XFRMA_ALG_AEAD, XFRMA_ALG_AUTH_TRUNC, XFRMA_ALG_CRYPT,
    XFRMA_REPLAY_ESN_VAL, XFRMA_REPLAY_VAL,
};
use netlink_packet_xfrm::{
    Address, Replay, ReplayEsn, UserSaInfo, XFRM_ALG_AEAD_HEADER_LEN, XFRM_ALG_AUTH_HEADER_LEN,
    XFRM_ALG_HEADER_LEN, XFRM_ALG_NAME_LEN, XFRM_USER_SA_INFO_LEN,
};

use super::progress::{Progress, State};
use super::{Algorithm, STATE_ESN, link, window};

/// An SA that the kernel has.
#[derive(Clone, Debug)]
pub struct Found {
    /// SPI.
    pub spi: Spi,
    /// Destination address.
    pub destination: IpAddr,
    /// Source address.
    pub source: IpAddr,
    /// Ties it to policies.
    pub reqid: u32,
    /// Tunnel mode.
    pub tunnel: bool,
    /// Algorithms.
    pub algorithm: Algorithm,
    /// What stands for its keys. `None`: the kernel does not show them (lockdown).
    pub fingerprint: Option<Fingerprint>,
    pub(super) state: State,
}

impl Found {
    /// How far it is. The kernel does not say which direction an SA is for: both have the same numbers.
    #[must_use]
    pub fn progress(&self, direction: Direction) -> Progress {
        self.state.progress(direction)
    }

    /// What names it.
    #[must_use]
    pub fn id(&self, direction: Direction) -> SaId {
        SaId {
            direction,
            spi: self.spi,
            destination: self.destination,
        }
    }

    /// Extended sequence numbers.
    #[must_use]
    pub fn esn(&self) -> bool {
        self.state.esn
    }
}

/// What a message says of an ESP SA. `None`: it is none that has keys, as those that the kernel keeps while it waits for
/// an SA have not.
pub(super) fn found(payload: &[u8]) -> io::Result<Option<Found>> {
    let (info, rest) = payload
        .split_at_checked(XFRM_USER_SA_INFO_LEN)
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    of(info, rest)
}

/// As [`found`], of a `struct xfrm_usersa_info` and the attributes that belong to it.
pub(super) fn of(info: &[u8], rest: &[u8]) -> io::Result<Option<Found>> {
    let info = UserSaInfo::parse(info).map_err(wrong)?;
    let Ok(spi) = Spi::new(info.id.spi) else {
        return Ok(None);
    };
    if info.id.proto != IPPROTO_ESP {
        return Ok(None);
    }
    let mut keys = Keys::default();
    let (mut replay, mut legacy) = (None, None);
    for attribute in link::attributes(rest) {
        let (kind, value) = attribute?;
        match kind {
            XFRMA_ALG_AEAD => keys.aead = split(value, XFRM_ALG_AEAD_HEADER_LEN),
            XFRMA_ALG_CRYPT => keys.encryption = split(value, XFRM_ALG_HEADER_LEN),
            XFRMA_ALG_AUTH_TRUNC => keys.integrity = split(value, XFRM_ALG_AUTH_HEADER_LEN),
            XFRMA_REPLAY_ESN_VAL => replay = Some(ReplayEsn::parse(value).map_err(wrong)?),
            XFRMA_REPLAY_VAL => legacy = Some(Replay::parse(value).map_err(wrong)?),
            _ => {}
        }
    }
    let Some((algorithm, key, integrity_key)) = keys.algorithm() else {
        return Ok(None);
    };
    let shown = key.iter().chain(integrity_key).any(|byte| *byte != 0);
    let fingerprint = shown.then(|| algorithm.fingerprint(key, integrity_key));
    let window = match (&replay, &legacy) {
        (Some(replay), _) => window::from_kernel(replay),
        (None, Some(legacy)) => window::from_legacy(legacy, info.replay_window),
        (None, None) => window::full(0, 0),
    };
    let replay = replay.unwrap_or_else(|| ReplayEsn {
        oseq: legacy.map_or(0, |legacy| legacy.oseq),
        ..ReplayEsn::default()
    });
    Ok(Some(Found {
        spi,
        destination: address(&info.id.daddr, info.family),
        source: address(&info.saddr, info.family),
        reqid: info.reqid,
        tunnel: info.mode == XFRM_MODE_TUNNEL,
        algorithm,
        fingerprint,
        state: State {
            replay,
            window,
            current: info.lifetime_cur,
            esn: info.flags & STATE_ESN != 0,
        },
    }))
}

/// Algorithms as they lie in the buffer: header and key.
#[derive(Default)]
struct Keys<'a> {
    aead: Option<(&'a [u8], &'a [u8])>,
    encryption: Option<(&'a [u8], &'a [u8])>,
    integrity: Option<(&'a [u8], &'a [u8])>,
}

impl<'a> Keys<'a> {
    fn algorithm(&self) -> Option<(Algorithm, &'a [u8], &'a [u8])> {
        if let Some((header, key)) = self.aead {
            let (name, icv_bits) = (name(header)?, number(header, 1)?);
            return Some((Algorithm::Aead { name, icv_bits }, key, &[]));
        }
        let (encryption, key) = self.encryption?;
        let (integrity, integrity_key) = self.integrity?;
        let algorithm = Algorithm::Separate {
            encryption: name(encryption)?,
            integrity: name(integrity)?,
            icv_bits: number(integrity, 1)?,
        };
        Some((algorithm, key, integrity_key))
    }
}

/// Header and key.
fn split(value: &[u8], header: usize) -> Option<(&[u8], &[u8])> {
    let (header, key) = value.split_at_checked(header)?;
    let bits = number(header, 0)?;
    let key = key.get(..usize::try_from(bits.div_ceil(8)).ok()?)?;
    Some((header, key))
}

fn name(header: &[u8]) -> Option<String> {
    let name = header.get(..XFRM_ALG_NAME_LEN)?;
    let name = name.split(|byte| *byte == 0).next()?;
    Some(String::from_utf8_lossy(name).into_owned())
}

/// One of the numbers behind the name.
fn number(header: &[u8], which: usize) -> Option<u32> {
    let number = header.get(XFRM_ALG_NAME_LEN + 4 * which..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*number))
}

/// An address of this family.
pub(super) fn address(address: &Address, family: u16) -> IpAddr {
    if family == AF_INET6 {
        address.to_ipv6().into()
    } else {
        address.to_ipv4().into()
    }
}

pub(super) fn wrong(error: DecodeError) -> io::Error {
    io::Error::other(error)
}

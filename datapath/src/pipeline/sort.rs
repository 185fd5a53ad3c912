//! Sorting: where a packet's headers are, and which SA it goes or came under.

use culvert_packet::headers::{self, Address, Headers, Kind, Packet, Stop};
use culvert_packet::reason::DropReason;

use super::{Found, IN_CLEAR};
use crate::frame::Frame;
use crate::geneve::Geneve;
use crate::spd::Query;
use crate::tables::{Outbound, Tables};

/// What was found last. Packets that come together are mostly alike, and comparing costs less than hashing.
pub(super) struct Last<Q, A>(Option<(Q, A)>);

impl<Q, A> Default for Last<Q, A> {
    fn default() -> Self {
        Self(None)
    }
}

impl<Q: Copy + PartialEq, A: Copy> Last<Q, A> {
    /// What there is for `query`, by `find` if it is not the last one again. What is refused is not kept: it is counted.
    #[inline]
    pub(super) fn or_find(
        &mut self,
        query: Q,
        find: impl FnOnce(&Q) -> Result<A, DropReason>,
    ) -> Result<A, DropReason> {
        match &self.0 {
            Some((last, answer)) if *last == query => Ok(*answer),
            _ => {
                let answer = find(&query)?;
                self.0 = Some((query, answer));
                Ok(answer)
            }
        }
    }
}

/// Finds the SAs of one direction.
pub(super) trait Find {
    /// The SA of a packet that is whole and ends where its datagram does.
    fn find(&mut self, packet: &[u8], headers: &Headers) -> Result<Found, DropReason>;
}

/// Finds what packets from the host go under.
pub(super) struct ToSeal<'a> {
    tables: &'a Tables,
    last: Last<Query, u32>,
}

impl<'a> ToSeal<'a> {
    pub(super) fn by(tables: &'a Tables) -> Self {
        Self {
            tables,
            last: Last::default(),
        }
    }
}

impl Find for ToSeal<'_> {
    #[inline(always)]
    fn find(&mut self, packet: &[u8], headers: &Headers) -> Result<Found, DropReason> {
        match headers::classify(packet, headers) {
            Kind::Geneve => {}
            Kind::Truncated => return Err(DropReason::Malformed),
            _ => return Err(DropReason::NotOurs),
        }
        let ends = [headers.source, headers.destination];
        let geneve = Geneve::read(packet, headers.transport, true).ok_or(DropReason::NotOurs)?;
        let query = geneve.query(ends, true);
        let sa = self
            .last
            .or_find(query, |query| match self.tables.lookup_outbound(query) {
                Outbound::Sa(sa) => Ok(sa),
                Outbound::Bypass => Ok(IN_CLEAR),
                Outbound::Drop(reason) => Err(reason),
            })?;
        Ok(Found { sa, port: None })
    }
}

/// Finds what packets from the wire came under.
pub(super) struct ToOpen<'a> {
    tables: &'a Tables,
    last: Last<(u32, Address), u32>,
}

impl<'a> ToOpen<'a> {
    pub(super) fn by(tables: &'a Tables) -> Self {
        Self {
            tables,
            last: Last::default(),
        }
    }
}

impl Find for ToOpen<'_> {
    #[inline(always)]
    fn find(&mut self, packet: &[u8], headers: &Headers) -> Result<Found, DropReason> {
        let (spi, port) = match headers::classify(packet, headers) {
            Kind::Esp(spi) => (spi, None),
            Kind::EspInUdp(spi) => {
                let port = packet.read(headers.transport).map(u16::from_be_bytes);
                (spi, Some(port.ok_or(DropReason::Truncated)?))
            }
            Kind::Geneve => {
                let ends = [headers.source, headers.destination];
                let geneve =
                    Geneve::read(packet, headers.transport, false).ok_or(DropReason::NotOurs)?;
                self.tables.admit_clear(&geneve.query(ends, false))?;
                return Ok(Found {
                    sa: IN_CLEAR,
                    port: None,
                });
            }
            Kind::Truncated => return Err(DropReason::Truncated),
            Kind::LaterFragment | Kind::NatKeepalive | Kind::OtherUdp | Kind::Other => {
                return Err(DropReason::NotOurs);
            }
        };
        if spi < headers::FIRST_SPI {
            return Err(DropReason::ReservedSpi);
        }
        // RFC 4303 §3.4.2 [3.4.2-no-sa-discarded]
        let sa = self.last.or_find((spi, headers.destination), |_| {
            self.tables
                .lookup_inbound(spi, headers.destination)
                .ok_or(DropReason::UnknownSpi)
        })?;
        Ok(Found { sa, port })
    }
}

/// Whether a frame's headers are within it, as the walk itself does not see.
#[inline(always)]
pub(super) fn check(frame: &Frame, walked: Result<Headers, Stop>) -> Result<Headers, DropReason> {
    match walked {
        Ok(headers) if headers.transport <= headers.end && headers.end <= frame.len() => {
            Ok(headers)
        }
        Ok(_) | Err(Stop::Malformed) => Err(DropReason::Malformed),
        Err(Stop::NotIp) => Err(DropReason::NotOurs),
    }
}

/// Walks a frame's headers, once more.
pub(super) fn walk(frame: &Frame) -> Result<Headers, DropReason> {
    check(frame, headers::walk(frame.bytes()))
}

//! What the kernel announces: lifetimes, packets that want an SA, peers that move.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use culvert_proto::sa::Spi;
use netlink_packet_xfrm::constants::{
    IPPROTO_ESP, XFRM_MSG_ACQUIRE, XFRM_MSG_EXPIRE, XFRM_MSG_MAPPING, XFRMA_TMPL,
    XFRMNLGRP_ACQUIRE, XFRMNLGRP_EXPIRE, XFRMNLGRP_MAPPING,
};
use netlink_packet_xfrm::{
    UserAcquire, UserExpire, UserMapping, UserTemplate, XFRM_USER_ACQUIRE_LEN,
};

use super::link::{self, Link, Message};
use super::policy::is_ours;
use super::read::{address, wrong};

/// What the kernel announces. SAs may be those of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KernelEvent {
    /// A lifetime was reached.
    Expired {
        /// SPI.
        spi: Spi,
        /// Destination address.
        destination: IpAddr,
        /// Hard: the kernel has removed it.
        hard: bool,
    },
    /// A packet wants an SA of a policy of ours. With a policy for a prefix, this may be one between other hosts than
    /// those whose SA the policy names. The kernel says it again after 30 seconds (`net.core.xfrm_acq_expires`).
    Acquire(Acquire),
    /// A peer behind NAT sends from elsewhere. The kernel goes on sending to where it was.
    Mapping {
        /// SPI of the inbound SA that it sends under.
        spi: Spi,
        /// Destination address of that SA.
        destination: IpAddr,
        /// Where it sends from.
        remote: SocketAddr,
    },
    /// Some were lost, for want of room.
    Lost,
}

/// What wants an SA.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Acquire {
    /// The policy's.
    pub reqid: u32,
    /// Our end of the SA; in transport mode that of the packet.
    pub local: IpAddr,
    /// The peer's end.
    pub remote: IpAddr,
}

/// A socket that hears.
#[derive(Debug)]
pub struct Listener(Link);

impl Listener {
    /// Hears from now on, in the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel has no XFRM, or we may not use it.
    pub fn open() -> io::Result<Self> {
        let link = Link::open()?;
        for group in [XFRMNLGRP_EXPIRE, XFRMNLGRP_ACQUIRE, XFRMNLGRP_MAPPING] {
            link.join(group)?;
        }
        Ok(Self(link))
    }

    /// Waits so long, and hands over what has come.
    ///
    /// # Errors
    /// The socket fails.
    pub fn hear(
        &mut self,
        patience: Duration,
        mut hear: impl FnMut(KernelEvent),
    ) -> io::Result<()> {
        if !self.0.wait(Instant::now() + patience)? {
            return Ok(());
        }
        let result = self.0.receive(&mut |message| {
            if let Some(event) = event(message)? {
                hear(event);
            }
            Ok(())
        });
        match result {
            Err(error) if link::overrun(&error) => hear(KernelEvent::Lost),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => other?,
        }
        Ok(())
    }
}

/// Hears for ever.
///
/// # Errors
/// The socket fails.
pub fn listen(mut hear: impl FnMut(KernelEvent)) -> io::Result<Infallible> {
    let mut listener = Listener::open()?;
    loop {
        listener.hear(Duration::from_secs(60), &mut hear)?;
    }
}

fn event(message: &Message) -> io::Result<Option<KernelEvent>> {
    let payload = message.payload;
    Ok(match message.kind {
        XFRM_MSG_EXPIRE => {
            let expire = UserExpire::parse(payload).map_err(wrong)?;
            let id = expire.state.id;
            match Spi::new(id.spi) {
                Ok(spi) if id.proto == IPPROTO_ESP => Some(KernelEvent::Expired {
                    spi,
                    destination: address(&id.daddr, expire.state.family),
                    hard: expire.hard != 0,
                }),
                _ => None,
            }
        }
        XFRM_MSG_ACQUIRE => {
            let acquire = UserAcquire::parse(payload).map_err(wrong)?;
            let rest = payload.get(XFRM_USER_ACQUIRE_LEN..).unwrap_or_default();
            let template = template(rest)?;
            match template {
                Some(template) if is_ours(acquire.policy.priority) => {
                    Some(KernelEvent::Acquire(Acquire {
                        reqid: template.reqid,
                        local: address(&acquire.saddr, template.family),
                        remote: address(&acquire.id.daddr, template.family),
                    }))
                }
                _ => None,
            }
        }
        XFRM_MSG_MAPPING => {
            let mapping = UserMapping::parse(payload).map_err(wrong)?;
            let family = mapping.id.family;
            Spi::new(mapping.id.spi)
                .ok()
                .map(|spi| KernelEvent::Mapping {
                    spi,
                    destination: address(&mapping.id.daddr, family),
                    remote: SocketAddr::new(address(&mapping.new_saddr, family), mapping.new_sport),
                })
        }
        _ => None,
    })
}

/// The first template among attributes.
pub(super) fn template(rest: &[u8]) -> io::Result<Option<UserTemplate>> {
    for attribute in link::attributes(rest) {
        if let (XFRMA_TMPL, value) = attribute? {
            return UserTemplate::parse(value).map(Some).map_err(wrong);
        }
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::super::policy::priority;
    use super::*;
    use netlink_packet_core::{Emitable, NetlinkMessage};
    use netlink_packet_xfrm::constants::{AF_INET, AF_INET6};
    use netlink_packet_xfrm::monitor::{AcquireMessage, ExpireMessage, MappingMessage};
    use netlink_packet_xfrm::{Address, Id, UserSaId, XfrmAttrs, XfrmMessage};

    fn heard(message: XfrmMessage) -> Option<KernelEvent> {
        let mut message = NetlinkMessage::from(message);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.emit(&mut bytes);
        let mut heard = None;
        let mut each = |message: &Message| {
            heard = event(message)?;
            Ok(())
        };
        link::split(&bytes, &mut each).unwrap();
        heard
    }

    fn ip(text: &str) -> (IpAddr, Address) {
        let ip = text.parse().unwrap();
        (ip, Address::from_ip(&ip))
    }

    #[test]
    fn a_peer_that_moves_is_heard() {
        let ((destination, daddr), (remote, new_saddr)) = (ip("192.0.2.1"), ip("192.0.2.9"));
        let mut mapping = MappingMessage::default();
        mapping.map.id = UserSaId {
            daddr,
            spi: 0x1001,
            family: AF_INET,
            proto: IPPROTO_ESP,
        };
        mapping.map.new_saddr = new_saddr;
        mapping.map.new_sport = 1234;
        let moved = KernelEvent::Mapping {
            spi: Spi::new(0x1001).unwrap(),
            destination,
            remote: SocketAddr::new(remote, 1234),
        };
        assert_eq!(heard(XfrmMessage::Mapping(mapping)), Some(moved));
    }

    #[test]
    fn lifetimes_of_esp_are_heard() {
        let (destination, daddr) = ip("2001:db8::1");
        let mut message = ExpireMessage::default();
        message.expire.hard = 1;
        message.expire.state.family = AF_INET6;
        message.expire.state.id = Id {
            daddr,
            spi: 0x1001,
            proto: IPPROTO_ESP,
        };
        let expired = KernelEvent::Expired {
            spi: Spi::new(0x1001).unwrap(),
            destination,
            hard: true,
        };
        assert_eq!(heard(XfrmMessage::Expire(message.clone())), Some(expired));
        message.expire.state.id.proto = 51;
        assert_eq!(heard(XfrmMessage::Expire(message)), None);
    }

    #[test]
    fn wants_of_others_are_not_ours() {
        let ((local, saddr), (remote, daddr)) = (ip("192.0.2.1"), ip("192.0.2.2"));
        let mut message = AcquireMessage::default();
        message.acquire.saddr = saddr;
        message.acquire.id.daddr = daddr;
        message.acquire.policy.priority = priority(5);
        message.nlas = vec![XfrmAttrs::Template(vec![UserTemplate {
            family: AF_INET,
            reqid: 7,
            ..UserTemplate::default()
        }])];
        let acquire = KernelEvent::Acquire(Acquire {
            reqid: 7,
            local,
            remote,
        });
        assert_eq!(heard(XfrmMessage::Acquire(message.clone())), Some(acquire));
        message.acquire.policy.priority = 399_999;
        assert_eq!(heard(XfrmMessage::Acquire(message)), None);
    }
}

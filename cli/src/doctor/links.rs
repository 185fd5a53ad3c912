//! The interfaces of this network namespace, by netlink: sysfs shows those of the namespace that it was mounted in.

use std::io;

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoGeneve, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};

/// An interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) name: String,
    pub(super) index: u32,
    pub(super) mtu: u32,
    pub(super) up: bool,
    pub(super) kind: Kind,
}

/// What it is, as far as Culvert cares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// A Geneve tunnel; over IPv6, if it says.
    Geneve { ipv6: Option<bool> },
    /// A VLAN on the interface with this index.
    Vlan { lower: u32 },
    /// Anything else.
    Other,
}

/// All interfaces.
pub(super) fn all() -> io::Result<Vec<Link>> {
    let mut socket = Socket::new(NETLINK_ROUTE)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = NetlinkMessage::from(RouteNetlinkMessage::GetLink(LinkMessage::default()));
    request.header.flags = NLM_F_REQUEST | NLM_F_DUMP;
    request.finalize();
    let mut buffer = vec![0; request.buffer_len()];
    request.serialize(&mut buffer);
    socket.send(&buffer, 0)?;

    let mut links = Vec::new();
    loop {
        let (answer, _) = socket.recv_from_full()?;
        let mut rest = &answer[..];
        while !rest.is_empty() {
            let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                .map_err(io::Error::other)?;
            let length = usize::try_from(message.header.length).unwrap_or(rest.len());
            match message.payload {
                NetlinkPayload::Done(_) => return Ok(links),
                NetlinkPayload::Error(error) => return Err(error.to_io()),
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) => {
                    links.push(read(&link));
                }
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

fn read(message: &LinkMessage) -> Link {
    let (mut name, mut mtu, mut lower) = (String::new(), 0, 0);
    let (mut kind, mut data) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(value) => name.clone_from(value),
            LinkAttribute::Mtu(value) => mtu = *value,
            LinkAttribute::Link(value) => lower = *value,
            LinkAttribute::LinkInfo(infos) => {
                for info in infos {
                    match info {
                        LinkInfo::Kind(value) => kind = Some(value),
                        LinkInfo::Data(value) => data = Some(value),
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    let kind = match (kind, data) {
        (Some(InfoKind::Geneve), Some(InfoData::Geneve(details))) => Kind::Geneve {
            ipv6: details.iter().find_map(|detail| match detail {
                InfoGeneve::Remote(_) => Some(false),
                InfoGeneve::Remote6(_) => Some(true),
                _ => None,
            }),
        },
        (Some(InfoKind::Geneve), _) => Kind::Geneve { ipv6: None },
        (Some(InfoKind::Vlan), _) => Kind::Vlan { lower },
        _ => Kind::Other,
    };
    Link {
        name,
        index: message.header.index,
        mtu,
        up: message.header.flags.contains(LinkFlags::Up),
        kind,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_there() {
        let links = all().unwrap();
        let loopback = links.iter().find(|link| link.name == "lo").unwrap();
        assert!(loopback.index == 1 && loopback.mtu >= 1500 && loopback.kind == Kind::Other);
    }
}

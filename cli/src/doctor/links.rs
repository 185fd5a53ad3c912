//! The interfaces of this network namespace.

use std::io;

use culvert_datapath::netlink::Netlink;
use netlink_packet_route::link::{
    InfoData, InfoGeneve, InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};

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
    let links = Netlink::open()?.links()?;
    Ok(links.iter().map(read).collect())
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

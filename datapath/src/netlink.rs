//! Interfaces by route netlink, one request at a time: sysfs shows those of the network namespace that it was mounted
//! in, and the lab and containers run in others.

use std::io;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use nix::net::if_::if_nametoindex;

/// A route netlink socket.
pub struct Netlink(Socket);

impl Netlink {
    /// Opens one, in the network namespace of this thread.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self(socket))
    }

    /// All interfaces.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn links(&self) -> io::Result<Vec<LinkMessage>> {
        let all = RouteNetlinkMessage::GetLink(LinkMessage::default());
        self.ask(all, NLM_F_DUMP)
    }

    /// Sends a request and returns the links that answer it.
    fn ask(&self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<LinkMessage>> {
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        request.finalize();
        let mut buffer = vec![0; request.buffer_len()];
        request.serialize(&mut buffer);
        self.0.send(&buffer, 0)?;
        let mut links = Vec::new();
        loop {
            let (answer, _) = self.0.recv_from_full()?;
            let mut rest = &answer[..];
            while !rest.is_empty() {
                let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
                    .map_err(io::Error::other)?;
                let length = usize::try_from(message.header.length).unwrap_or(rest.len());
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(links),
                    NetlinkPayload::Error(error) if error.code.is_none() => return Ok(links),
                    NetlinkPayload::Error(error) => return Err(error.to_io()),
                    NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(found)) => {
                        links.push(found);
                    }
                    _ => {}
                }
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
            }
        }
    }

    pub(crate) fn get(&self, name: &str) -> Result<Option<LinkMessage>> {
        let mut link = LinkMessage::default();
        link.attributes.push(LinkAttribute::IfName(name.to_owned()));
        match self.ask(RouteNetlinkMessage::GetLink(link), 0) {
            Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
            result => Ok(result.with_context(|| format!("interface {name}"))?.pop()),
        }
    }

    pub(crate) fn create_veth(&self, outer: &str, inner: &str, queues: u32) -> Result<()> {
        let end = |name: &str| {
            let mut link = LinkMessage::default();
            link.attributes = vec![
                LinkAttribute::IfName(name.to_owned()),
                LinkAttribute::NumTxQueues(queues),
                LinkAttribute::NumRxQueues(queues),
            ];
            link
        };
        let mut link = end(outer);
        link.attributes.push(LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(end(inner)))),
        ]));
        self.ask(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .with_context(|| format!("cannot make the veth pair {outer}, {inner}"))?;
        Ok(())
    }

    pub(crate) fn set(&self, name: &str, attributes: Vec<LinkAttribute>, up: bool) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = if_nametoindex(name).with_context(|| format!("interface {name}"))?;
        link.attributes = attributes;
        if up {
            link.header.flags = LinkFlags::Up;
            link.header.change_mask = LinkFlags::Up;
        }
        self.ask(RouteNetlinkMessage::SetLink(link), 0)
            .with_context(|| format!("cannot set up {name}"))?;
        Ok(())
    }

    /// Gives `name` an address that nobody is reached by.
    pub(crate) fn add_address(&self, name: &str, address: Ipv4Addr) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = AddressFamily::Inet;
        message.header.prefix_len = 32;
        message.header.scope = AddressScope::Host;
        message.header.index = if_nametoindex(name).with_context(|| format!("interface {name}"))?;
        message.attributes = vec![
            AddressAttribute::Local(address.into()),
            AddressAttribute::Address(address.into()),
        ];
        self.ask(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .with_context(|| format!("cannot give {name} the address {address}"))?;
        Ok(())
    }

    pub(crate) fn delete(&self, name: &str) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = if_nametoindex(name).with_context(|| format!("interface {name}"))?;
        match self.ask(RouteNetlinkMessage::DelLink(link), 0) {
            Ok(_) => Ok(()),
            Err(error) => bail!("cannot remove {name}: {error}"),
        }
    }
}

//! A small rtnetlink client: links, addresses, routes.
//!
//! A [`Netlink`] acts on the network namespace of the thread that opened it. Each request waits for the
//! kernel's acknowledgement.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsRawFd as _;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NLM_F_REQUEST, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::Namespace;

/// The kernel's table of local addresses (`RT_TABLE_LOCAL`).
const TABLE_LOCAL: u8 = 255;
/// The largest acknowledgement, in bytes.
const ANSWER_BYTES: usize = 32 * 1024;
/// The time limit for a new address to become usable.
const ADDRESS_PATIENCE: Duration = Duration::from_secs(20);

/// The next hop of a route.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Via {
    /// Neighbours on the link.
    Link,
    /// A gateway on the link, which need not be in a subnet of the link.
    Gateway(IpAddr),
    /// This host. Replaces the kernel's own route to the address.
    Local,
}

/// A route to a prefix, out of one link.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route<'a> {
    /// The prefix's address.
    pub(crate) to: IpAddr,
    /// The prefix's length in bits.
    pub(crate) prefix: u8,
    /// The next hop.
    pub(crate) via: Via,
    /// The interface index.
    pub(crate) link: u32,
    /// The congestion control of TCP connections over this route.
    pub(crate) congestion: &'a str,
}

/// An open rtnetlink socket.
pub(crate) struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// Opens a socket in the current thread's network namespace.
    pub(crate) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("opening a netlink socket")?;
        socket.bind_auto().context("binding a netlink socket")?;
        socket
            .connect(&SocketAddr::new(0, 0))
            .context("connecting a netlink socket")?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Creates a veth pair: `name` in this namespace, `peer` in another one.
    pub(crate) fn add_veth(
        &mut self,
        name: &str,
        peer: &str,
        peer_namespace: &Namespace,
    ) -> Result<()> {
        let mut other = LinkMessage::default();
        other.attributes = vec![
            LinkAttribute::IfName(peer.to_owned()),
            LinkAttribute::NetNsFd(peer_namespace.handle().as_raw_fd()),
        ];
        let mut link = LinkMessage::default();
        link.attributes = vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::LinkInfo(vec![
                LinkInfo::Kind(InfoKind::Veth),
                LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(other))),
            ]),
        ];
        self.request(
            RouteNetlinkMessage::NewLink(link),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .with_context(|| format!("creating the link {name}"))
    }

    /// Removes a link, and the other end of a veth pair.
    pub(crate) fn remove_link(&mut self, name: &str) -> Result<()> {
        let mut link = LinkMessage::default();
        link.header.index = index_of(name)?;
        self.request(RouteNetlinkMessage::DelLink(link), 0)
            .with_context(|| format!("removing the link {name}"))
    }

    /// Sets a link up.
    pub(crate) fn set_up(&mut self, name: &str) -> Result<u32> {
        let index = index_of(name)?;
        let mut link = LinkMessage::default();
        link.header.index = index;
        link.header.flags = LinkFlags::Up;
        link.header.change_mask = LinkFlags::Up;
        self.request(RouteNetlinkMessage::SetLink(link), 0)
            .with_context(|| format!("setting the link {name} up"))?;
        Ok(index)
    }

    /// Adds an address to a link, usable at once (without duplicate address detection).
    pub(crate) fn add_address(&mut self, link: u32, address: IpAddr, prefix: u8) -> Result<()> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        message.header.prefix_len = prefix;
        message.header.index = link;
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes = vec![
            AddressAttribute::Local(address),
            AddressAttribute::Address(address),
            AddressAttribute::Flags(AddressFlags::Nodad),
        ];
        self.request(
            RouteNetlinkMessage::NewAddress(message),
            NLM_F_CREATE | NLM_F_EXCL,
        )
        .with_context(|| format!("adding the address {address}/{prefix}"))
    }

    /// Adds a route, or replaces the one to the same prefix.
    pub(crate) fn set_route(&mut self, route: &Route<'_>) -> Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(route.to);
        message.header.destination_prefix_length = route.prefix;
        message.header.protocol = RouteProtocol::Static;
        message.header.table = RouteHeader::RT_TABLE_MAIN;
        message.header.kind = RouteType::Unicast;
        message.header.scope = RouteScope::Universe;
        message.attributes = vec![
            RouteAttribute::Oif(route.link),
            RouteAttribute::Metrics(vec![RouteMetric::CcAlgo(route.congestion.to_owned())]),
        ];
        if route.prefix > 0 {
            message
                .attributes
                .push(RouteAttribute::Destination(route.to.into()));
        }
        match route.via {
            Via::Link if route.to.is_ipv4() => message.header.scope = RouteScope::Link,
            Via::Link => {}
            Via::Gateway(gateway) => {
                message.header.flags = RouteFlags::Onlink;
                message
                    .attributes
                    .push(RouteAttribute::Gateway(gateway.into()));
            }
            Via::Local => {
                message.header.table = TABLE_LOCAL;
                message.header.kind = RouteType::Local;
                message.header.protocol = RouteProtocol::Kernel;
                if route.to.is_ipv4() {
                    message.header.scope = RouteScope::Host;
                }
            }
        }
        self.request(
            RouteNetlinkMessage::NewRoute(message),
            NLM_F_CREATE | NLM_F_REPLACE,
        )
        .with_context(|| format!("adding the route to {}/{}", route.to, route.prefix))
    }

    /// Removes the kernel's own route to a local IPv6 address, so that a route [`Via::Local`] to the same
    /// address takes effect: the kernel's route has metric 0 and cannot be replaced. The kernel adds it
    /// from its work queue after the address, so this function waits for it.
    pub(crate) fn remove_local(&mut self, address: IpAddr) -> Result<()> {
        let started = Instant::now();
        loop {
            let mut message = RouteMessage::default();
            message.header.address_family = family(address);
            message.header.destination_prefix_length = 128;
            message.header.table = TABLE_LOCAL;
            message.header.kind = RouteType::Local;
            message.attributes = vec![RouteAttribute::Destination(address.into())];
            match self.request(RouteNetlinkMessage::DelRoute(message), 0) {
                Ok(()) => return Ok(()),
                Err(_absent) if started.elapsed() < ADDRESS_PATIENCE => {
                    thread::sleep(Duration::from_millis(1));
                }
                Err(error) => {
                    return Err(error.context(format!("removing the kernel's route to {address}")));
                }
            }
        }
    }

    fn request(&mut self, message: RouteNetlinkMessage, flags: u16) -> Result<()> {
        self.sequence += 1;
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
        header.sequence_number = self.sequence;
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0).context("sending to netlink")?;

        let mut answer: Vec<u8> = Vec::with_capacity(ANSWER_BYTES);
        self.socket
            .recv(&mut answer, 0)
            .context("receiving from netlink")?;
        let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer)
            .context("parsing netlink's answer")?;
        match answer.payload {
            NetlinkPayload::Error(error) => match error.code {
                None => Ok(()),
                Some(code) => {
                    Err(io::Error::from_raw_os_error(-code.get())).context("netlink refused")
                }
            },
            other => bail!("netlink answered with {other:?} instead of an acknowledgement"),
        }
    }
}

/// The index of a link in the current thread's network namespace.
pub(crate) fn index_of(name: &str) -> Result<u32> {
    nix::net::if_::if_nametoindex(name).with_context(|| format!("the link {name} does not exist"))
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

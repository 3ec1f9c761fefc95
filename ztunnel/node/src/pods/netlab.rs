//! Devices, addresses and routes for tests that need root. Each function changes the network namespace
//! of the calling thread.

use std::net::IpAddr;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket as Netlink, SocketAddr as NetlinkAddress, protocols::NETLINK_ROUTE};

/// Creates a pair of devices: one with this name in this namespace, the other one with these
/// attributes.
pub(crate) fn veth(name: &str, other: Vec<LinkAttribute>) {
    let mut far = LinkMessage::default();
    far.attributes = other;
    let mut link = LinkMessage::default();
    link.attributes = vec![
        LinkAttribute::IfName(name.into()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(far))),
        ]),
    ];
    request(RouteNetlinkMessage::NewLink(link));
}

/// Adds an address to a device, in a network of 24 or 64 bits. It can be used at once.
pub(crate) fn add_address(device: u32, address: IpAddr) {
    request(RouteNetlinkMessage::NewAddress(new_address(
        device,
        address,
        AddressHeaderFlags::Nodad,
    )));
}

/// As [`add_address`]; an IPv6 address cannot be used before it is known to be unique.
pub(crate) fn add_tentative_address(device: u32, address: IpAddr) {
    request(RouteNetlinkMessage::NewAddress(new_address(
        device,
        address,
        AddressHeaderFlags::empty(),
    )));
}

fn new_address(device: u32, address: IpAddr, flags: AddressHeaderFlags) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.index = device;
    (message.header.family, message.header.prefix_len) = match address {
        IpAddr::V4(_) => (AddressFamily::Inet, 24),
        IpAddr::V6(_) => (AddressFamily::Inet6, 64),
    };
    message.header.flags = flags;
    message.attributes = vec![
        AddressAttribute::Local(address),
        AddressAttribute::Address(address),
    ];
    message
}

/// Adds a default route through a gateway that never answers. Packets to it arrive at the other end of
/// the pair.
pub(crate) fn add_default_route(device: u32, gateway: IpAddr) {
    let (family, hop, neighbour_address) = match gateway {
        IpAddr::V4(v4) => (
            AddressFamily::Inet,
            RouteAddress::Inet(v4),
            NeighbourAddress::Inet(v4),
        ),
        IpAddr::V6(v6) => (
            AddressFamily::Inet6,
            RouteAddress::Inet6(v6),
            NeighbourAddress::Inet6(v6),
        ),
    };
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.table = 254;
    route.header.protocol = RouteProtocol::Static;
    route.header.kind = RouteType::Unicast;
    route.attributes = vec![RouteAttribute::Gateway(hop), RouteAttribute::Oif(device)];
    request(RouteNetlinkMessage::NewRoute(route));
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = family;
    neighbour.header.ifindex = device;
    neighbour.header.state = NeighbourState::Permanent;
    neighbour.attributes = vec![
        NeighbourAttribute::Destination(neighbour_address),
        NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
    ];
    request(RouteNetlinkMessage::NewNeighbour(neighbour));
}

/// Sets a device up.
pub(crate) fn set_link_up(index: u32) {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    request(RouteNetlinkMessage::SetLink(link));
}

/// The index of a device.
pub(crate) fn index(name: &str) -> u32 {
    nix::net::if_::if_nametoindex(name).unwrap()
}

/// Deletes a routing rule of a family by its priority.
pub(crate) fn delete_rule(family: AddressFamily, priority: u32) {
    let mut rule = RuleMessage::default();
    rule.header.family = family;
    rule.attributes = vec![RuleAttribute::Priority(priority)];
    send(RouteNetlinkMessage::DelRule(rule), 0);
}

/// Deletes the default route of a routing table by a device.
pub(crate) fn delete_default_route(family: AddressFamily, table: u32, device: u32) {
    let mut route = RouteMessage::default();
    route.header.address_family = family;
    route.header.kind = RouteType::Local;
    route.header.scope = RouteScope::NoWhere;
    route.attributes = vec![RouteAttribute::Table(table), RouteAttribute::Oif(device)];
    send(RouteNetlinkMessage::DelRoute(route), 0);
}

/// Sends one request over netlink and expects success.
pub(crate) fn request(message: RouteNetlinkMessage) {
    send(message, NLM_F_CREATE | NLM_F_EXCL);
}

fn send(message: RouteNetlinkMessage, flags: u16) {
    let mut socket = Netlink::new(NETLINK_ROUTE).unwrap();
    socket.bind_auto().unwrap();
    socket.connect(&NetlinkAddress::new(0, 0)).unwrap();
    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = NLM_F_REQUEST | NLM_F_ACK | flags;
    packet.finalize();
    let mut bytes = vec![0; packet.buffer_len()];
    packet.serialize(&mut bytes);
    socket.send(&bytes, 0).unwrap();
    let (answer, _) = socket.recv_from_full().unwrap();
    let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&answer).unwrap();
    match answer.payload {
        NetlinkPayload::Error(error) => assert!(error.code.is_none(), "{error}"),
        other => panic!("unexpected answer: {other:?}"),
    }
}

//! What a pod's namespace needs so that the proxy can deliver a connection that bears the
//! client's address, and get the replies.
//!
//! The delivery socket is transparent and marked. `tcp_fwmark_accept` hands its mark to the
//! application's accepted socket, a rule sends marked packets to a table of ours, and the one
//! route of that table calls every address local: so replies to the client's address come back
//! to the proxy over loopback instead of leaving the pod. `fwmark_reflect` does the same for
//! the resets that no socket sends. Set over netlink; idempotent; gone with the namespace.

use std::io;

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NLMSG_ERROR, NetlinkBuffer,
    NetlinkMessage,
};
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use netlink_packet_route::route::{
    RouteAttribute, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_ROUTE};

use super::Error;
use super::sysctl::turn_on;

/// The mark of delivery sockets; the value Istio's in-pod rules use for the same purpose.
pub const DELIVERY_MARK: u32 = 0x111;
const MARK_MASK: u32 = 0xfff;
const TABLE: u32 = 15006;
const RULE_PRIORITY: u32 = 15006;
const FWMARK_ACCEPT: &str = "net/ipv4/tcp_fwmark_accept";
/// A reset that no socket sends, because nobody listens, bears the mark of what it answers
/// (Documentation/networking/ip-sysctl.rst). Without it the reset leaves the pod towards the
/// client, and the proxy waits for an answer in vain.
const FWMARK_REFLECT: [(&str, bool); 2] = [
    ("net/ipv4/fwmark_reflect", true),
    ("net/ipv6/fwmark_reflect", false),
];

/// What waits for a listener that is closed goes to another one on the same port, that of the
/// process which takes over, instead of being reset (Linux 5.14).
const MIGRATE: &str = "net/ipv4/tcp_migrate_req";

/// Prepares the namespace of the calling thread. What is there already is left alone.
///
/// # Errors
/// Names the object that the kernel refused.
pub fn prepare() -> Result<(), Error> {
    let mut netlink = Netlink::open().map_err(|source| Error::Route {
        what: "route",
        source,
    })?;
    let loopback = nix::net::if_::if_nametoindex("lo").map_err(|errno| Error::Route {
        what: "loopback device",
        source: errno.into(),
    })?;
    let v6 = std::path::Path::new("/proc/thread-self/net/if_inet6").exists();
    turn_on(FWMARK_ACCEPT)?;
    turn_on(MIGRATE)?;
    for (key, always) in FWMARK_REFLECT {
        if always || v6 {
            turn_on(key)?;
        }
    }
    let families = [(AddressFamily::Inet, true), (AddressFamily::Inet6, v6)];
    for (family, _present) in families.into_iter().filter(|(_, present)| *present) {
        netlink
            .request(RouteNetlinkMessage::NewRoute(route(family, loopback)))
            .map_err(|source| Error::Route {
                what: "local route",
                source,
            })?;
        netlink
            .request(RouteNetlinkMessage::NewRule(rule(family)))
            .map_err(|source| Error::Route {
                what: "routing rule",
                source,
            })?;
    }
    Ok(())
}

fn route(family: AddressFamily, loopback: u32) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family;
    message.header.kind = RouteType::Local;
    message.header.scope = RouteScope::Host;
    message.header.protocol = RouteProtocol::Static;
    message.attributes = vec![RouteAttribute::Oif(loopback), RouteAttribute::Table(TABLE)];
    message
}

fn rule(family: AddressFamily) -> RuleMessage {
    let mut message = RuleMessage::default();
    message.header.family = family;
    message.header.action = RuleAction::ToTable;
    message.attributes = vec![
        RuleAttribute::Priority(RULE_PRIORITY),
        RuleAttribute::FwMark(DELIVERY_MARK),
        RuleAttribute::FwMask(MARK_MASK),
        RuleAttribute::Table(TABLE),
    ];
    message
}

/// Turns the loopback device of the calling thread's namespace on; a new namespace has it off.
pub(super) fn raise_loopback() -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = nix::net::if_::if_nametoindex("lo")?;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Netlink::open()?.request(RouteNetlinkMessage::SetLink(message))
}

/// A route socket that sends one request at a time and reads its answer.
struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    fn open() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&NetlinkAddress::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Sends one request; "it exists already" counts as done.
    fn request(&mut self, message: RouteNetlinkMessage) -> io::Result<()> {
        self.sequence += 1;
        let mut packet = NetlinkMessage::from(message);
        packet.header.sequence_number = self.sequence;
        packet.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (answer, _kernel) = self.socket.recv_from_full()?;
        acknowledged(&answer)
    }
}

/// Reads the kernel's answer; "it exists already" counts as done. Only the error code is of
/// interest, so the rest of the message is not parsed.
fn acknowledged(answer: &[u8]) -> io::Result<()> {
    let message = NetlinkBuffer::new_checked(answer).map_err(io::Error::other)?;
    if message.message_type() != NLMSG_ERROR {
        return Ok(());
    }
    let body = ErrorBuffer::new_checked(message.payload()).map_err(io::Error::other)?;
    match body
        .code()
        .map(|code| io::Error::from_raw_os_error(-code.get()))
    {
        Some(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

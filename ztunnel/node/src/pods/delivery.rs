//! Routing in a pod's network namespace: the proxy delivers connections with the client's address,
//! and receives the replies.
//!
//! The delivery socket is transparent and marked. `tcp_fwmark_accept` copies its mark to the
//! application's accepted socket. A rule sends marked packets to a routing table of the proxy, whose
//! only route makes every address local: so replies to the client's address return to the proxy over
//! loopback instead of leaving the pod. `fwmark_reflect` does the same for resets that no socket
//! sends. The setup is idempotent, uses netlink, and ends with the namespace.

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
use super::sysctl::{disable, enable};

/// The mark of delivery sockets; Istio's rules inside the pod use the same value for this purpose.
pub const DELIVERY_MARK: u32 = 0x111;
const MARK_MASK: u32 = 0xfff;
const TABLE: u32 = 15006;
const RULE_PRIORITY: u32 = 15006;
const FWMARK_ACCEPT: &str = "net/ipv4/tcp_fwmark_accept";
/// A reset that the kernel sends because no socket listens gets the mark of the packet that it answers
/// (Documentation/networking/ip-sysctl.rst). Without the mark the reset leaves the pod towards the
/// client, and the proxy waits for an answer in vain.
const FWMARK_REFLECT_V4: &str = "net/ipv4/fwmark_reflect";
const FWMARK_REFLECT_V6: &str = "net/ipv6/fwmark_reflect";

/// Connections in the queue of a listener that closes move to another listener on the same port,
/// such as that of the process which takes over, instead of being reset (Linux 5.14).
const MIGRATE: &str = "net/ipv4/tcp_migrate_req";

/// Connection tracking does not begin in the middle of a connection. It would take a packet of a
/// connection that is older than the rules of a node agent for a new connection, and the rules would
/// redirect it: the connections that a pod has open when it joins the mesh would break. When a pod joins
/// for the first time, its rules are older than this setting by part of a second, and connections that
/// send in between do break. The setting stays when the pod leaves
/// (Documentation/networking/nf_conntrack-sysctl.rst).
const TRACK_OPEN_CONNECTIONS: &str = "net/netfilter/nf_conntrack_tcp_loose";

/// Whether a namespace was prepared before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Prepared {
    /// All rules and routes were there.
    Before,
    /// At least one was missing.
    Now,
}

/// Prepares the network namespace of the calling thread. Existing objects stay as they are.
///
/// # Errors
/// When the kernel refuses an object; the error names it.
pub fn prepare() -> Result<Prepared, Error> {
    let mut netlink = Netlink::open().map_err(|source| Error::Route {
        what: "route",
        source,
    })?;
    let loopback = nix::net::if_::if_nametoindex("lo").map_err(|errno| Error::Route {
        what: "loopback device",
        source: errno.into(),
    })?;
    let has_v6 = std::path::Path::new("/proc/thread-self/net/if_inet6").exists();
    enable(FWMARK_ACCEPT)?;
    enable(MIGRATE)?;
    disable(TRACK_OPEN_CONNECTIONS)?;
    enable(FWMARK_REFLECT_V4)?;
    if has_v6 {
        enable(FWMARK_REFLECT_V6)?;
    }
    let v6 = has_v6.then_some(AddressFamily::Inet6);
    let mut prepared = Prepared::Before;
    for family in [AddressFamily::Inet].into_iter().chain(v6) {
        let route = netlink
            .request(RouteNetlinkMessage::NewRoute(route(family, loopback)))
            .map_err(|source| match source.kind() {
                io::ErrorKind::NetworkDown => Error::LoopbackDown,
                _ => Error::Route {
                    what: "local route",
                    source,
                },
            })?;
        let rule = netlink
            .request(RouteNetlinkMessage::NewRule(rule(family)))
            .map_err(|source| Error::Route {
                what: "routing rule",
                source,
            })?;
        if [route, rule].contains(&Prepared::Now) {
            prepared = Prepared::Now;
        }
    }
    Ok(prepared)
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

/// Sets the loopback device of the calling thread's network namespace up; in a new namespace it is
/// down.
pub(super) fn set_loopback_up() -> io::Result<()> {
    let mut message = LinkMessage::default();
    message.header.index = nix::net::if_::if_nametoindex("lo")?;
    message.header.flags = LinkFlags::Up;
    message.header.change_mask = LinkFlags::Up;
    Netlink::open()?
        .request(RouteNetlinkMessage::SetLink(message))
        .map(drop)
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

    /// Sends one request. The answer that the object exists already is a success.
    fn request(&mut self, message: RouteNetlinkMessage) -> io::Result<Prepared> {
        self.sequence += 1;
        let mut packet = NetlinkMessage::from(message);
        packet.header.sequence_number = self.sequence;
        packet.header.flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        let (answer, _kernel) = self.socket.recv_from_full()?;
        check_answer(&answer)
    }
}

/// Checks the kernel's answer. The answer that the object exists already is a success. Only the error
/// code is needed, so the rest of the message is not parsed.
fn check_answer(answer: &[u8]) -> io::Result<Prepared> {
    let message = NetlinkBuffer::new_checked(answer).map_err(io::Error::other)?;
    if message.message_type() != NLMSG_ERROR {
        return Ok(Prepared::Now);
    }
    let body = ErrorBuffer::new_checked(message.payload()).map_err(io::Error::other)?;
    match body
        .code()
        .map(|code| io::Error::from_raw_os_error(-code.get()))
    {
        Some(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(Prepared::Before),
        Some(error) => Err(error),
        None => Ok(Prepared::Now),
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use nix::sched::{CloneFlags, unshare};

    use super::*;

    /// As in the namespace of a sandbox that the container runtime has removed.
    #[test]
    #[ignore = "needs root"]
    fn a_namespace_whose_loopback_is_down_is_told_from_a_missing_capability() {
        let prepared = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let down = prepare();
            set_loopback_up().unwrap();
            (down, prepare())
        });
        let (down, up) = prepared.join().unwrap();
        assert!(matches!(down, Err(Error::LoopbackDown)), "{down:?}");
        up.unwrap();
    }
}

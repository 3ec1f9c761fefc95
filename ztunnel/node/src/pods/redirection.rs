//! Detects redirection rules inside a pod, such as those of Istio's node agent: then every inbound
//! connection that is not HBONE arrives at the proxy's port 15006, and the kernel's connection
//! tracking keeps the dialled address. The fast path cannot lead to a pod whose rules change the
//! destination of connections, because the connection that arrives is not the one that was recorded
//! when it left.
//!
//! At enrollment both of the kernel's rule tables are searched. The exact rules do not matter: a table
//! that translates destinations of inbound connections may translate any of them.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_NETFILTER};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpStream;

use super::socket::{canonical, local_of};
use mesh::INBOUND_PORT;

/// `NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETCHAIN` and `NFT_MSG_NEWCHAIN`
/// (linux/netfilter/nfnetlink.h, nf_tables.h).
const GET_CHAINS: u16 = 10 << 8 | 4;
const CHAIN: u16 = 10 << 8 | 3;
/// Attributes of a chain, and of its hook.
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
/// `NF_INET_PRE_ROUTING`.
const PREROUTING: u32 = 0;
/// The type bits of an attribute's type field (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// `sizeof(struct nlmsghdr)`, `sizeof(struct nfgenmsg)` and `sizeof(struct nlattr)`.
const HEADER: usize = 16;
const GENERIC: usize = 4;
const ATTRIBUTE: usize = 4;
/// More datagrams than the chains of any pod fill; bounds the loop that reads them.
const MAX_DATAGRAMS: usize = 1024;

/// Whether rules in the calling thread's network namespace translate the destinations of inbound
/// connections. If the kernel cannot be asked, the first redirected connection shows it.
#[must_use]
pub fn is_redirected() -> bool {
    legacy_tables() || nf_tables().unwrap_or(false)
}

/// Whether a proxy serves the calling thread's network namespace: a process listens on the port for
/// inbound connections.
#[must_use]
pub fn is_served() -> bool {
    let any: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    any.into_iter().any(|address| {
        // Without SO_REUSEPORT the kernel refuses an address on which another socket listens.
        let probe = std::net::TcpListener::bind((address, INBOUND_PORT));
        probe.is_err_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    })
}

/// Whether the NAT table of iptables-legacy exists in this namespace. It exists once it was used.
fn legacy_tables() -> bool {
    ["ip_tables_names", "ip6_tables_names"].iter().any(|file| {
        let tables = std::fs::read_to_string(format!("/proc/thread-self/net/{file}"));
        tables.is_ok_and(|tables| tables.lines().any(|table| table == "nat"))
    })
}

fn nf_tables() -> io::Result<bool> {
    let mut socket = Socket::new(NETLINK_NETFILTER)?;
    socket.bind_auto()?;
    socket.connect(&NetlinkAddress::new(0, 0))?;
    let length = u32::try_from(HEADER + GENERIC).unwrap_or(u32::MAX);
    let mut request = Vec::with_capacity(HEADER + GENERIC);
    request.extend(length.to_ne_bytes());
    request.extend(GET_CHAINS.to_ne_bytes());
    request.extend((NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    // Sequence and port; then all families, version 0, no resource.
    request.extend([0; 8 + GENERIC]);
    socket.send(&request, 0)?;
    for _ in 0..MAX_DATAGRAMS {
        let (datagram, _kernel) = socket.recv_from_full()?;
        match search_chains(&datagram) {
            Chains::Redirect => return Ok(true),
            Chains::End => return Ok(false),
            Chains::More => {}
        }
    }
    Ok(false)
}

/// The result of a search through one datagram.
#[derive(Debug, PartialEq, Eq)]
enum Chains {
    /// A chain translates the destinations of inbound connections.
    Redirect,
    /// The list has ended, or the kernel does not support the request.
    End,
    /// More datagrams may follow.
    More,
}

fn search_chains(datagram: &[u8]) -> Chains {
    let mut rest = datagram;
    while let Some((head, _)) = rest.split_first_chunk::<HEADER>() {
        let [a, b, c, d, e, f, ..] = *head;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let Some(body) = rest.get(HEADER..length) else {
            return Chains::End;
        };
        match u16::from_ne_bytes([e, f]) {
            CHAIN if translates_inbound(body.get(GENERIC..).unwrap_or_default()) => {
                return Chains::Redirect;
            }
            kind if [NLMSG_DONE, NLMSG_ERROR].contains(&kind) => return Chains::End,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Chains::More
}

/// Whether a chain does address translation in the prerouting hook.
fn translates_inbound(chain: &[u8]) -> bool {
    let kind = attribute(chain, CHAIN_TYPE).unwrap_or_default();
    let hook = attribute(chain, CHAIN_HOOK).and_then(|hook| attribute(hook, HOOK_NUMBER));
    kind.strip_suffix(&[0]).unwrap_or(kind) == b"nat"
        && hook == Some(PREROUTING.to_be_bytes().as_slice())
}

/// The first attribute of a type.
fn attribute(mut rest: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (&[a, b, c, d], _) = rest.split_first_chunk::<ATTRIBUTE>()?;
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = rest.get(ATTRIBUTE..length)?;
        if u16::from_ne_bytes([c, d]) & TYPE_MASK == wanted {
            return Some(value);
        }
        rest = rest.get(length.next_multiple_of(4)..)?;
    }
}

/// The destination that the client of a plaintext connection dialled, and whether rules inside the pod
/// redirected the connection. Only the kernel is asked, and only if the connection's local port is the
/// proxy's: a client cannot claim another destination.
///
/// # Errors
/// When the connection has ended already.
pub fn dialled_of(stream: &TcpStream) -> io::Result<(SocketAddr, bool)> {
    let local = local_of(stream)?;
    if local.port() != INBOUND_PORT {
        return Ok((local, false));
    }
    // Without a translation, or without connection tracking, the client dialled this port itself.
    let original = redirected(stream, local);
    Ok((original.unwrap_or(local), original.is_some()))
}

/// The dialled destination if a rule redirected the connection to this socket; otherwise none.
///
/// # Errors
/// When the connection has ended already.
pub fn redirected_from(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    Ok(redirected(stream, local_of(stream)?))
}

fn redirected(stream: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    tracked(stream, local).filter(|dialled| *dialled != local)
}

/// `SO_ORIGINAL_DST` or `IP6T_SO_ORIGINAL_DST`; the former also for an IPv4 connection of an IPv6
/// listener.
fn tracked(stream: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    if local.is_ipv4() {
        let found = getsockopt(stream, sockopt::OriginalDst).ok()?;
        let port = u16::from_be(found.sin_port);
        Some(SocketAddr::from((
            found.sin_addr.s_addr.to_ne_bytes(),
            port,
        )))
    } else {
        let found = getsockopt(stream, sockopt::Ip6tOriginalDst).ok()?;
        let port = u16::from_be(found.sin6_port);
        Some(canonical(SocketAddr::from((found.sin6_addr.s6_addr, port))))
    }
}

#[cfg(test)]
mod tests;

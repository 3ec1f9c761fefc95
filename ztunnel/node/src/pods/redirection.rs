//! Whether somebody else's rules inside a pod redirect what comes in, as those of Istio's node
//! agent do: every inbound connection that is not HBONE then reaches the proxy's port 15006, with
//! the address that was dialled kept by the kernel's connection tracking. A pod of this node whose
//! own rules change the destination of a connection cannot be called on the direct lane, because
//! what arrives there is not what was written down when it left.
//!
//! Rules are looked for when the pod is enrolled, in both of the kernel's tables. The exact rules
//! do not matter: whoever translates addresses of incoming connections may translate any.

use std::io;
use std::net::SocketAddr;

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
/// The bits of an attribute's type that are its type (`NLA_TYPE_MASK`).
const TYPE_MASK: u16 = 0x3fff;
/// `sizeof(struct nlmsghdr)`, `sizeof(struct nfgenmsg)` and `sizeof(struct nlattr)`.
const HEADER: usize = 16;
const GENERIC: usize = 4;
const ATTRIBUTE: usize = 4;
/// More datagrams than the chains of any pod fill: the answer ends somewhere.
const MOST_DATAGRAMS: usize = 1024;

/// Whether the namespace of the calling thread translates the destinations of what comes in.
/// Where the kernel cannot be asked, it is told apart by the first connection that arrives so.
#[must_use]
pub fn is_redirected() -> bool {
    legacy_tables() || nf_tables().unwrap_or(false)
}

/// The old tables exist in a namespace once somebody has used them there.
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
    for _ in 0..MOST_DATAGRAMS {
        let (datagram, _kernel) = socket.recv_from_full()?;
        match look_through(&datagram) {
            Chains::Redirect => return Ok(true),
            Chains::End => return Ok(false),
            Chains::More => {}
        }
    }
    Ok(false)
}

/// What a datagram says about chains.
#[derive(Debug, PartialEq, Eq)]
enum Chains {
    /// One of them translates what comes in.
    Redirect,
    /// That was all, or the kernel does not know what was asked.
    End,
    /// There may be more.
    More,
}

fn look_through(datagram: &[u8]) -> Chains {
    let mut rest = datagram;
    while let Some((head, _)) = rest.split_first_chunk::<HEADER>() {
        let [a, b, c, d, e, f, ..] = *head;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        let Some(body) = rest.get(HEADER..length) else {
            return Chains::End;
        };
        match u16::from_ne_bytes([e, f]) {
            CHAIN if translates(body.get(GENERIC..).unwrap_or_default()) => {
                return Chains::Redirect;
            }
            kind if [NLMSG_DONE, NLMSG_ERROR].contains(&kind) => return Chains::End,
            _ => {}
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    Chains::More
}

/// Whether a chain is one of address translation, in the way of what comes in.
fn translates(chain: &[u8]) -> bool {
    let kind = attribute(chain, CHAIN_TYPE).unwrap_or_default();
    let hook = attribute(chain, CHAIN_HOOK).and_then(|hook| attribute(hook, HOOK_NUMBER));
    kind.strip_suffix(&[0]).unwrap_or(kind) == b"nat"
        && hook == Some(PREROUTING.to_be_bytes().as_slice())
}

/// The attribute of a type, the first if there are several.
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

/// What the client of a plaintext connection has dialled, and whether rules inside the pod have
/// redirected it here. Only the kernel is asked, and only about a connection whose own address is
/// the proxy's port: nobody who connects can name another destination than the one dialled.
///
/// # Errors
/// When the connection is gone already.
pub fn dialled_of(stream: &TcpStream) -> io::Result<(SocketAddr, bool)> {
    let local = local_of(stream)?;
    if local.port() != INBOUND_PORT {
        return Ok((local, false));
    }
    // Without a translation, or without connection tracking, the port itself was dialled.
    let original = redirected(stream, local);
    Ok((original.unwrap_or(local), original.is_some()))
}

/// What was dialled before a rule sent the connection to this socket; none where no rule did.
///
/// # Errors
/// When the connection is gone already.
pub fn redirected_from(stream: &TcpStream) -> io::Result<Option<SocketAddr>> {
    Ok(redirected(stream, local_of(stream)?))
}

fn redirected(stream: &TcpStream, local: SocketAddr) -> Option<SocketAddr> {
    tracked(stream, local).filter(|dialled| *dialled != local)
}

/// `SO_ORIGINAL_DST` and `IP6T_SO_ORIGINAL_DST`; an IPv4 connection of an IPv6 listener has the
/// former.
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

//! Captured DNS: which resolver a question was for, and where its answer comes from.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ztunnel_ebpf_types::Client;

use super::maps::failed;
use super::{Error, Kernel};
use mesh::NetnsCookie;

impl Kernel {
    /// The resolver that a captured question was meant for, by its client's end as `recvfrom()`
    /// returns it. It may be asked for any number of questions: a connected socket asks many. None:
    /// someone sent to the proxy's port directly, or the socket has been silent while tens of
    /// thousands of others asked.
    ///
    /// A socket that is not connected may have several resolvers. Over IPv4 each question is
    /// exact; over IPv6, or from a socket that the application has bound to an address, it is the
    /// one that was asked last.
    ///
    /// Questions over TCP are found by [`original_destination`](Self::original_destination).
    ///
    /// One system call; meant for every question.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn resolver_of(
        &self,
        cookie: NetnsCookie,
        client: SocketAddr,
    ) -> Result<Option<SocketAddr>, Error> {
        let key = Client {
            cookie: cookie.0,
            address: client.ip().into(),
            port: client.port().into(),
            zero: 0,
        };
        let resolvers = &self.maps.resolvers;
        let found = resolvers.get(&key).map_err(failed(resolvers, "read"))?;
        Ok(found.and_then(|resolver| {
            let port = u16::try_from(resolver.port).ok()?;
            Some(SocketAddr::new(resolver.address.into(), port))
        }))
    }
}

/// The source address that the answer to a captured question must have, if not the listener's own
/// (`IP_PKTINFO`, `ipi_spec_dst`): the application is told by it which of several resolvers has
/// answered. From the listener's own address, the answer comes from the one that was asked last.
#[must_use]
pub fn reply_source(client: SocketAddr) -> Option<Ipv4Addr> {
    match client.ip().to_canonical() {
        IpAddr::V4(own) if own.is_loopback() && own != Ipv4Addr::LOCALHOST => Some(own),
        _ => None,
    }
}

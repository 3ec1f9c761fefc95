//! Captured DNS over UDP: the resolver of a query, and the source address of its reply.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::maps::{client_key, failed};
use super::{Error, Kernel};
use mesh::NetnsCookie;

impl Kernel {
    /// The resolver of a captured query, by the query's source as `recvfrom()` returns it. The entry
    /// stays: a connected socket sends many queries. None: a client sent to the proxy's port
    /// directly, or the entry was evicted.
    ///
    /// An unconnected socket may have several resolvers. Over IPv4 the result is exact; over IPv6,
    /// or from a socket that the application has bound to an address, it is the resolver of the
    /// last query.
    ///
    /// A query over TCP needs no lookup: its resolver is the local address of its connection.
    ///
    /// One system call; meant for every query.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn resolver_of(
        &self,
        cookie: NetnsCookie,
        client: SocketAddr,
    ) -> Result<Option<SocketAddr>, Error> {
        let key = client_key(cookie, client);
        let resolvers = &self.maps.resolvers;
        let found = resolvers.get(&key).map_err(failed(resolvers, "read"))?;
        Ok(found.and_then(|resolver| {
            let port = u16::try_from(resolver.port).ok()?;
            Some(SocketAddr::new(resolver.address.into(), port))
        }))
    }
}

/// The source address that the reply to a captured query must have (`IP_PKTINFO`, `ipi_spec_dst`),
/// if it is not the listener's own: it identifies the resolver to the application's socket. A reply
/// from the listener's own address appears to come from the resolver of the last query.
#[must_use]
pub fn reply_source(client: SocketAddr) -> Option<Ipv4Addr> {
    match client.ip().to_canonical() {
        IpAddr::V4(source) if source.is_loopback() && source != Ipv4Addr::LOCALHOST => Some(source),
        _ => None,
    }
}

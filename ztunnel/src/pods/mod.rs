//! The pods that live on this node: their network namespaces, and the sockets and routes that
//! the proxy needs inside them.
//!
//! A pod is enrolled in four steps, each of which can be repeated: open its namespace
//! ([`Netns`]), make room for delivery with the client's address ([`delivery`]), open the
//! listeners ([`Listeners`]), and last, from `node`, turn capture on. Connections of a pod that are
//! no longer allowed are ended by [`destroy()`]. Nothing here knows about eBPF; nothing here reads
//! or writes a connection.

pub mod delivery;
mod destroy;
mod error;
#[cfg(test)]
pub(crate) mod netlab;
mod netns;
mod rehearsal;
mod socket;

pub use destroy::{Connection, Destroyed, Error as DestroyError, Failure, Outcome, Way, destroy};
pub use error::Error;
pub use netns::{Netns, addresses_here};
pub use rehearsal::{Rehearsal, rehearse};
pub use socket::{Dial, Listeners, PROXY_PORTS, Source, abort_on_drop, accept, local_of, peer_of};

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::mesh::{Uid, Workload};

/// A pod that is enrolled on this node. Shared by all workers.
#[derive(Debug)]
pub struct Pod {
    /// Which workload of the mesh it is.
    pub uid: Uid,
    /// Its network namespace.
    pub netns: Arc<Netns>,
    /// The addresses by which it can be called: those on its interfaces, without loopback and
    /// link-local ones.
    pub addresses: Vec<IpAddr>,
}

impl Pod {
    /// The address by which others know a client inside the pod. The kernel gives loopback as the
    /// source of a captured IPv6 connection, and of one that was bound to a port beforehand.
    #[must_use]
    pub fn known_as(&self, client: SocketAddr) -> SocketAddr {
        let ip = client.ip();
        let own = self
            .addresses
            .iter()
            .find(|own| ip.is_loopback() && own.is_ipv4() == ip.is_ipv4());
        SocketAddr::new(own.copied().unwrap_or(ip), client.port())
    }

    /// Whether `address` is one of the pod's own, by its interfaces or by what the mesh says.
    #[must_use]
    pub fn owns(&self, address: IpAddr, workload: &Workload) -> bool {
        self.addresses.contains(&address) || workload.workload_ips.contains(&address)
    }
}

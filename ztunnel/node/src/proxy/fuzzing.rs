//! The door for the fuzz targets: what a peer asks for, and the header for an application.

use std::net::{IpAddr, SocketAddr};

use super::{inbound, proxy_protocol};
use mesh::Authority;
use mesh::{Identity, Snapshot, Workload};

/// Where a tunnel of this authority leads in a pod, if it may: the destination that policies
/// judge, and the address that was asked for.
#[must_use]
pub fn target(
    authority: &Authority,
    workload: &Workload,
    (addresses, at): (&[IpAddr], IpAddr),
    mesh: &Snapshot,
) -> Option<(SocketAddr, SocketAddr)> {
    inbound::target_of(authority, workload, (addresses, at), mesh)
}

/// The PROXY header for an application.
#[must_use]
pub fn proxy_header(
    client: SocketAddr,
    server: SocketAddr,
    identity: Option<&Identity>,
) -> Vec<u8> {
    proxy_protocol::header(client, server, identity)
}

//! The cgroups in which a pod's applications have opened their sockets. The kernel programs capture
//! the sockets of one cgroup and of those below it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use super::destroy::{Error, diag::Diag};
use mesh::{INBOUND_PORT, OUTBOUND_PORT};

/// The ids of the cgroups of the applications' TCP sockets in the calling thread's network namespace,
/// each with the address of one socket. Sockets of proxies do not count: those of a cgroup that listens
/// on the proxy's ports.
///
/// # Errors
/// When the exchange with the kernel fails.
pub fn application_cgroups() -> Result<BTreeMap<u64, SocketAddr>, Error> {
    let sockets = Diag::open()?.list_open()?;
    let is_proxys = |port| port == INBOUND_PORT || port == OUTBOUND_PORT;
    let listeners = sockets.iter().filter(|socket| socket.listens);
    let of_proxies: BTreeSet<u64> = listeners
        .filter(|socket| is_proxys(socket.local.port()))
        .map(|socket| socket.cgroup)
        .collect();
    let mut cgroups = BTreeMap::new();
    for socket in sockets {
        if !of_proxies.contains(&socket.cgroup) {
            cgroups.entry(socket.cgroup).or_insert(socket.local);
        }
    }
    Ok(cgroups)
}

//! The steps of enrolling one pod.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{EnrollError, Wanted};
use crate::kernel::{Kernel, NetnsCookie, PodCapture};
use crate::mesh::Snapshot;
use crate::path::Config;
use crate::pods::{Listeners, Netns, Place, Pod, addresses_here, delivery, is_redirected};

/// Opens the pod's namespace and the listeners in there, one set for each worker; those for DNS
/// where it is captured.
pub(super) fn prepare(
    wanted: &Wanted,
    config: &Config,
) -> Result<(Arc<Pod>, Vec<Listeners>), EnrollError> {
    let netns = Netns::of(&wanted.netns)?;
    let (addresses, listeners, redirected) = netns.visit(|| {
        delivery::prepare()?;
        let listeners: Result<Vec<_>, _> = (0..config.workers)
            .map(|_| Listeners::open(config.dns.is_some(), config.socks5))
            .collect();
        let addresses = addresses_here().map_err(EnrollError::Addresses)?;
        Ok::<_, EnrollError>((addresses, listeners?, is_redirected()))
    })??;
    let pod = Pod {
        uid: wanted.uid.clone(),
        account: wanted.account.clone(),
        netns: Arc::new(netns),
        addresses,
        redirected: redirected.into(),
    };
    Ok((Arc::new(pod), listeners))
}

/// Turns capture on.
pub(super) fn capture(
    kernel: &Kernel,
    netns: &Netns,
    addresses: &[IpAddr],
    inbound: &OwnedFd,
    dns: bool,
) -> Result<(), EnrollError> {
    let cookie = NetnsCookie(netns.cookie());
    let pod = PodCapture {
        cookie,
        netns: netns.as_fd(),
        addresses,
        inbound: inbound.as_fd(),
        dns,
    };
    Ok(kernel.enroll(&pod)?)
}

/// The addresses under which the pod is called: what its interfaces bear and what the mesh says.
pub(super) fn captured_addresses(pod: &Pod, mesh: &Snapshot) -> Vec<IpAddr> {
    // The mesh's come first: the first of each family is what captured sockets are bound to.
    let mut addresses: Vec<IpAddr> = pod
        .workload(mesh)
        .map(|workload| workload.workload_ips.to_vec())
        .unwrap_or_default();
    for own in &pod.addresses {
        if !addresses.contains(own) {
            addresses.push(*own);
        }
    }
    addresses.retain(|address| pod.addresses.contains(address) || pod.addresses.is_empty());
    addresses
}

/// Whether the file now leads to another namespace than the one that is held open. A file that
/// is gone leads nowhere, which is no reason to stop serving the pod; and a descriptor never leads
/// anywhere else.
pub(super) fn is_another(netns: &Netns) -> bool {
    match netns.place() {
        Place::Path(path) => Netns::open(path).is_ok_and(|now| now.cookie() != netns.cookie()),
        Place::Handed(_) => false,
    }
}

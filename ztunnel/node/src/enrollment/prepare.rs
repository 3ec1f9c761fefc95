//! The steps of enrolling one pod.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use super::{DesiredPod, EnrollError, PodKey};
use crate::bpf::{self, Kernel, PodCapture};
use crate::pods::{
    self, Extra, Listeners, Netns, NetnsSource, Opened, Pod, addresses_here, delivery,
    is_redirected,
};
use crate::proxy::ProxyState;
use mesh::NetnsCookie;
use mesh::Snapshot;

/// Opens the pod's namespace and the listeners in there, one set for each worker; those for DNS
/// and SOCKS where they are wanted and their ports are free.
pub(super) fn prepare(
    wanted: &DesiredPod,
    shared: &ProxyState,
    mesh: &Snapshot,
) -> Result<(Arc<Pod>, Opened), EnrollError> {
    let config = &shared.config;
    let netns = Netns::of(&wanted.netns)?;
    // Before the listeners: they would take every second connection from whoever serves the pod.
    if shared.kernel.is_none() && is_captured(&netns) {
        return Err(EnrollError::Captured);
    }
    let extras = [
        (Extra::Dns, config.dns.is_some()),
        (Extra::Socks5, config.socks5),
        (Extra::Tunnels, speaks_hbone(wanted, mesh)),
    ];
    let extras = extras
        .into_iter()
        .filter_map(|(extra, on)| on.then_some(extra));
    let extras: Vec<Extra> = extras.collect();
    let (addresses, opened, redirected) = netns.visit(|| {
        delivery::prepare()?;
        let opened = Listeners::open(config.workers, &extras);
        let addresses = addresses_here().map_err(EnrollError::Addresses)?;
        Ok::<_, EnrollError>((addresses, opened?, is_redirected()))
    })??;
    let pod = Pod {
        uid: wanted.uid.clone(),
        account: wanted.account.clone(),
        netns: Arc::new(netns),
        addresses,
        redirected: redirected.into(),
    };
    Ok((Arc::new(pod), opened))
}

/// Whether the mesh says that a pod speaks HBONE itself. Istio's own proxy listens on the port there
/// too, so it is the proxy's as long as the pod does not take it.
fn speaks_hbone(wanted: &DesiredPod, mesh: &Snapshot) -> bool {
    let workload = mesh.workload_by_uid(&wanted.uid).filter(|workload| {
        let account = wanted.account.as_ref();
        account.is_none_or(|account| *account == workload.service_account)
    });
    workload.is_some_and(|workload| workload.native_tunnel)
}

/// Whether the kernel programs of another proxy capture the pod. Where the kernel does not say, the
/// pod's first connection shows it (`Node::recheck_pods`).
fn is_captured(netns: &Netns) -> bool {
    bpf::is_captured(netns.as_fd()).unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot find out whether programs of another proxy capture the pod");
        false
    })
}

/// Says what a pod is served without, and what becomes of it. `programs`: whether kernel programs
/// capture it.
pub(super) fn warn_of(without: &[(Extra, pods::Error)], pod: &PodKey, programs: bool) {
    for (extra, error) in without {
        let port = extra.port();
        let consequence = match extra {
            Extra::Dns if programs => {
                "its names are not answered on the node: what it asks goes to its own resolvers"
            }
            Extra::Dns => {
                "its names are not answered on the node: what rules redirect goes to whoever has \
                 the port"
            }
            Extra::Tunnels => {
                tracing::info!(%pod, port, "the pod speaks HBONE itself: tunnels to it are its own");
                continue;
            }
            Extra::Socks5 => "it cannot say by SOCKS where it wants to go",
        };
        tracing::warn!(
            %pod, port, %error,
            "somebody else in the pod has a port of the proxy's, and the pod is served without it \
             until it is enrolled anew: {consequence}"
        );
    }
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
        NetnsSource::Path(path) => {
            Netns::open(path).is_ok_and(|now| now.cookie() != netns.cookie())
        }
        NetnsSource::Handed(_) => false,
    }
}

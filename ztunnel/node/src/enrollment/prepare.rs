//! The steps of enrolling one pod.

use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use super::{DesiredPod, EnrollError, PodKey};
use crate::bpf::{self, CaptureListeners, Kernel, PodCapture};
use crate::pods::{
    self, Listeners, MarkListener, Missing, Netns, NetnsSource, Opened, OptionalListener, Pod,
    interface_addresses, is_redirected,
    routing::{self, Existing},
};
use crate::proxy::ProxyState;
use mesh::NetnsCookie;
use mesh::{Snapshot, Workload};

/// Opens a set of listeners for each worker inside the pod's namespace. Listeners for DNS and SOCKS
/// are included if the settings enable them and their ports are free.
pub(super) fn prepare(
    desired: &DesiredPod,
    netns: Netns,
    shared: &ProxyState,
    mesh: &Snapshot,
) -> Result<(Arc<Pod>, Opened), EnrollError> {
    let config = &shared.config;
    let optional = [
        (OptionalListener::Dns, config.dns.is_some()),
        (OptionalListener::Socks5, config.socks5),
        (OptionalListener::Hbone, speaks_hbone(desired, mesh)),
    ];
    let optional = optional
        .into_iter()
        .filter_map(|(listener, enabled)| enabled.then_some(listener));
    let optional: Vec<OptionalListener> = optional.collect();
    let (addresses, opened, redirected) = netns.visit(|| {
        routing::prepare_delivery()?;
        let mark = shared
            .kernel
            .as_ref()
            .map(|kernel| |listener: BorrowedFd<'_>, role| kernel.mark_listener(listener, role));
        let mark = mark.as_ref().map(|mark| mark as MarkListener<'_>);
        let opened = Listeners::open(config.workers, &optional, mark);
        let addresses = interface_addresses().map_err(EnrollError::Addresses)?;
        let redirected = is_redirected();
        if redirected {
            keep_translation();
        }
        Ok::<_, EnrollError>((addresses, opened?, redirected))
    })??;
    let announced = desired.announced.as_deref().map(|announced| Workload {
        workload_ips: addresses.iter().copied().collect(),
        ..announced.clone()
    });
    let pod = Pod {
        uid: desired.uid.clone(),
        account: desired.account.clone(),
        announced: announced.map(Arc::new),
        netns: Arc::new(netns),
        addresses,
        redirected: redirected.into(),
    };
    Ok((Arc::new(pod), opened))
}

/// Keeps the connections that rules have redirected working when the node agent deletes the rules. A pod is
/// served without it, too.
pub(super) fn keep_translation() {
    if let Err(error) = pods::keep_translation() {
        tracing::debug!(%error, "connections that rules have redirected break when the pod leaves the mesh");
    }
}

/// Whether the mesh says that a pod speaks HBONE itself. Like Istio's ztunnel, the proxy listens on
/// the HBONE port anyway, unless the pod has taken it.
fn speaks_hbone(desired: &DesiredPod, mesh: &Snapshot) -> bool {
    let workload = mesh.workload_by_uid(&desired.uid).filter(|workload| {
        let account = desired.account.as_ref();
        account.is_none_or(|account| *account == workload.service_account)
    });
    workload.is_some_and(|workload| workload.native_tunnel)
}

/// Refuses a pod that the kernel programs of another proxy capture, before listeners are opened in it:
/// they would take connections away from the proxy that serves the pod.
pub(super) fn refuse_captured(netns: &Netns) -> Result<(), EnrollError> {
    if is_captured(netns) {
        let served = netns.visit(pods::is_served).unwrap_or(false);
        return Err(EnrollError::Captured { served });
    }
    Ok(())
}

/// Whether the kernel programs of another proxy capture the pod. If the kernel cannot say, the pod's
/// first connection shows it (`Node::recheck_pods`).
fn is_captured(netns: &Netns) -> bool {
    bpf::is_captured(netns.as_fd()).unwrap_or_else(|error| {
        tracing::debug!(%error, "cannot check whether the programs of another proxy capture the pod");
        false
    })
}

/// Warns of listeners that could not be opened because their ports are in use, and of the
/// consequence. `programs`: whether kernel programs capture the pod.
pub(super) fn warn_of_missing(missing: &[Missing], pod: &PodKey, programs: bool) {
    for Missing { listener, error } in missing {
        let port = listener.port();
        let consequence = match listener {
            OptionalListener::Dns if programs => {
                "the proxy does not answer the pod's DNS queries; they go to the pod's own resolvers"
            }
            OptionalListener::Dns => {
                "the proxy does not answer the pod's DNS queries; redirected queries go to the \
                 process that has the port"
            }
            OptionalListener::Hbone => {
                tracing::info!(%pod, port, "the pod speaks HBONE itself: it terminates its own tunnels");
                continue;
            }
            OptionalListener::Socks5 => {
                "applications in the pod cannot use the proxy's SOCKS server"
            }
        };
        tracing::warn!(
            %pod, port, %error,
            "another process in the pod has a port of the proxy, and the pod is served without that \
             port until it is enrolled again: {consequence}"
        );
    }
}

/// Copies of a set's listeners, for the programs. None where rules capture.
///
/// # Errors
/// When this process has no descriptor left.
pub(super) fn capture_listeners(
    set: &Listeners,
) -> std::io::Result<Option<CaptureListeners<OwnedFd>>> {
    let copy = |listener: &TcpListener| listener.as_fd().try_clone_to_owned();
    let Some(captured) = &set.captured else {
        return Ok(None);
    };
    Ok(Some(CaptureListeners {
        inbound: copy(&set.inbound)?,
        outbound: copy(&captured.outbound)?,
        dns: captured.dns.as_ref().map(copy).transpose()?,
    }))
}

/// Turns capture on.
pub(super) fn capture(
    kernel: &Kernel,
    netns: &Netns,
    addresses: &[IpAddr],
    listeners: &CaptureListeners<OwnedFd>,
) -> Result<(), EnrollError> {
    netns.visit(|| routing::prepare_capture(addresses, Existing::Replace))??;
    let pod = PodCapture {
        cookie: NetnsCookie(netns.cookie()),
        netns: netns.as_fd(),
        addresses,
        listeners: CaptureListeners {
            inbound: listeners.inbound.as_fd(),
            outbound: listeners.outbound.as_fd(),
            dns: listeners.dns.as_ref().map(OwnedFd::as_fd),
        },
    };
    Ok(kernel.enroll(&pod)?)
}

/// The pod's addresses to capture: those of the mesh and of its interfaces.
pub(super) fn captured_addresses(pod: &Pod, mesh: &Snapshot) -> Vec<IpAddr> {
    // The mesh's come first: the first IPv4 address is the source of captured connections.
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

/// Whether the file now refers to another namespace than the open one. If the file is gone, the pod
/// is still served. A descriptor always refers to the same namespace.
pub(super) fn was_replaced(netns: &Netns) -> bool {
    match netns.source() {
        NetnsSource::Path(path) => {
            Netns::open(path).is_ok_and(|now| now.cookie() != netns.cookie())
        }
        NetnsSource::Descriptor(_) => false,
    }
}

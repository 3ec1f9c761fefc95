//! Which connections the kernel may carry: pure functions of the connection and a view. They are
//! built from `route` and `authorize`, so the fast path carries only what the proxy would allow.

use std::net::{IpAddr, SocketAddr};

use smallvec::SmallVec;

use super::{
    Backend, Ends, FastPathConnection, FastPathEntry, FastPathKey, InboundEntry, MAX_BACKENDS,
    Opener,
};
use crate::authorize::{Authorization, InboundRequest, authorize};
use crate::route::{OutboundRequest, Route, is_behind_waypoint, is_outside, options};
use crate::{DemandKey, LocalPod, View, Workload};

/// The fast-path entry of a pod and a destination; `None` if the proxy has to carry all of its
/// connections. `absent` lists keys that the control plane does not have (on-demand discovery).
#[must_use]
pub fn outbound_entry(
    key: &FastPathKey,
    absent: &[DemandKey],
    view: &View,
) -> Option<FastPathEntry> {
    let client = view.pod(key.pod)?;
    let source = view.workload(key.pod)?;
    let request = OutboundRequest {
        absent,
        ..OutboundRequest::new(source, key.destination)
    };
    let mut backends = SmallVec::new();
    let mut total = 0_u64;
    let visited = options(&request, view, |route, weight| {
        total += u64::from(weight);
        let has_room = backends.len() < MAX_BACKENDS;
        let backend = route.and_then(|route| direct_backend(client, source, &route, weight, view));
        if let Some(backend) = backend
            && has_room
            && backend.to.is_ipv4() == key.destination.is_ipv4()
        {
            backends.push(backend);
        }
    });
    visited.ok()?;
    let total = u32::try_from(total).ok()?;
    (!backends.is_empty()).then_some(FastPathEntry { backends, total })
}

/// The backend that a route leads to, if the route needs no proxy.
fn direct_backend(
    client: &LocalPod,
    source: &Workload,
    route: &Route,
    weight: u32,
    view: &View,
) -> Option<Backend> {
    match route {
        Route::Passthrough { to, workload, .. } => {
            // A pod of this node authorizes inbound plaintext itself.
            let served = workload.as_ref().is_some_and(|w| view.serves(w));
            (!served).then_some(Backend {
                to: *to,
                server: None,
                weight,
                ends: Ends::Apart,
            })
        }
        Route::Direct {
            to,
            server,
            workload,
            ends,
            ..
        } => policy_allows(client, source, workload, *to, view).then_some(Backend {
            to: *to,
            server: Some(*server),
            weight,
            ends: *ends,
        }),
        Route::Tunnel(_) | Route::Resolve { .. } => None,
    }
}

/// Whether policy lets a pod of this node reach another one from each address that the kernel may
/// choose. If a dry-run policy applies, the proxy has to see every connection.
fn policy_allows(
    client: &LocalPod,
    source: &Workload,
    workload: &Workload,
    to: SocketAddr,
    view: &View,
) -> bool {
    let mut addresses = client
        .addresses
        .iter()
        .filter(|address| address.is_ipv4() == to.is_ipv4())
        .peekable();
    addresses.peek().is_some()
        && addresses.all(|address| {
            let result = authorize_direct(source, *address, workload, to, view);
            result.verdict.is_allow() && result.dry_runs.is_empty()
        })
}

fn authorize_direct(
    source: &Workload,
    source_ip: IpAddr,
    workload: &Workload,
    to: SocketAddr,
    view: &View,
) -> Authorization {
    let request = InboundRequest {
        workload,
        source: Some(&source.identity),
        source_ip,
        destination: to,
    };
    authorize(&request, &view.mesh)
}

/// Whether the kernel may deliver plaintext from outside the mesh to a pod without the proxy. If
/// iptables rules inside the pod redirect inbound connections, it may not.
#[must_use]
pub fn inbound_allowed(entry: &InboundEntry, view: &View) -> bool {
    if view.pod(entry.pod).is_none_or(|pod| pod.redirected) {
        return false;
    }
    authorize_plaintext(entry, view).is_some_and(|result| result.dry_runs.is_empty())
}

/// The authorization of plaintext from outside the mesh; `None` if the proxy has to handle the
/// connection or policy denies it.
fn authorize_plaintext(entry: &InboundEntry, view: &View) -> Option<Authorization> {
    let (pod, workload) = (view.pod(entry.pod)?, view.workload(entry.pod)?);
    let request = InboundRequest {
        workload,
        source: None,
        source_ip: entry.from,
        destination: entry.to,
    };
    // A workload with an application tunnel rarely gets plaintext, so the proxy carries it.
    let eligible = workload.application_tunnel.is_none() && pod.addresses.contains(&entry.to.ip());
    let result = authorize(&request, &view.mesh);
    (eligible && result.verdict.is_allow()).then_some(result)
}

/// Whether an open connection may stay open. Connections of a pod that this node no longer serves
/// are left alone.
#[must_use]
pub fn may_stay(connection: &FastPathConnection, view: &View) -> bool {
    if view.pod(connection.pod).is_none() {
        return true;
    }
    let Some(workload) = view.workload(connection.pod) else {
        return false;
    };
    if connection.opener == Opener::Outside {
        let entry = InboundEntry {
            pod: connection.pod,
            to: connection.server,
            from: connection.client.ip(),
        };
        return authorize_plaintext(&entry, view).is_some();
    }
    let request = OutboundRequest::new(workload, connection.dialled);
    // The destination may have a waypoint now, which this connection would bypass.
    if is_behind_waypoint(&request, view) {
        return false;
    }
    let (client, server) = (connection.client, connection.server);
    match connection.server_pod {
        Some(pod) if view.pod(pod).is_none() => true,
        Some(pod) => view.workload(pod).is_some_and(|destination| {
            let is_direct = view.direct(workload, destination, server.ip()).is_some();
            let authorize = || authorize_direct(workload, client.ip(), destination, server, view);
            is_direct && authorize().verdict.is_allow()
        }),
        None => is_outside(workload, server, view),
    }
}

#[cfg(test)]
mod tests;

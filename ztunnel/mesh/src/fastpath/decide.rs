//! Which connections the kernel may carry: pure functions of the connection and a view. They are
//! built from `route` and `authorize`, so the fast path carries only what the proxy would allow.

use std::net::{IpAddr, SocketAddr};

use smallvec::SmallVec;

use super::{
    Backend, FastPathConnection, FastPathEntry, FastPathKey, Fate, InboundEntry, JoinMode,
    MAX_BACKENDS, Opener,
};
use crate::authorize::{Authorization, InboundRequest, authorize};
use crate::route::{
    Destinations, OutboundRequest, Route, destinations, is_behind_waypoint, is_outside,
};
use crate::{LocalPod, NetnsCookie, ResourceKey, View, Workload};

/// The fast-path entry that a decision about a connection gives for later connections of the same
/// pod to the same destination; `None` if the proxy has to carry all of them. `destinations` come
/// from the decision, and `view` is the one that it was made by.
#[must_use]
pub fn entry(key: &FastPathKey, destinations: &Destinations, view: &View) -> Option<FastPathEntry> {
    let client = view.pod(key.pod).filter(|pod| !pod.leaving)?;
    let source = view.workload(key.pod)?;
    let mut backends = SmallVec::new();
    let mut total = 0_u64;
    destinations.visit_each(source, key.destination, view, |route, weight| {
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
    let total = u32::try_from(total).ok()?;
    (!backends.is_empty()).then_some(FastPathEntry { backends, total })
}

/// The entry that is valid by another view than that of the decision, which writes it or removes
/// it after a change. `absent` lists keys that the control plane does not have (on-demand
/// discovery).
#[must_use]
pub fn entry_after_change(
    key: &FastPathKey,
    absent: &[ResourceKey],
    view: &View,
) -> Option<FastPathEntry> {
    let request = OutboundRequest {
        absent,
        ..OutboundRequest::new(view.workload(key.pod)?, key.destination)
    };
    entry(key, &destinations(&request, view)?, view)
}

/// Whether connections that an entry has led to may go on by this view, although the entry is no longer
/// valid.
#[must_use]
pub fn opened_may_go_on(key: &FastPathKey, entry: &FastPathEntry, view: &View) -> bool {
    let Some(client) = view.pod(key.pod) else {
        return false;
    };
    entry.backends.iter().all(|backend| {
        let mut addresses = client.addresses.iter();
        let address = addresses.find(|address| address.is_ipv4() == backend.to.is_ipv4());
        address.is_some_and(|address| {
            let opened = FastPathConnection {
                pod: key.pod,
                server_pod: backend.server,
                opener: Opener::Pod,
                client: SocketAddr::new(*address, 0),
                server: backend.to,
                dialled: key.destination,
                socket: 0,
                opened: 0,
            };
            fate(&opened, view) != Fate::Ends
        })
    })
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
                join_mode: JoinMode::Apart,
            })
        }
        Route::Direct {
            to,
            server,
            workload,
            join_mode,
            ..
        } => policy_allows(client, source, workload, *to, view).then_some(Backend {
            to: *to,
            server: Some(*server),
            weight,
            join_mode: *join_mode,
        }),
        Route::Tunnel(_) => None,
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
        http: None,
    };
    authorize(&request, &view.mesh)
}

/// The fast-path entry that the authorization of a connection gives for later plaintext connections
/// of the client to the same destination; `None` if the proxy has to carry them. `view` is the one
/// that the connection was authorized by.
#[must_use]
pub fn inbound_entry(
    pod: NetnsCookie,
    request: &InboundRequest<'_>,
    authorization: &Authorization,
    view: &View,
) -> Option<InboundEntry> {
    let local = view.pod(pod).filter(|pod| !pod.leaving)?;
    let kernel_delivers = request.source.is_none()
        && !local.redirected
        && is_eligible(local, request.workload, request.destination)
        && authorization.verdict.is_allow()
        && authorization.dry_runs.is_empty();
    kernel_delivers.then_some(InboundEntry {
        pod,
        to: request.destination,
        from: request.source_ip,
    })
}

/// Whether the kernel may deliver plaintext to this destination. A workload with an application
/// tunnel rarely gets plaintext, so the proxy carries it.
fn is_eligible(pod: &LocalPod, workload: &Workload, to: SocketAddr) -> bool {
    workload.application_tunnel.is_none() && pod.addresses.contains(&to.ip())
}

/// Whether an entry is valid by another view than that of the authorization that gave it. If
/// iptables rules inside the pod redirect inbound connections, it is not.
#[must_use]
pub fn inbound_allowed(entry: &InboundEntry, view: &View) -> bool {
    if view
        .pod(entry.pod)
        .is_none_or(|pod| pod.redirected || pod.leaving)
    {
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
        http: None,
    };
    let result = authorize(&request, &view.mesh);
    let is_allowed = is_eligible(pod, workload, entry.to) && result.verdict.is_allow();
    is_allowed.then_some(result)
}

/// Whether this node captures the connections of a pod.
fn is_captured(pod: NetnsCookie, view: &View) -> bool {
    view.pod(pod).is_some_and(|pod| !pod.leaving)
}

/// What happens to an open connection by this view. Connections of a pod that this node no longer
/// captures are left alone.
#[must_use]
pub fn fate(connection: &FastPathConnection, view: &View) -> Fate {
    let stays_if = |allowed: bool| if allowed { Fate::Stays } else { Fate::Ends };
    if !is_captured(connection.pod, view) {
        return Fate::Stays;
    }
    if connection.opener == Opener::Outside {
        let entry = InboundEntry {
            pod: connection.pod,
            to: connection.server,
            from: connection.client.ip(),
        };
        return stays_if(authorize_plaintext(&entry, view).is_some());
    }
    let Some(workload) = view.client(connection.pod) else {
        return Fate::Ends;
    };
    let request = OutboundRequest::new(workload, connection.dialled);
    // The destination may have a waypoint now, which this connection would bypass.
    if is_behind_waypoint(&request, view) {
        return Fate::Ends;
    }
    let (client, server) = (connection.client, connection.server);
    match connection.server_pod {
        Some(pod) if !is_captured(pod, view) => Fate::Stays,
        Some(pod) => stays_if(view.workload(pod).is_some_and(|destination| {
            let is_direct = view.direct(workload, destination, server.ip()).is_some();
            let authorize = || authorize_direct(workload, client.ip(), destination, server, view);
            is_direct && authorize().verdict.is_allow()
        })),
        None if is_outside(workload, server, view) => Fate::Stays,
        None => Fate::Drains,
    }
}

#[cfg(test)]
mod tests;

//! Which connections may go by themselves? Pure functions of the connection and a view: they never
//! await, lock or read a clock. They ask the same questions as `route` and `authorize`, of which
//! they are made: what may go directly is what would be let through on the slow path.

use std::net::{IpAddr, SocketAddr};

use smallvec::SmallVec;

use super::{
    Backend, Ends, FastPathConnection, FastPathEntry, FastPathKey, InboundEntry, MAX_BACKENDS,
    Opener,
};
use crate::authorize::{Authorization, InboundRequest, authorize};
use crate::route::{OutboundRequest, Route, is_behind_waypoint, is_outside, options};
use crate::{DemandKey, LocalPod, NetnsCookie, View, Workload};

/// What holds for a call: none where all of it is the proxy's. `absent` is what the control plane
/// has said is not in the mesh, where the mesh is known in part only.
#[must_use]
pub fn outbound_entry(
    call: &FastPathKey,
    absent: &[DemandKey],
    view: &View,
) -> Option<FastPathEntry> {
    let client = view.pod(call.pod)?;
    let source = view.workload(call.pod)?;
    let request = OutboundRequest {
        absent,
        ..OutboundRequest::new(source, call.destination)
    };
    let mut verdict = FastPathEntry {
        backends: SmallVec::new(),
        total: 0,
    };
    let mut total = 0_u64;
    let told = options(&request, view, |route, weight| {
        total += u64::from(weight);
        let room = verdict.backends.len() < MAX_BACKENDS;
        let direct = route.and_then(|route| by_itself(client, source, &route, view));
        if let Some((to, server, ends)) = direct
            && room
            && to.is_ipv4() == call.destination.is_ipv4()
        {
            verdict.backends.push(Backend {
                to,
                server,
                weight,
                ends,
            });
        }
    });
    told.ok()?;
    verdict.total = u32::try_from(total).ok()?;
    (!verdict.backends.is_empty()).then_some(verdict)
}

/// Where a route leads that needs no proxy.
fn by_itself(
    client: &LocalPod,
    source: &Workload,
    route: &Route,
    view: &View,
) -> Option<(SocketAddr, Option<NetnsCookie>, Ends)> {
    match route {
        Route::Passthrough { to, workload, .. } => {
            // A pod that is served here judges what arrives in the clear by itself.
            let served = workload.as_ref().is_some_and(|w| view.serves(w));
            (!served).then_some((*to, None, Ends::Apart))
        }
        Route::Direct {
            to,
            server,
            workload,
            ends,
            ..
        } => allows(client, source, workload, *to, view).then_some((*to, Some(*server), *ends)),
        Route::Tunnel(_) | Route::Resolve { .. } => None,
    }
}

/// Whether policy lets a pod of this node reach another one, from whichever of its addresses the
/// kernel chooses. Where a policy is on trial the proxy has to see every connection.
fn allows(
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
            let judged = judge(source, *address, workload, to, view);
            judged.verdict.is_allow() && judged.dry_runs.is_empty()
        })
}

fn judge(
    source: &Workload,
    source_ip: IpAddr,
    workload: &Workload,
    to: SocketAddr,
    view: &View,
) -> Authorization {
    let arrival = InboundRequest {
        workload,
        source: Some(&source.identity),
        source_ip,
        destination: to,
    };
    authorize(&arrival, &view.mesh)
}

/// Whether plaintext from outside may go past the proxy into a pod. Where rules inside the pod
/// redirect it, it never does.
#[must_use]
pub fn inbound_holds(arrival: &InboundEntry, view: &View) -> bool {
    if view.pod(arrival.pod).is_none_or(|pod| pod.redirected) {
        return false;
    }
    admits(arrival, view).is_some_and(|judged| judged.dry_runs.is_empty())
}

/// The judgement about plaintext from outside, if it is let in.
fn admits(arrival: &InboundEntry, view: &View) -> Option<Authorization> {
    let (pod, workload) = (view.pod(arrival.pod)?, view.workload(arrival.pod)?);
    let judged = InboundRequest {
        workload,
        source: None,
        source_ip: arrival.from,
        destination: arrival.to,
    };
    // Where the application has a tunnel of its own, plaintext is rare and stays with the proxy.
    let past = workload.application_tunnel.is_none() && pod.addresses.contains(&arrival.to.ip());
    let judgement = authorize(&judged, &view.mesh);
    (past && judgement.verdict.is_allow()).then_some(judgement)
}

/// Whether a connection that is open may stay. What a pod that is no longer served here has open
/// is none of our business.
#[must_use]
pub fn may_stay(flow: &FastPathConnection, view: &View) -> bool {
    if view.pod(flow.pod).is_none() {
        return true;
    }
    let Some(own) = view.workload(flow.pod) else {
        return false;
    };
    if flow.opener == Opener::Outside {
        let arrived = InboundEntry {
            pod: flow.pod,
            to: flow.server,
            from: flow.client.ip(),
        };
        return admits(&arrived, view).is_some();
    }
    let request = OutboundRequest::new(own, flow.dialled);
    // What was dialled may have got a waypoint, which this connection would go around.
    if is_behind_waypoint(&request, view) {
        return false;
    }
    match flow.server_pod {
        Some(server) if view.pod(server).is_none() => true,
        Some(server) => view.workload(server).is_some_and(|workload| {
            view.direct(own, workload, flow.server.ip()).is_some()
                && judge(own, flow.client.ip(), workload, flow.server, view)
                    .verdict
                    .is_allow()
        }),
        None => is_outside(own, flow.server, view),
    }
}

#[cfg(test)]
mod tests;

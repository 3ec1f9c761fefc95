//! Where a connection of a pod goes: a pure function of the dialled address, a view and a random
//! number.
//!
//! An address outside the mesh is passed through. A destination of the mesh that cannot be reached
//! as its policies demand (its waypoint has no instance, its network no gateway) is refused and
//! never passed through: bypassing a waypoint would bypass its policies.
//!
//! Waypoints follow the rules of Istio's ambient mode. A connection to a service goes through the
//! waypoint of the service, a connection to a workload through the waypoint of the workload; the
//! waypoint of a service's backend does not apply. A connection from a waypoint of the destination
//! does not go through it again. A connection from a gateway that speaks HBONE itself
//! (`native_tunnel`) goes directly to a backend, unless the service sets `ingress_use_waypoint`;
//! Istio has no other mark of ingress gateways.
//!
//! [`explain`] returns every step of the same decision.
//!
//! The files: `request` holds the input, `decision` and `outcome` the output. `dialled` finds the
//! object that was dialled, `destinations` lists every place that it leads to, `backend` chooses an
//! endpoint of a service, `reachable` finds its address, `gateway` chooses waypoints and network
//! gateways, `path` builds the route to what was chosen.

mod backend;
mod decision;
mod destinations;
mod dialled;
mod error;
mod explain;
mod gateway;
mod no_route;
mod outcome;
mod path;
mod reachable;
mod request;

use std::cell::RefCell;
use std::net::SocketAddr;

use crate::{View, Workload};

use backend::BackendChoice;
pub use decision::{Decision, Explanation, Routed};
pub use destinations::Destinations;
use dialled::{DialledTarget, canonical, is_own_tunnel, target};
pub use error::{Role, RouteError};
pub use explain::{CandidateOutcome, CandidateStep, Dialled, Exclusion, Step, WaypointStep};
use explain::{NoTrace, Trace};
pub(crate) use gateway::{resolves_to, undiscovered_key, waypoints_of};
use no_route::NoRoute;
pub use outcome::{Hop, HopKind, Identities, Route};
use path::{
    backend_identities, is_plaintext, outside, resolved_workload, through_network_gateway,
    through_waypoint, to_workload,
};
use reachable::Reachable;
pub use reachable::choose_address;
use request::RouteContext;
pub use request::{OutboundRequest, address_key};

/// Decides where a connection goes. The same `random` number chooses the same backend.
#[must_use]
pub fn route(request: &OutboundRequest<'_>, view: &View, random: u64) -> Decision {
    decide(request, view, random, &NoTrace)
}

/// Decides as [`route`] does and records each step: both run the same code.
#[must_use]
pub fn explain(request: &OutboundRequest<'_>, view: &View, random: u64) -> Explanation {
    let steps = RefCell::new(Vec::new());
    let decision = decide(request, view, random, &steps);
    Explanation {
        steps: steps.into_inner(),
        decision,
    }
}

fn decide<T: Trace>(
    request: &OutboundRequest<'_>,
    view: &View,
    random: u64,
    trace: &T,
) -> Decision {
    let context = RouteContext {
        request,
        mesh: &view.mesh,
        trace,
    };
    let routed = target(context).and_then(|target| {
        Ok(Routed {
            destinations: Destinations::of(&target),
            route: route_to(target, context, view, random)?,
        })
    });
    routed.map_or_else(Decision::from, Decision::Route)
}

fn route_to<T: Trace>(
    target: DialledTarget<'_>,
    context: RouteContext<'_, '_, T>,
    view: &View,
    random: u64,
) -> Result<Route, NoRoute> {
    let request = context.request;
    let source = request.source;
    match target {
        DialledTarget::Outside(to, service) => Ok(outside(source, to, service, view)?),
        DialledTarget::Workload(to, workload) => Ok(to_workload(source, workload, to, None, view)),
        DialledTarget::BehindWaypoint(behind) => through_waypoint(context, &behind, random),
        DialledTarget::Service(entry) => {
            let dialled = canonical(request.destination);
            let choice = BackendChoice::of_service(source, entry, dialled, request.resolved);
            let chosen = choice.pick(random, request.except, context.trace)?;
            match chosen.reachable {
                Reachable::Hostname(name) => Err(NoRoute::Resolve(name.clone())),
                Reachable::RemoteNetwork => {
                    let then = backend_identities(chosen.workload, entry);
                    through_network_gateway(context, chosen.workload, then, &entry.service, random)
                }
                Reachable::Address(ip) => {
                    let to = SocketAddr::new(ip, chosen.port);
                    let workload = resolved_workload(context, chosen.workload, ip, view)?;
                    Ok(to_workload(source, workload, to, Some(entry), view))
                }
            }
        }
    }
}

/// Every place that a connection can go to; `None` if the connection is refused or an input is
/// missing.
#[must_use]
pub fn destinations(request: &OutboundRequest<'_>, view: &View) -> Option<Destinations> {
    let target = target(RouteContext {
        request,
        mesh: &view.mesh,
        trace: &NoTrace,
    });
    Some(Destinations::of(&target.ok()?))
}

/// Whether the connection has to go through a waypoint.
#[must_use]
pub fn is_behind_waypoint(request: &OutboundRequest<'_>, view: &View) -> bool {
    destinations(request, view) == Some(Destinations::Waypoint)
}

/// Whether a connection to an address goes outside the mesh, or is itself a tunnel of the source.
#[must_use]
pub fn is_outside(source: &Workload, to: SocketAddr, view: &View) -> bool {
    let workload = view.mesh.workload_by_address(&source.network, to.ip());
    let has_placeholder = || view.mesh.placeholder_at(&source.network, to.ip()).is_some();
    is_own_tunnel(source, canonical(to))
        || workload.map_or_else(|| !has_placeholder(), |workload| is_plaintext(workload))
}

#[cfg(test)]
mod tests;

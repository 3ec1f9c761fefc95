//! Builds the route to a workload, a waypoint or a network gateway that was chosen.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::smallvec;

use super::dialled::{BehindWaypoint, DialledObject, is_own_tunnel};
use super::explain::Trace;
use super::gateway::find;
use super::no_route::NoRoute;
use super::reachable::Reachable;
use super::request::RouteContext;
use super::{Hop, HopKind, Identities, Role, Route, RouteError, address_key};
use crate::{
    Authority, HBONE_PORT, Missing, NetworkMode, PROXY_PORTS, Service, ServiceEntry,
    TunnelProtocol, View, Workload,
};

/// The route to an address that is not in the mesh.
///
/// # Errors
/// When a pod of this node has the address and the control plane has not pushed its workload yet.
/// Passed through now, the connection would reach a workload of the mesh in plaintext and bypass
/// its waypoint.
pub(super) fn outside(
    source: &Workload,
    to: SocketAddr,
    service: Option<Arc<Service>>,
    view: &View,
) -> Result<Route, Missing> {
    let expected = view.expects(source, to.ip());
    if let Some(uid) = expected.filter(|_| !is_own_tunnel(source, to)) {
        return Err(Missing::LocalWorkload(uid.clone()));
    }
    Ok(Route::Passthrough {
        to,
        workload: None,
        service,
    })
}

/// Whether a workload is reached without a tunnel. No proxy accepts HBONE for a pod that uses its
/// node's network.
pub(super) fn is_plaintext(workload: &Workload) -> bool {
    workload.protocol != TunnelProtocol::Hbone || workload.network_mode == NetworkMode::HostNetwork
}

/// The workload at the address of a chosen backend. If the address was resolved from the backend's
/// host name, a workload of the mesh may have it, and must not be reached in plaintext because the
/// backend is outside the mesh.
pub(super) fn resolved_workload<'a, T>(
    context: RouteContext<'_, 'a, T>,
    chosen: &'a Arc<Workload>,
    address: IpAddr,
    view: &View,
) -> Result<&'a Arc<Workload>, NoRoute> {
    if !chosen.workload_ips.is_empty() {
        return Ok(chosen);
    }
    let RouteContext { request, mesh, .. } = context;
    let source = request.source;
    if let Some(found) = mesh.workload_by_address(&source.network, address) {
        return Ok(found);
    }
    if let Some(name) = mesh.placeholder_at(&source.network, address) {
        return Err(RouteError::Undecoded { name: name.clone() }.into());
    }
    request.require_absent(address_key(source, address), mesh)?;
    if let Some(uid) = view.expects(source, address) {
        return Err(Missing::LocalWorkload(uid.clone()).into());
    }
    Ok(chosen)
}

/// The route through a waypoint of the dialled object.
pub(super) fn through_waypoint<T: Trace>(
    context: RouteContext<'_, '_, T>,
    behind: &BehindWaypoint<'_>,
    random: u64,
) -> Result<Route, NoRoute> {
    let name = || behind.object.name();
    let (waypoint, gateway) = behind.waypoints.choose(context, &name, random)?;
    let service = match behind.object {
        DialledObject::Service(service) => Some(service),
        DialledObject::Workload(_) => None,
    };
    match (waypoint.reachable, service) {
        (Reachable::Hostname(name), _) => Err(NoRoute::Resolve(name.clone())),
        (Reachable::RemoteNetwork, Some(service)) => {
            let then = waypoint.expected;
            through_network_gateway(context, waypoint.workload, then, service, random)
        }
        (Reachable::RemoteNetwork, None) => Err(NoRoute::Refuse(RouteError::WaypointElsewhere {
            destination: name(),
            gateway: gateway.destination.clone(),
        })),
        (Reachable::Address(ip), service) => Ok(Route::Tunnel(Hop {
            kind: HopKind::Waypoint,
            at: SocketAddr::new(ip, waypoint.port),
            authority: behind.destination.into(),
            expected: waypoint.expected,
            workload: waypoint.workload.clone(),
            service: service.cloned(),
        })),
    }
}

/// The route into another network, through the gateway that the workload `far` there names. The end
/// of the inner tunnel must prove one of the identities in `then`.
pub(super) fn through_network_gateway<T: Trace>(
    context: RouteContext<'_, '_, T>,
    far: &Workload,
    then: Identities,
    service: &Arc<Service>,
    random: u64,
) -> Result<Route, NoRoute> {
    let request = context.request;
    let no_gateway = || RouteError::NoNetworkGateway {
        service: service.key(),
        network: far.network.clone(),
        own: request.source.network.clone(),
    };
    let gateway = far.network_gateway.as_ref().ok_or_else(no_gateway)?;
    let name = || DialledObject::Service(service).name();
    let found = find(gateway, Role::NetworkGateway, context, &name, random)?;
    match found.reachable {
        Reachable::Hostname(name) => Err(NoRoute::Resolve(name.clone())),
        Reachable::RemoteNetwork => Err(no_gateway().into()),
        Reachable::Address(ip) => Ok(Route::Tunnel(Hop {
            kind: HopKind::NetworkGateway { then },
            at: SocketAddr::new(ip, found.port),
            authority: Authority::Host((&*service.hostname).into(), request.destination.port()),
            expected: found.expected,
            workload: found.workload.clone(),
            service: Some(service.clone()),
        })),
    }
}

/// The identities that may serve a service for a workload in another network. A workload without
/// an address stands for that whole network, so only the service knows the identities there.
pub(super) fn backend_identities(workload: &Workload, entry: &ServiceEntry) -> Identities {
    let mut expected: Identities = entry.identities.iter().cloned().collect();
    let is_single = !workload.workload_ips.is_empty() || expected.is_empty();
    if is_single && !expected.contains(&workload.identity) {
        expected.push(workload.identity.clone());
    }
    expected
}

/// The route to a workload: without a tunnel if possible.
pub(super) fn to_workload(
    source: &Workload,
    workload: &Arc<Workload>,
    to: SocketAddr,
    entry: Option<&Arc<ServiceEntry>>,
    view: &View,
) -> Route {
    if let Some(route) = without_tunnel(source, workload, to, entry, view) {
        return route;
    }
    let mut expected: Identities = smallvec![workload.identity.clone()];
    for identity in entry.map_or(&[][..], |entry| &entry.identities) {
        if !expected.contains(identity) {
            expected.push(identity.clone());
        }
    }
    Route::Tunnel(Hop {
        kind: HopKind::Destination,
        at: SocketAddr::new(to.ip(), HBONE_PORT),
        authority: to.into(),
        expected,
        workload: workload.clone(),
        service: entry.map(|entry| entry.service.clone()),
    })
}

/// The route to a workload that needs no tunnel: it is outside the mesh or on this node.
pub(super) fn without_tunnel(
    source: &Workload,
    workload: &Arc<Workload>,
    to: SocketAddr,
    entry: Option<&Arc<ServiceEntry>>,
    view: &View,
) -> Option<Route> {
    let service = || entry.map(|entry| entry.service.clone());
    if is_plaintext(workload) {
        return Some(Route::Passthrough {
            to,
            workload: Some(workload.clone()),
            service: service(),
        });
    }
    // The proxy at the destination refuses its own ports and logs the attempt.
    if PROXY_PORTS.contains(&to.port()) {
        return None;
    }
    let (server, join_mode) = view.direct(source, workload, to.ip())?;
    Some(Route::Direct {
        to,
        server,
        join_mode,
        workload: workload.clone(),
        service: service(),
    })
}

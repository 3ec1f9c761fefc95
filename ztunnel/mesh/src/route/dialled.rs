//! Finds the object that a dialled address belongs to, before an endpoint is chosen.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::explain::{Dialled, Step, Trace, WaypointStep};
use super::gateway::{Waypoints, resolves_to, waypoints_of};
use super::no_route::NoRoute;
use super::request::RouteContext;
use super::{RouteError, address_key};
use crate::{HBONE_PORT, LoadBalancingMode, Service, ServiceEntry, Snapshot, Workload};

/// What a dialled address leads to.
pub(super) enum DialledTarget<'a> {
    /// An address outside the mesh, or a service that keeps the dialled address.
    Outside(SocketAddr, Option<Arc<Service>>),
    /// A workload that was dialled by its own address. Its health does not matter, because there
    /// is no other choice.
    Workload(SocketAddr, &'a Arc<Workload>),
    /// A service, of which an endpoint has to be chosen.
    Service(&'a Arc<ServiceEntry>),
    /// A service or workload behind a waypoint.
    BehindWaypoint(BehindWaypoint<'a>),
}

/// A service or workload behind a waypoint.
pub(super) struct BehindWaypoint<'a> {
    pub(super) waypoints: Waypoints<'a>,
    pub(super) destination: SocketAddr,
    pub(super) object: DialledObject<'a>,
}

/// The service or workload that was dialled.
#[derive(Debug, Clone, Copy)]
pub(super) enum DialledObject<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>),
}

impl<'a> DialledObject<'a> {
    /// Its name in error messages.
    pub(super) fn name(self) -> String {
        match self {
            Self::Service(service) => format!("service {}", service.key()),
            Self::Workload(workload) => format!("workload {}", workload.uid),
        }
    }

    fn waypoints(self) -> Option<Waypoints<'a>> {
        match self {
            Self::Service(service) => Waypoints::of_service(service),
            Self::Workload(workload) => workload.waypoint.as_deref().map(Waypoints::Single),
        }
    }

    /// Whether a gateway skips the waypoint: it has applied its own rules.
    fn is_skipped_by(self, source: &Workload) -> bool {
        source.native_tunnel
            && match self {
                Self::Service(service) => !service.ingress_use_waypoint,
                Self::Workload(_) => true,
            }
    }

    /// Whether the source is itself a waypoint of the object.
    fn is_behind(self, source: &Workload, waypoints: Waypoints<'_>, mesh: &Snapshot) -> bool {
        match self {
            Self::Service(_) => waypoints.include(source, mesh),
            // The waypoint of a service that the workload backs has applied its policies, too.
            Self::Workload(workload) => waypoints_of(workload, mesh)
                .any(|waypoint| resolves_to(waypoint, mesh, |other| other.uid == source.uid)),
        }
    }
}

/// Finds what a dialled address leads to.
///
/// # Errors
/// When a service was dialled on a port that it does not have, or a resource has to be discovered
/// first.
pub(super) fn target<'a, T: Trace>(
    context: RouteContext<'_, 'a, T>,
) -> Result<DialledTarget<'a>, NoRoute> {
    let RouteContext {
        request,
        mesh,
        trace,
    } = context;
    let source = request.source;
    let destination = canonical(request.destination);
    if is_own_tunnel(source, destination) {
        trace.step(|| Step::Dialled(Dialled::OwnTunnel));
        return Ok(DialledTarget::Outside(destination, None));
    }
    let (network, address) = (&source.network, destination.ip());
    if let Some(entry) = mesh.entry_by_vip(network, address, &source.namespace) {
        return service(context, destination, entry);
    }
    by_own_address(context, destination)
}

/// An address that is no virtual address of a service which the source can see.
fn by_own_address<'a, T: Trace>(
    context: RouteContext<'_, 'a, T>,
    destination: SocketAddr,
) -> Result<DialledTarget<'a>, NoRoute> {
    let RouteContext {
        request,
        mesh,
        trace,
    } = context;
    let source = request.source;
    let Some(workload) = mesh.workload_by_address(&source.network, destination.ip()) else {
        if let Some(name) = mesh.placeholder_at(&source.network, destination.ip()) {
            return Err(RouteError::Undecoded { name: name.clone() }.into());
        }
        // A service that keeps the address does not tell which workload has it.
        if !is_never_in_mesh(destination.ip()) {
            request.require_absent(address_key(source, destination.ip()), mesh)?;
        }
        trace.step(|| Step::Dialled(Dialled::Outside));
        return Ok(DialledTarget::Outside(destination, None));
    };
    trace.step(|| Step::Dialled(Dialled::Workload(workload.clone())));
    let object = DialledObject::Workload(workload);
    Ok(match waypoints(context, object) {
        Some(waypoints) => DialledTarget::BehindWaypoint(BehindWaypoint {
            waypoints,
            destination,
            object,
        }),
        None => DialledTarget::Workload(destination, workload),
    })
}

fn service<'a, T: Trace>(
    context: RouteContext<'_, 'a, T>,
    destination: SocketAddr,
    entry: &'a Arc<ServiceEntry>,
) -> Result<DialledTarget<'a>, NoRoute> {
    let service = &entry.service;
    let dialled = || Step::Dialled(Dialled::Service(service.clone()));
    context.trace.step(dialled);
    // The waypoint of a backend does not apply: it is for connections that dial the workload.
    let object = DialledObject::Service(service);
    if let Some(waypoints) = waypoints(context, object) {
        return Ok(DialledTarget::BehindWaypoint(BehindWaypoint {
            waypoints,
            destination,
            object,
        }));
    }
    let balancing = service.load_balancing.as_ref();
    if balancing.is_some_and(|balancing| balancing.mode == LoadBalancingMode::Passthrough) {
        // The dialled address is kept. If a workload of the mesh has it, the workload must not be
        // reached in plaintext because a range of the service holds its address.
        return Ok(match by_own_address(context, destination)? {
            DialledTarget::Outside(to, None) => DialledTarget::Outside(to, Some(service.clone())),
            other => other,
        });
    }
    let port = destination.port();
    if !service.ports.contains_key(&port) {
        return Err(NoRoute::Refuse(RouteError::NoSuchPort {
            service: service.key(),
            port,
        }));
    }
    Ok(DialledTarget::Service(entry))
}

/// The waypoints that a connection to an object has to go through, if any.
fn waypoints<'a, T: Trace>(
    context: RouteContext<'_, 'a, T>,
    object: DialledObject<'a>,
) -> Option<Waypoints<'a>> {
    let (source, trace) = (context.request.source, context.trace);
    let Some(waypoints) = object.waypoints() else {
        trace.step(|| Step::Waypoint(WaypointStep::None));
        return None;
    };
    if object.is_skipped_by(source) {
        trace.step(|| Step::Waypoint(WaypointStep::SourceIsGateway));
        return None;
    }
    if object.is_behind(source, waypoints, context.mesh) {
        trace.step(|| Step::Waypoint(WaypointStep::SourceIsWaypoint));
        return None;
    }
    trace.step(|| Step::Waypoint(WaypointStep::Applies(waypoints.destinations())));
    Some(waypoints)
}

/// Whether no workload or service can have an address.
const fn is_never_in_mesh(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

/// Whether a connection is a tunnel that its source opened. A gateway that speaks HBONE itself
/// (`native_tunnel`: an ingress or egress gateway, a waypoint) chooses backends by its own rules;
/// its connections to the HBONE port are passed through.
pub(super) fn is_own_tunnel(source: &Workload, destination: SocketAddr) -> bool {
    source.native_tunnel && destination.port() == HBONE_PORT
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

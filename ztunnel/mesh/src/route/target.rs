//! What a dialled address stands for, before anything is chosen.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use super::choice::{BackendChoice, Purpose};
use super::gateway::{Waypoints, stands, waypoints_of};
use super::place::Wanted;
use super::{OutboundRequest, RouteError, key_of};
use crate::{HBONE_PORT, LoadBalancingMode, Service, ServiceEntry, Snapshot, Workload};

/// What a dialled address stands for.
pub(super) enum DialledTarget<'a> {
    /// Somebody outside the mesh, or a service that keeps its address.
    Outside(SocketAddr, Option<Arc<Service>>),
    /// A workload, by its own address. It is called even when it is unhealthy: health decides
    /// about choosing, and here is no choice.
    Workload(SocketAddr, &'a Arc<Workload>),
    /// A service, and the choice to be made.
    Service(BackendChoice<'a>, &'a Arc<ServiceEntry>),
    /// Somebody behind a waypoint.
    Behind(Behind<'a>),
}

/// What is behind a waypoint.
pub(super) struct Behind<'a> {
    pub(super) waypoints: Waypoints<'a>,
    pub(super) destination: SocketAddr,
    pub(super) what: What<'a>,
}

/// What was dialled.
#[derive(Debug, Clone, Copy)]
pub(super) enum What<'a> {
    Service(&'a Arc<Service>),
    Workload(&'a Arc<Workload>),
}

impl What<'_> {
    /// As errors call it.
    pub(super) fn name(self) -> String {
        match self {
            Self::Service(service) => format!("service {}", service.key()),
            Self::Workload(workload) => format!("workload {}", workload.uid),
        }
    }
}

/// Finds out what was dialled.
///
/// # Errors
/// When a service was, on a port that it does not have, or when the control plane has to be asked
/// first.
pub(super) fn target<'a>(
    request: &OutboundRequest<'a>,
    mesh: &'a Snapshot,
) -> Result<DialledTarget<'a>, RouteError> {
    let source = request.source;
    let destination = canonical(request.destination);
    if is_own_tunnel(source, destination) {
        return Ok(DialledTarget::Outside(destination, None));
    }
    let (network, address) = (&source.network, destination.ip());
    if let Some(entry) = mesh.entry_by_vip(network, address, &source.namespace) {
        return service(request, destination, entry, mesh);
    }
    by_own_address(request, destination, mesh)
}

/// What no service has for this client: a workload's address, or somebody's outside.
fn by_own_address<'a>(
    request: &OutboundRequest<'a>,
    destination: SocketAddr,
    mesh: &'a Snapshot,
) -> Result<DialledTarget<'a>, RouteError> {
    let source = request.source;
    let Some(workload) = mesh.workload_by_address(&source.network, destination.ip()) else {
        if let Some(name) = mesh.refused_at(&source.network, destination.ip()) {
            return Err(RouteError::Unreadable { name: name.clone() });
        }
        // That a service has it says nothing of who is there.
        if !is_nobodys(destination.ip()) {
            request.is_absent(key_of(source, destination.ip()), mesh)?;
        }
        return Ok(DialledTarget::Outside(destination, None));
    };
    let waypoint = workload.waypoint.as_deref().map(Waypoints::One);
    let waypoint =
        waypoint.filter(|_| !source.native_tunnel && !is_waypoint_of(source, workload, mesh));
    Ok(match waypoint {
        Some(waypoints) => DialledTarget::Behind(Behind {
            waypoints,
            destination,
            what: What::Workload(workload),
        }),
        None => DialledTarget::Workload(destination, workload),
    })
}

fn service<'a>(
    request: &OutboundRequest<'a>,
    destination: SocketAddr,
    entry: &'a Arc<ServiceEntry>,
    mesh: &'a Snapshot,
) -> Result<DialledTarget<'a>, RouteError> {
    let (source, service) = (request.source, &entry.service);
    // A workload's own waypoint is not asked here: it stands before connections that dial the
    // workload, as the service's stands before those that dial the service.
    let waypoints = Waypoints::of_service(service);
    let around = |waypoints: &Waypoints<'_>| {
        goes_straight(source, service) || waypoints.include(source, mesh)
    };
    if let Some(waypoints) = waypoints.filter(|waypoints| !around(waypoints)) {
        return Ok(DialledTarget::Behind(Behind {
            waypoints,
            destination,
            what: What::Service(service),
        }));
    }
    let balancing = service.load_balancing.as_ref();
    if balancing.is_some_and(|balancing| balancing.mode == LoadBalancingMode::Passthrough) {
        // It keeps its address, which may be that of a workload in the mesh: such a one is not
        // reached in the clear because a service's range holds it.
        return Ok(match by_own_address(request, destination, mesh)? {
            DialledTarget::Outside(to, None) => DialledTarget::Outside(to, Some(service.clone())),
            known => known,
        });
    }
    let port = destination.port();
    if !service.ports.contains_key(&port) {
        return Err(RouteError::NoSuchPort {
            service: service.key(),
            port,
        });
    }
    let choice = BackendChoice {
        source,
        service,
        endpoints: &entry.endpoints,
        port,
        purpose: Purpose::Backend,
        wanted: Wanted {
            like: destination.ip(),
            families: service.ip_families,
            resolved: request.resolved,
        },
    };
    Ok(DialledTarget::Service(choice, entry))
}

/// Whether no mesh can know an address.
const fn is_nobodys(address: IpAddr) -> bool {
    address.is_loopback() || address.is_unspecified() || address.is_multicast()
}

/// A gateway that speaks HBONE itself (`native_tunnel`: an ingress or egress gateway, a waypoint)
/// chooses backends by its own rules. What it dials on the HBONE port is a tunnel already, and
/// goes on as it is.
pub(super) fn is_own_tunnel(source: &Workload, destination: SocketAddr) -> bool {
    source.native_tunnel && destination.port() == HBONE_PORT
}

/// A gateway has applied its own rules: it need not go through the waypoint, unless the service
/// says so (`ingress_use_waypoint`).
fn goes_straight(source: &Workload, service: &Service) -> bool {
    source.native_tunnel && !service.ingress_use_waypoint
}

/// Whether a workload stands before another one, or before a service that this one backs: then
/// what it sends has been there, and goes on.
fn is_waypoint_of(source: &Workload, workload: &Workload, mesh: &Snapshot) -> bool {
    waypoints_of(workload, mesh)
        .any(|waypoint| stands(waypoint, mesh, |other| other.uid == source.uid))
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

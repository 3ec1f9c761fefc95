//! Where does this connection go? Step two of a connection's way, asked at its source.
//!
//! A pure function of the dialled address, a view and one random number: it never awaits, locks
//! or reads a clock. What the mesh does not know passes unchanged. What it knows but this
//! proxy cannot carry as its policies demand (through a waypoint, into another network) is an
//! error and never passes: bypassing a waypoint would bypass its policies.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::mesh::{
    Endpoint, Fault, GatewayAddress, GatewayDestination, HealthPolicy, HealthStatus, Identity,
    LoadBalancing, LoadBalancingMode, NamespacedHostname, NetworkMode, RoutingScope, Service,
    ServiceEntry, Snapshot, TunnelProtocol, Uid, Workload,
};

use super::view::View;
use crate::kernel::{Ends, NetnsCookie};
use crate::pods::PROXY_PORTS;

/// Where every workload that takes part in the mesh accepts HBONE.
pub const HBONE_PORT: u16 = 15008;

/// A connection that a pod of this node opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Departure<'a> {
    /// The workload that dialled.
    pub source: &'a Workload,
    /// What it dialled.
    pub destination: SocketAddr,
    /// Backends that the kernel has had its chance to choose: another one is taken where there
    /// is one as good.
    pub except: &'a [SocketAddr],
}

/// Where a connection goes and how.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Route {
    /// As plain TCP, from the pod's network namespace.
    Passthrough {
        /// The address to connect to.
        to: SocketAddr,
        /// What runs there, if the mesh knows it.
        workload: Option<Arc<Workload>>,
        /// The service that was dialled, if it was one.
        service: Option<Arc<Service>>,
    },
    /// To a pod of this node, without a tunnel. Its policies are asked here, at the source.
    Direct {
        /// The address to connect to.
        to: SocketAddr,
        /// The namespace of the pod that is there.
        server: NetnsCookie,
        /// Whether later connections may be joined.
        ends: Ends,
        /// The destination.
        workload: Arc<Workload>,
        /// The service that was dialled, if it was one.
        service: Option<Arc<Service>>,
    },
    /// Through an HBONE tunnel to the destination's node.
    Tunnel {
        /// The real destination, the authority of the CONNECT request.
        to: SocketAddr,
        /// Where the tunnel ends: the destination's address, port 15008.
        hbone: SocketAddr,
        /// The identities of which the other end must prove one; never empty.
        expected: SmallVec<[Identity; 1]>,
        /// The destination.
        workload: Arc<Workload>,
        /// The service that was dialled, if it was one.
        service: Option<Arc<Service>>,
    },
}

/// Why a connection goes nowhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RouteError {
    /// A service was dialled on a port that it does not have.
    #[error("service {service} has no port {port}")]
    NoSuchPort {
        /// The service.
        service: NamespacedHostname,
        /// The port that was dialled.
        port: u16,
    },
    /// A service has no backend that may be chosen.
    #[error(
        "service {service} has no healthy backend for port {port}: {endpoints} endpoints are known, \
         none of them healthy, with a capacity, a target port and the locality that the service demands"
    )]
    NoHealthyBackend {
        /// The service.
        service: NamespacedHostname,
        /// The port that was dialled.
        port: u16,
        /// How many backends there are, good or bad.
        endpoints: usize,
    },
    /// The backends of a service have no addresses.
    #[error("none of the backends of service {service} has an address")]
    NoAddress {
        /// The service.
        service: NamespacedHostname,
    },
    /// The destination is behind a waypoint.
    #[error(
        "{destination} is behind the waypoint {waypoint}, and this proxy cannot go through waypoints: \
         refused, because going around it would go around its policies"
    )]
    WaypointUnsupported {
        /// The service or workload that was dialled.
        destination: String,
        /// Its waypoint.
        waypoint: GatewayDestination,
    },
    /// Every backend that could be chosen is in another network.
    #[error(
        "the backends of service {service} are in network {network:?}, the source is in {own:?}, and \
         this proxy cannot go through network gateways"
    )]
    OtherNetwork {
        /// The service that was dialled.
        service: NamespacedHostname,
        /// Where the first of them is.
        network: Arc<str>,
        /// Where the source is.
        own: Arc<str>,
    },
}

impl RouteError {
    /// A short name out of a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::NoSuchPort { .. } => "no_such_port",
            Self::NoHealthyBackend { .. } => "no_healthy_backend",
            Self::NoAddress { .. } => "no_address",
            Self::WaypointUnsupported { .. } => "waypoint_unsupported",
            Self::OtherNetwork { .. } => "other_network",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::NoSuchPort { .. } => Fault::Downstream,
            Self::NoHealthyBackend { .. } => Fault::Upstream,
            Self::NoAddress { .. } => Fault::Mesh,
            Self::WaypointUnsupported { .. } | Self::OtherNetwork { .. } => Fault::Us,
        }
    }
}

/// Finds where a connection goes. `dice` is a random number of the caller's: the same number gives
/// the same backend.
///
/// # Errors
/// When the mesh knows the destination but the connection must not or cannot go there.
pub fn route(departure: &Departure<'_>, view: &View, dice: u64) -> Result<Route, RouteError> {
    let source = departure.source;
    match target(departure, view)? {
        Target::Outside(to, service) => Ok(outside(to, service)),
        Target::Workload(to, workload) => Ok(carry(source, workload, to, None, view)),
        Target::Service(choice, entry) => {
            let (workload, to) = choice
                .pick(&entry.endpoints, dice, departure.except)
                .ok_or_else(|| choice.explain(&entry.endpoints))?;
            Ok(carry(source, workload, to, Some(entry), view))
        }
    }
}

/// Tells everywhere that a connection could go: the share that each place has, and the route
/// where it needs no tunnel.
///
/// # Errors
/// As [`route`].
pub fn options(
    departure: &Departure<'_>,
    view: &View,
    mut each: impl FnMut(Option<Route>, u32),
) -> Result<(), RouteError> {
    let source = departure.source;
    match target(departure, view)? {
        Target::Outside(to, service) => each(Some(outside(to, service)), 1),
        Target::Workload(to, workload) => each(in_the_clear(source, workload, to, None, view), 1),
        Target::Service(choice, entry) => {
            for (workload, to) in choice.best(&entry.endpoints) {
                let route = in_the_clear(source, workload, to, Some(entry), view);
                each(route, workload.capacity);
            }
        }
    }
    Ok(())
}

/// What a dialled address stands for.
enum Target<'a> {
    /// Somebody outside the mesh, or a service that keeps its address.
    Outside(SocketAddr, Option<Arc<Service>>),
    /// A workload, by its own address. It is called even when it is unhealthy: health decides
    /// about choosing, and here is no choice.
    Workload(SocketAddr, &'a Arc<Workload>),
    /// A service, and the choice to be made.
    Service(Choice<'a>, &'a Arc<ServiceEntry>),
}

fn outside(to: SocketAddr, service: Option<Arc<Service>>) -> Route {
    Route::Passthrough {
        to,
        workload: None,
        service,
    }
}

fn target<'a>(departure: &Departure<'a>, view: &'a View) -> Result<Target<'a>, RouteError> {
    let (source, mesh) = (departure.source, &view.mesh);
    let destination = SocketAddr::new(
        departure.destination.ip().to_canonical(),
        departure.destination.port(),
    );
    if let Some(entry) = mesh.entry_by_vip(&source.network, destination.ip()) {
        return service(source, destination, entry, mesh);
    }
    let Some(workload) = mesh.workload_by_address(&source.network, destination.ip()) else {
        return Ok(Target::Outside(destination, None));
    };
    let name = || format!("workload {}", workload.uid);
    refuse_waypoint(workload.waypoint.as_ref(), source, mesh, name)?;
    Ok(Target::Workload(destination, workload))
}

fn service<'a>(
    source: &'a Workload,
    destination: SocketAddr,
    entry: &'a Arc<ServiceEntry>,
    mesh: &Snapshot,
) -> Result<Target<'a>, RouteError> {
    let service = &entry.service;
    // A workload's own waypoint is not asked here: it stands before connections that dial the
    // workload, as the service's stands before those that dial the service.
    let name = || format!("service {}", service.key());
    refuse_waypoint(service.waypoint.as_ref(), source, mesh, name)?;
    let balancing = service.load_balancing.as_ref();
    if balancing.is_some_and(|balancing| balancing.mode == LoadBalancingMode::Passthrough) {
        return Ok(Target::Outside(destination, Some(service.clone())));
    }
    let port = destination.port();
    let Some(&service_target) = service.ports.get(&port) else {
        return Err(RouteError::NoSuchPort {
            service: service.key(),
            port,
        });
    };
    let choice = Choice {
        source,
        service,
        destination,
        service_target,
    };
    Ok(Target::Service(choice, entry))
}

/// Whether a waypoint stands before what was dialled.
#[must_use]
pub fn is_behind_waypoint(departure: &Departure<'_>, view: &View) -> bool {
    matches!(
        target(departure, view),
        Err(RouteError::WaypointUnsupported { .. })
    )
}

/// Whether nobody at an address takes part in the mesh.
#[must_use]
pub fn is_outside(source: &Workload, address: IpAddr, view: &View) -> bool {
    let workload = view.mesh.workload_by_address(&source.network, address);
    workload.is_none_or(|workload| speaks_plainly(workload))
}

/// Nothing listens for HBONE on behalf of a pod that uses its node's network.
fn speaks_plainly(workload: &Workload) -> bool {
    workload.protocol != TunnelProtocol::Hbone || workload.network_mode == NetworkMode::HostNetwork
}

/// How a workload is reached.
fn carry(
    source: &Workload,
    workload: &Arc<Workload>,
    to: SocketAddr,
    entry: Option<&Arc<ServiceEntry>>,
    view: &View,
) -> Route {
    if let Some(route) = in_the_clear(source, workload, to, entry, view) {
        return route;
    }
    let mut expected: SmallVec<[Identity; 1]> = smallvec![workload.identity.clone()];
    for identity in entry.map_or(&[][..], |entry| &entry.identities) {
        if !expected.contains(identity) {
            expected.push(identity.clone());
        }
    }
    Route::Tunnel {
        to,
        hbone: SocketAddr::new(to.ip(), HBONE_PORT),
        expected,
        workload: workload.clone(),
        service: entry.map(|entry| entry.service.clone()),
    }
}

/// How a workload is reached that takes no tunnel: it is outside the mesh, or on this node.
fn in_the_clear(
    source: &Workload,
    workload: &Arc<Workload>,
    to: SocketAddr,
    entry: Option<&Arc<ServiceEntry>>,
    view: &View,
) -> Option<Route> {
    let service = || entry.map(|entry| entry.service.clone());
    if speaks_plainly(workload) {
        return Some(Route::Passthrough {
            to,
            workload: Some(workload.clone()),
            service: service(),
        });
    }
    // The proxy's own ports are refused at the destination, with a word in its log.
    if PROXY_PORTS.contains(&to.port()) {
        return None;
    }
    let (server, ends) = view.direct(source, workload, to.ip())?;
    Some(Route::Direct {
        to,
        server,
        ends,
        workload: workload.clone(),
        service: service(),
    })
}

/// The waypoint itself goes on to what it stands before; everybody else is refused.
fn refuse_waypoint(
    waypoint: Option<&GatewayAddress>,
    source: &Workload,
    snapshot: &Snapshot,
    destination: impl Fn() -> String,
) -> Result<(), RouteError> {
    let Some(waypoint) = waypoint else {
        return Ok(());
    };
    let is_source = |uid: &Uid| *uid == source.uid;
    let from_waypoint = match &waypoint.destination {
        GatewayDestination::Hostname(key) => snapshot
            .endpoints(key)
            .iter()
            .any(|endpoint| is_source(&endpoint.workload.uid)),
        GatewayDestination::Address(at) => {
            if let Some(entry) = snapshot.entry_by_vip(&at.network, at.address) {
                entry
                    .endpoints
                    .iter()
                    .any(|endpoint| is_source(&endpoint.workload.uid))
            } else {
                let workload = snapshot.workload_by_address(&at.network, at.address);
                workload.is_some_and(|workload| is_source(&workload.uid))
            }
        }
    };
    if from_waypoint {
        return Ok(());
    }
    Err(RouteError::WaypointUnsupported {
        destination: destination(),
        waypoint: waypoint.destination.clone(),
    })
}

mod choice;
use choice::Choice;

#[cfg(test)]
mod tests;

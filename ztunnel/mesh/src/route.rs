//! Where does this connection go? Step two of a connection's way, asked at its source.
//!
//! A pure function of the dialled address, a view and one random number: it never awaits, locks
//! or reads a clock. What the mesh does not know passes unchanged. What it knows but cannot be
//! reached as its policies demand (a waypoint that nobody runs, a network without a gateway) is an
//! error and never passes: bypassing a waypoint would bypass its policies.
//!
//! Who goes through which waypoint, as in Istio's ambient mode: what dials a service goes through
//! the service's, what dials a workload through the workload's, and a service's backend is not
//! asked for its own. What comes from a waypoint of the destination goes on to it. A gateway that
//! speaks HBONE itself (`native_tunnel`) goes straight to a backend, unless the service wants
//! otherwise (`ingress_use_waypoint`). Istio has no other mark for ingress gateways, and leaves
//! them to themselves; they come by here only where they are captured as well.
//!
//! The files: `target` says what was dialled, `choice` takes one backend of a service, `place` says
//! where it is reached, `gateway` finds waypoints and network gateways.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use smallvec::{SmallVec, smallvec};

use crate::fastpath::Ends;
use crate::{
    Authority, DemandKey, HBONE_PORT, Identity, NetnsCookie, NetworkAddress, NetworkMode,
    PROXY_PORTS, Service, ServiceEntry, Snapshot, TunnelProtocol, View, Workload,
};

mod choice;
mod error;
mod gateway;
mod place;
mod target;

pub use error::{Role, RouteError};
use gateway::find;
pub(crate) use gateway::{missing, stands, waypoints_of};
use place::Reachable;
pub use place::choose_address;
use target::{Behind, DialledTarget, What, canonical, is_own_tunnel, target};

/// The identities of which the other end must prove one.
pub type Identities = SmallVec<[Identity; 1]>;

/// A connection that a pod of this node opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OutboundRequest<'a> {
    /// The workload that dialled.
    pub source: &'a Workload,
    /// What it dialled.
    pub destination: SocketAddr,
    /// Backends that the kernel has had its chance to choose: another one is taken where there
    /// is one as good.
    pub except: &'a [SocketAddr],
    /// What names stand for, as far as [`Route::Resolve`] has asked.
    pub resolved: &'a [(Arc<str>, IpAddr)],
    /// What the control plane has just said is not in the mesh, where the mesh is known in part
    /// only ([`RouteError::NotDiscovered`] has asked for it).
    pub absent: &'a [DemandKey],
}

impl<'a> OutboundRequest<'a> {
    /// A connection of which nothing else is known.
    #[must_use]
    pub const fn new(source: &'a Workload, destination: SocketAddr) -> Self {
        Self {
            source,
            destination,
            except: &[],
            resolved: &[],
            absent: &[],
        }
    }

    /// Whether what the mesh does not know under this key is outside of it.
    fn is_absent(&self, key: DemandKey, mesh: &Snapshot) -> Result<(), RouteError> {
        if mesh.is_whole() || self.absent.contains(&key) {
            return Ok(());
        }
        Err(RouteError::NotDiscovered { key })
    }
}

/// What to ask for to learn who has an address in a workload's network.
#[must_use]
pub fn key_of(source: &Workload, address: IpAddr) -> DemandKey {
    DemandKey::Address(NetworkAddress {
        network: source.network.clone(),
        address: address.to_canonical(),
    })
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
    /// Through an HBONE tunnel.
    Tunnel(Hop),
    /// Nowhere yet: a name has to be resolved first, and the question asked again.
    Resolve {
        /// The name.
        hostname: Arc<str>,
    },
}

/// The other end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hop {
    /// What it is there for.
    pub kind: HopKind,
    /// Where it listens for HBONE.
    pub at: SocketAddr,
    /// What it is asked for: the authority of the CONNECT request.
    pub authority: Authority,
    /// The identities of which it must prove one; never empty.
    pub expected: Identities,
    /// What runs there.
    pub workload: Arc<Workload>,
    /// The service that was dialled, if it was one.
    pub service: Option<Arc<Service>>,
}

/// What the other end of a tunnel is there for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HopKind {
    /// It is the destination.
    Destination,
    /// It is the destination's waypoint: the authority is what was dialled.
    Waypoint,
    /// It lets a second tunnel, inside this one, into another network. Both have the service's
    /// name for an authority, because its addresses are not those of this network.
    NetworkGateway {
        /// The identities of which the end of the second tunnel must prove one; never empty.
        then: Identities,
    },
}

/// Finds where a connection goes. `random` is a random number of the caller's: the same number gives
/// the same backend.
///
/// # Errors
/// When the mesh knows the destination but the connection must not or cannot go there.
pub fn route(request: &OutboundRequest<'_>, view: &View, random: u64) -> Result<Route, RouteError> {
    match target(request, &view.mesh)? {
        DialledTarget::Outside(to, service) => outside(request.source, to, service, view),
        DialledTarget::Workload(to, workload) => {
            Ok(carry(request.source, workload, to, None, view))
        }
        DialledTarget::Behind(behind) => through(request, &behind, view, random),
        DialledTarget::Service(choice, entry) => {
            let chosen = choice.pick(random, request.except)?;
            let then = || among(chosen.workload, entry);
            match chosen.place {
                Reachable::Named(name) => Ok(resolve(name)),
                Reachable::Beyond => across(
                    request,
                    (chosen.workload, then()),
                    &entry.service,
                    view,
                    random,
                ),
                Reachable::At(ip) => {
                    let to = SocketAddr::new(ip, chosen.port);
                    let workload = known(request, chosen.workload, ip, view)?;
                    Ok(carry(request.source, workload, to, Some(entry), view))
                }
            }
        }
    }
}

/// Tells everywhere that a connection could go: the share that each place has, and the route
/// where it needs no tunnel.
///
/// # Errors
/// As [`route`].
pub fn options(
    request: &OutboundRequest<'_>,
    view: &View,
    mut each: impl FnMut(Option<Route>, u32),
) -> Result<(), RouteError> {
    let source = request.source;
    match target(request, &view.mesh)? {
        DialledTarget::Outside(to, service) => each(Some(outside(source, to, service, view)?), 1),
        DialledTarget::Workload(to, workload) => {
            each(in_the_clear(source, workload, to, None, view), 1)
        }
        DialledTarget::Behind(_) => each(None, 1),
        DialledTarget::Service(choice, entry) => {
            for candidate in choice.best() {
                // What has to be resolved, or is in another network, is the proxy's share.
                let route = candidate
                    .at()
                    .and_then(|to| in_the_clear(source, candidate.workload, to, Some(entry), view));
                each(route, candidate.workload.capacity);
            }
        }
    }
    Ok(())
}

/// To what the mesh does not know. A pod of this node that it does not know yet is about to be in it:
/// reached now, it would be reached in the clear, and its waypoint gone around.
fn outside(
    source: &Workload,
    to: SocketAddr,
    service: Option<Arc<Service>>,
    view: &View,
) -> Result<Route, RouteError> {
    let expected = view.expects(source, to.ip());
    if let Some(uid) = expected.filter(|_| !is_own_tunnel(source, to)) {
        return Err(RouteError::NotPushed { uid: uid.clone() });
    }
    Ok(Route::Passthrough {
        to,
        workload: None,
        service,
    })
}

fn resolve(name: &Arc<str>) -> Route {
    Route::Resolve {
        hostname: name.clone(),
    }
}

/// Whether a waypoint stands before what was dialled.
#[must_use]
pub fn is_behind_waypoint(request: &OutboundRequest<'_>, view: &View) -> bool {
    matches!(target(request, &view.mesh), Ok(DialledTarget::Behind(_)))
}

/// Whether what goes to an address from here takes no part in the mesh, or is a tunnel already.
#[must_use]
pub fn is_outside(source: &Workload, to: SocketAddr, view: &View) -> bool {
    let workload = view.mesh.workload_by_address(&source.network, to.ip());
    let unreadable = || view.mesh.refused_at(&source.network, to.ip()).is_some();
    is_own_tunnel(source, canonical(to))
        || workload.map_or_else(|| !unreadable(), |workload| speaks_plainly(workload))
}

/// Nothing listens for HBONE on behalf of a pod that uses its node's network.
fn speaks_plainly(workload: &Workload) -> bool {
    workload.protocol != TunnelProtocol::Hbone || workload.network_mode == NetworkMode::HostNetwork
}

/// Who is at an address that a backend's name was resolved to: what is in the mesh is not reached
/// in the clear because somebody gave it another name.
fn known<'a>(
    request: &OutboundRequest<'_>,
    chosen: &'a Arc<Workload>,
    at: IpAddr,
    view: &'a View,
) -> Result<&'a Arc<Workload>, RouteError> {
    if !chosen.workload_ips.is_empty() {
        return Ok(chosen);
    }
    let source = request.source;
    if let Some(found) = view.mesh.workload_by_address(&source.network, at) {
        return Ok(found);
    }
    if let Some(name) = view.mesh.refused_at(&source.network, at) {
        return Err(RouteError::Unreadable { name: name.clone() });
    }
    request.is_absent(key_of(source, at), &view.mesh)?;
    if let Some(uid) = view.expects(source, at) {
        return Err(RouteError::NotPushed { uid: uid.clone() });
    }
    Ok(chosen)
}

/// Through the waypoint of what was dialled.
fn through(
    request: &OutboundRequest<'_>,
    behind: &Behind<'_>,
    view: &View,
    random: u64,
) -> Result<Route, RouteError> {
    let name = || behind.what.name();
    let (waypoint, gateway) = behind
        .waypoints
        .choose((request, &view.mesh), &name, random)?;
    let service = match behind.what {
        What::Service(service) => Some(service),
        What::Workload(_) => None,
    };
    match (waypoint.place, service) {
        (Reachable::Named(name), _) => Ok(resolve(name)),
        (Reachable::Beyond, Some(service)) => across(
            request,
            (waypoint.workload, waypoint.expected),
            service,
            view,
            random,
        ),
        (Reachable::Beyond, None) => Err(RouteError::WaypointElsewhere {
            destination: name(),
            gateway: gateway.destination.clone(),
        }),
        (Reachable::At(ip), service) => Ok(Route::Tunnel(Hop {
            kind: HopKind::Waypoint,
            at: SocketAddr::new(ip, waypoint.port),
            authority: behind.destination.into(),
            expected: waypoint.expected,
            workload: waypoint.workload.clone(),
            service: service.cloned(),
        })),
    }
}

/// Into another network, through the gateway that a workload there names.
fn across(
    request: &OutboundRequest<'_>,
    (far, then): (&Arc<Workload>, Identities),
    service: &Arc<Service>,
    view: &View,
    random: u64,
) -> Result<Route, RouteError> {
    let Some(gateway) = &far.network_gateway else {
        return Err(RouteError::NoNetworkGateway {
            service: service.key(),
            network: far.network.clone(),
            own: request.source.network.clone(),
        });
    };
    let name = || What::Service(service).name();
    let found = find(
        gateway,
        Role::NetworkGateway,
        (request, &view.mesh),
        &name,
        random,
    )?;
    match found.place {
        Reachable::Named(name) => Ok(resolve(name)),
        Reachable::Beyond => Err(RouteError::NoNetworkGateway {
            service: service.key(),
            network: far.network.clone(),
            own: request.source.network.clone(),
        }),
        Reachable::At(ip) => Ok(Route::Tunnel(Hop {
            kind: HopKind::NetworkGateway { then },
            at: SocketAddr::new(ip, found.port),
            authority: Authority::Host((&*service.hostname).into(), request.destination.port()),
            expected: found.expected,
            workload: found.workload.clone(),
            service: Some(service.clone()),
        })),
    }
}

/// Who may serve a service on behalf of a workload in another network. One without an address
/// stands for all of that network: then only the service can say who they are.
fn among(workload: &Workload, entry: &ServiceEntry) -> Identities {
    let mut expected: Identities = entry.identities.iter().cloned().collect();
    let stands_for_itself = !workload.workload_ips.is_empty() || expected.is_empty();
    if stands_for_itself && !expected.contains(&workload.identity) {
        expected.push(workload.identity.clone());
    }
    expected
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

#[cfg(test)]
mod tests;

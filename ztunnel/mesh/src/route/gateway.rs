//! Finds waypoints and network gateways by the host name or address that a destination gives. A
//! host name belongs to a service; an address to a service or a workload. If none is found, the
//! route is an error, never a bypass.

use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::smallvec;

use super::backend::{BackendChoice, Candidate, Purpose};
use super::explain::{Step, Trace};
use super::no_route::NoRoute;
use super::reachable::{AddressPreference, Reachable};
use super::request::RouteContext;
use super::{Identities, OutboundRequest, Role, RouteError};
use crate::{
    GatewayAddress, GatewayDestination, NetworkAddress, ResourceKey, Service, ServiceEntry,
    Snapshot, WeightedWaypoint, Workload,
};

/// The chosen instance of a waypoint or network gateway.
pub(super) struct Gateway<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) reachable: Reachable<'a>,
    /// Its HBONE port.
    pub(super) port: u16,
    /// The identities of which it must prove one.
    pub(super) expected: Identities,
}

/// The waypoints of a destination.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waypoints<'a> {
    Single(&'a GatewayAddress),
    Weighted(&'a [WeightedWaypoint]),
}

impl<'a> Waypoints<'a> {
    /// The waypoints of a service: weighted waypoints replace the single one.
    pub(super) fn of_service(service: &'a Service) -> Option<Self> {
        match service.weighted_waypoints.as_slice() {
            [] => service.waypoint.as_ref().map(Self::Single),
            weighted => Some(Self::Weighted(weighted)),
        }
    }

    /// Whether a workload is an instance of one of the waypoints, regardless of weights.
    pub(super) fn include(self, workload: &Workload, mesh: &Snapshot) -> bool {
        let is_instance = |gateway| resolves_to(gateway, mesh, |other| other.uid == workload.uid);
        match self {
            Self::Single(gateway) => is_instance(gateway),
            Self::Weighted(weighted) => weighted.iter().any(|each| is_instance(&each.destination)),
        }
    }

    pub(super) fn destinations(self) -> Vec<GatewayDestination> {
        match self {
            Self::Single(gateway) => vec![gateway.destination.clone()],
            Self::Weighted(weighted) => {
                let all = weighted.iter().map(|each| &each.destination.destination);
                all.cloned().collect()
            }
        }
    }

    /// Chooses a waypoint by the random number, then an instance of it. If that waypoint has no
    /// usable instance, the next one takes its share: all waypoints apply the same policies.
    pub(super) fn choose<T: Trace>(
        self,
        context: RouteContext<'_, 'a, T>,
        destination: &impl Fn() -> String,
        random: u64,
    ) -> Result<(Gateway<'a>, &'a GatewayAddress), NoRoute> {
        let find = |gateway, random| {
            let found = find(gateway, Role::Waypoint, context, destination, random)?;
            Ok::<_, NoRoute>((found, gateway))
        };
        let weighted = match self {
            Self::Single(gateway) => return find(gateway, random),
            Self::Weighted(weighted) => weighted,
        };
        let weights: u64 = weighted.iter().map(|each| u64::from(each.weight)).sum();
        let Some(mut left) = random.checked_rem(weights) else {
            return Err(NoRoute::Refuse(RouteError::NoWaypointWeight {
                destination: destination(),
                waypoints: weighted.len(),
            }));
        };
        let chosen = weighted.iter().position(|each| {
            let weight = u64::from(each.weight);
            let is_chosen = left < weight;
            left = left.saturating_sub(weight);
            is_chosen
        });
        let chosen = chosen.unwrap_or_default();
        let found = find(&weighted[chosen].destination, random / weights);
        let others = weighted[chosen + 1..].iter().chain(&weighted[..chosen]);
        found.or_else(|error| {
            // Discovery has to tell first whether the chosen waypoint is usable.
            if !matches!(error, NoRoute::Refuse(_)) {
                return Err(error);
            }
            for other in others.filter(|other| other.weight > 0) {
                match find(&other.destination, random / weights) {
                    Err(NoRoute::Refuse(_)) => {}
                    found_or_lacking => return found_or_lacking,
                }
            }
            Err(error)
        })
    }
}

/// Finds an instance of a waypoint or network gateway. `destination` names the dialled object in
/// errors.
///
/// # Errors
/// When the mesh has no instance or none that is usable, or a resource has to be discovered first.
pub(super) fn find<'a, T: Trace>(
    gateway: &'a GatewayAddress,
    role: Role,
    context: RouteContext<'_, 'a, T>,
    destination: &impl Fn() -> String,
    random: u64,
) -> Result<Gateway<'a>, NoRoute> {
    let RouteContext {
        request,
        mesh,
        trace,
    } = context;
    let found = lookup(gateway, mesh);
    trace.step(|| Step::Gateway {
        role,
        destination: gateway.destination.clone(),
        found: found.is_some(),
    });
    match found {
        None => {
            request.require_absent(gateway_key(gateway), mesh)?;
            Err(NoRoute::Refuse(RouteError::GatewayUnknown {
                destination: destination(),
                role,
                gateway: gateway.destination.clone(),
            }))
        }
        Some(GatewayTarget::Workload(workload, at)) => Ok(Gateway {
            workload,
            reachable: reach(workload, at, role, request),
            port: gateway.hbone_mtls_port,
            expected: smallvec![workload.identity.clone()],
        }),
        Some(GatewayTarget::Service(entry)) => {
            let chosen = choose(gateway, role, context, entry, random);
            let chosen = chosen.map_err(|source| RouteError::GatewayUnavailable {
                destination: destination(),
                role,
                gateway: gateway.destination.clone(),
                source: Box::new(source),
            })?;
            Ok(Gateway {
                workload: chosen.workload,
                reachable: chosen.reachable,
                port: chosen.port,
                expected: expected(chosen.workload, entry),
            })
        }
    }
}

fn choose<'a, T: Trace>(
    gateway: &GatewayAddress,
    role: Role,
    context: RouteContext<'_, 'a, T>,
    entry: &'a ServiceEntry,
    random: u64,
) -> Result<Candidate<'a>, RouteError> {
    let request = context.request;
    // A host name has addresses of both families, an address is of one family.
    let like = match &gateway.destination {
        GatewayDestination::Hostname(_) => request.destination.ip().to_canonical(),
        GatewayDestination::Address(at) => at.address,
    };
    let choice = BackendChoice {
        source: request.source,
        service: &entry.service,
        endpoints: &entry.endpoints,
        port: gateway.hbone_mtls_port,
        purpose: match role {
            Role::Waypoint => Purpose::Waypoint,
            Role::NetworkGateway => Purpose::NetworkGateway,
        },
        preference: AddressPreference {
            like,
            families: entry.service.ip_families,
            resolved: request.resolved,
        },
    };
    choice.pick(random, &[], context.trace)
}

/// How a workload is reached that was named by its address.
fn reach<'a>(
    workload: &'a Workload,
    at: SocketAddr,
    role: Role,
    request: &OutboundRequest<'a>,
) -> Reachable<'a> {
    if role == Role::Waypoint && workload.network != request.source.network {
        return Reachable::RemoteNetwork;
    }
    Reachable::Address(at.ip())
}

/// The identity of an instance, and the identities that its service allows.
fn expected(workload: &Workload, entry: &ServiceEntry) -> Identities {
    let mut expected: Identities = smallvec![workload.identity.clone()];
    expected.extend(entry.identities.iter().cloned());
    expected
}

/// The service or workload that the destination of a gateway names.
enum GatewayTarget<'a> {
    Service(&'a ServiceEntry),
    Workload(&'a Arc<Workload>, SocketAddr),
}

fn lookup<'a>(gateway: &GatewayAddress, mesh: &'a Snapshot) -> Option<GatewayTarget<'a>> {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => {
            mesh.entry(key).map(|entry| GatewayTarget::Service(entry))
        }
        GatewayDestination::Address(at) => {
            let mut services = mesh.entries_by_vip(&at.network, at.address);
            if let Some(entry) = services.next() {
                return Some(GatewayTarget::Service(entry));
            }
            let workload = mesh.workload_by_address(&at.network, at.address)?;
            let at = SocketAddr::new(at.address, gateway.hbone_mtls_port);
            Some(GatewayTarget::Workload(workload, at))
        }
    }
}

fn gateway_key(gateway: &GatewayAddress) -> ResourceKey {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => ResourceKey::Service(key.clone()),
        GatewayDestination::Address(at) => ResourceKey::Address(NetworkAddress {
            network: at.network.clone(),
            address: at.address.to_canonical(),
        }),
    }
}

/// The key to discover before a decision can use a waypoint or network gateway.
pub(crate) fn undiscovered_key(gateway: &GatewayAddress, mesh: &Snapshot) -> Option<ResourceKey> {
    (!mesh.is_complete() && lookup(gateway, mesh).is_none()).then(|| gateway_key(gateway))
}

/// Whether an instance of a waypoint or network gateway matches.
pub(crate) fn resolves_to(
    gateway: &GatewayAddress,
    mesh: &Snapshot,
    matches: impl Fn(&Workload) -> bool,
) -> bool {
    match lookup(gateway, mesh) {
        Some(GatewayTarget::Service(entry)) => entry
            .endpoints
            .iter()
            .any(|endpoint| matches(&endpoint.workload)),
        Some(GatewayTarget::Workload(workload, _)) => matches(workload),
        None => false,
    }
}

/// The waypoints of a workload and of the services that it backs.
pub(crate) fn waypoints_of<'a>(
    workload: &'a Workload,
    mesh: &'a Snapshot,
) -> impl Iterator<Item = &'a GatewayAddress> {
    let of_services = workload
        .services
        .iter()
        .filter_map(|(key, _)| mesh.service(key))
        .flat_map(|service| {
            let weighted = service.weighted_waypoints.iter();
            let weighted = weighted.map(|each| &each.destination);
            service.waypoint.iter().chain(weighted)
        });
    workload.waypoint.as_deref().into_iter().chain(of_services)
}

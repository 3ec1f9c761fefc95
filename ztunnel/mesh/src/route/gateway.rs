//! Those in the middle: waypoints and network gateways, by the name or address that a destination
//! gives them. A name is a service's; an address is a service's or a workload's. Nobody found is an
//! error, never a way around.

use std::net::SocketAddr;
use std::sync::Arc;

use smallvec::smallvec;

use super::choice::{BackendChoice, Candidate, Purpose};
use super::place::{Reachable, Wanted};
use super::{Identities, OutboundRequest, Role, RouteError};
use crate::{
    DemandKey, GatewayAddress, GatewayDestination, NetworkAddress, Service, ServiceEntry, Snapshot,
    WeightedWaypoint, Workload,
};

/// One in the middle, chosen.
pub(super) struct Middle<'a> {
    pub(super) workload: &'a Arc<Workload>,
    pub(super) place: Reachable<'a>,
    /// Its HBONE port at that place.
    pub(super) port: u16,
    /// What it must prove to be.
    pub(super) expected: Identities,
}

/// The waypoints of a destination.
#[derive(Debug, Clone, Copy)]
pub(super) enum Waypoints<'a> {
    One(&'a GatewayAddress),
    Shared(&'a [WeightedWaypoint]),
}

impl<'a> Waypoints<'a> {
    /// Those of a service: where it shares connections among several, these go before the one.
    pub(super) fn of_service(service: &'a Service) -> Option<Self> {
        match service.weighted_waypoints.as_slice() {
            [] => service.waypoint.as_ref().map(Self::One),
            several => Some(Self::Shared(several)),
        }
    }

    /// Whether a workload is one of them, whatever its share.
    pub(super) fn include(self, workload: &Workload, mesh: &Snapshot) -> bool {
        let is_it = |gateway| stands(gateway, mesh, |other| other.uid == workload.uid);
        match self {
            Self::One(gateway) => is_it(gateway),
            Self::Shared(several) => several.iter().any(|each| is_it(&each.destination)),
        }
    }

    /// Rolls the dice: first among the waypoints, then among the instances of that one. Where it
    /// has none, the next one takes its share: all of them apply the destination's policies.
    pub(super) fn choose(
        self,
        (request, mesh): (&OutboundRequest<'a>, &'a Snapshot),
        destination: &impl Fn() -> String,
        random: u64,
    ) -> Result<(Middle<'a>, &'a GatewayAddress), RouteError> {
        let find = |gateway, random| {
            let found = find(
                gateway,
                Role::Waypoint,
                (request, mesh),
                destination,
                random,
            )?;
            Ok((found, gateway))
        };
        let several = match self {
            Self::One(gateway) => return find(gateway, random),
            Self::Shared(several) => several,
        };
        let weights: u64 = several.iter().map(|each| u64::from(each.weight)).sum();
        let Some(mut left) = random.checked_rem(weights) else {
            return Err(RouteError::NoWaypointWeight {
                destination: destination(),
                waypoints: several.len(),
            });
        };
        let hit = several.iter().position(|each| {
            let weight = u64::from(each.weight);
            let hit = left < weight;
            left = left.saturating_sub(weight);
            hit
        });
        let hit = hit.unwrap_or_default();
        let found = find(&several[hit].destination, random / weights);
        let others = several[hit + 1..].iter().chain(&several[..hit]);
        found.or_else(|error| {
            // Whether it can be used is not known yet.
            if matches!(error, RouteError::NotDiscovered { .. }) {
                return Err(error);
            }
            for other in others.filter(|other| other.weight > 0) {
                match find(&other.destination, random / weights) {
                    Err(RouteError::NotDiscovered { key }) => {
                        return Err(RouteError::NotDiscovered { key });
                    }
                    Ok(found) => return Ok(found),
                    Err(_) => {}
                }
            }
            Err(error)
        })
    }
}

/// Finds an instance of a waypoint or gateway.
///
/// # Errors
/// When the mesh knows none, or none that can be used, or when the control plane has to be asked
/// first.
pub(super) fn find<'a>(
    gateway: &'a GatewayAddress,
    role: Role,
    (request, mesh): (&OutboundRequest<'a>, &'a Snapshot),
    destination: &impl Fn() -> String,
    random: u64,
) -> Result<Middle<'a>, RouteError> {
    match lookup(gateway, mesh) {
        None => {
            request.is_absent(key_of(gateway), mesh)?;
            Err(RouteError::GatewayUnknown {
                destination: destination(),
                role,
                gateway: gateway.destination.clone(),
            })
        }
        Some(Named::Workload(workload, at)) => Ok(Middle {
            workload,
            place: reached(workload, at, role, request),
            port: gateway.hbone_mtls_port,
            expected: smallvec![workload.identity.clone()],
        }),
        Some(Named::Service(entry)) => {
            let chosen = choose(gateway, role, request, entry, random);
            let chosen = chosen.map_err(|source| RouteError::GatewayUnavailable {
                destination: destination(),
                role,
                gateway: gateway.destination.clone(),
                source: Box::new(source),
            })?;
            Ok(Middle {
                workload: chosen.workload,
                place: chosen.place,
                port: chosen.port,
                expected: expected(chosen.workload, entry),
            })
        }
    }
}

fn choose<'a>(
    gateway: &GatewayAddress,
    role: Role,
    request: &OutboundRequest<'a>,
    entry: &'a ServiceEntry,
    random: u64,
) -> Result<Candidate<'a>, RouteError> {
    // A name can be had in either family, an address only in its own.
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
        wanted: Wanted {
            like,
            families: entry.service.ip_families,
            resolved: request.resolved,
        },
    };
    choice.pick(random, &[])
}

/// Where a workload that was named by its address is reached.
fn reached<'a>(
    workload: &'a Workload,
    at: SocketAddr,
    role: Role,
    request: &OutboundRequest<'a>,
) -> Reachable<'a> {
    if role == Role::Waypoint && workload.network != request.source.network {
        return Reachable::Beyond;
    }
    Reachable::At(at.ip())
}

/// Its own identity, and those that may speak for its service.
fn expected(workload: &Workload, entry: &ServiceEntry) -> Identities {
    let mut expected: Identities = smallvec![workload.identity.clone()];
    expected.extend(entry.identities.iter().cloned());
    expected
}

/// What a waypoint's or gateway's name stands for.
enum Named<'a> {
    Service(&'a ServiceEntry),
    Workload(&'a Arc<Workload>, SocketAddr),
}

fn lookup<'a>(gateway: &GatewayAddress, mesh: &'a Snapshot) -> Option<Named<'a>> {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => mesh.entry(key).map(|entry| Named::Service(entry)),
        GatewayDestination::Address(at) => {
            let mut services = mesh.entries_by_vip(&at.network, at.address);
            if let Some(entry) = services.next() {
                return Some(Named::Service(entry));
            }
            let workload = mesh.workload_by_address(&at.network, at.address)?;
            let at = SocketAddr::new(at.address, gateway.hbone_mtls_port);
            Some(Named::Workload(workload, at))
        }
    }
}

fn key_of(gateway: &GatewayAddress) -> DemandKey {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => DemandKey::Service(key.clone()),
        GatewayDestination::Address(at) => DemandKey::Address(NetworkAddress {
            network: at.network.clone(),
            address: at.address.to_canonical(),
        }),
    }
}

/// What has to be asked for before anything can be said about a waypoint or gateway.
pub(crate) fn missing(gateway: &GatewayAddress, mesh: &Snapshot) -> Option<DemandKey> {
    (!mesh.is_whole() && lookup(gateway, mesh).is_none()).then(|| key_of(gateway))
}

/// Whether one of those that a waypoint's or gateway's name stands for is the one that is meant.
pub(crate) fn stands(
    gateway: &GatewayAddress,
    mesh: &Snapshot,
    is_meant: impl Fn(&Workload) -> bool,
) -> bool {
    match lookup(gateway, mesh) {
        Some(Named::Service(entry)) => entry
            .endpoints
            .iter()
            .any(|endpoint| is_meant(&endpoint.workload)),
        Some(Named::Workload(workload, _)) => is_meant(workload),
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
            let several = service.weighted_waypoints.iter();
            let several = several.map(|each| &each.destination);
            service.waypoint.iter().chain(several)
        });
    workload.waypoint.as_deref().into_iter().chain(of_services)
}

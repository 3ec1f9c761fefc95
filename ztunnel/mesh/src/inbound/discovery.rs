//! What has to be asked for before a connection that arrives can be judged, where the mesh is known
//! in part only. A pure function of what the peer says and of the mesh.

use std::sync::Arc;

use super::target::LocalEndpoint;
use crate::{Authority, DemandKey, GatewayAddress, Service, Snapshot, route};

/// The next thing to ask for, if there is one. `absent` was asked for and is not in the mesh;
/// `on_behalf` says that the peer names somebody for whom it speaks.
pub fn missing(
    authority: &Authority,
    on_behalf: bool,
    endpoint: LocalEndpoint<'_>,
    mesh: &Snapshot,
    absent: &[DemandKey],
) -> Option<DemandKey> {
    if mesh.is_whole() {
        return None;
    }
    let open = |key: &DemandKey| !absent.contains(key);
    let workload = endpoint.workload;
    // Who may speak for others, the workload's services say.
    let mut services = workload.services.iter().map(|(key, _)| key);
    let wanted = |hostname: &str| match authority {
        Authority::Host(name, _) => hostname.eq_ignore_ascii_case(name),
        Authority::Address(_) => false,
    };
    let service = services.find_map(|key| {
        let counts = on_behalf || wanted(&key.hostname);
        let unknown = counts && mesh.service(key).is_none();
        let key = unknown.then(|| DemandKey::Service(key.clone()));
        key.filter(open)
    });
    if service.is_some() {
        return service;
    }
    if on_behalf {
        let gateways =
            route::waypoints_of(workload, mesh).chain(workload.network_gateway.as_deref());
        let gateway = first(gateways, mesh, absent);
        if gateway.is_some() {
            return gateway;
        }
    }
    beyond(authority, endpoint, mesh, absent)
}

/// What a waypoint is asked for: somebody else's address, and who stands before it.
fn beyond(
    authority: &Authority,
    endpoint: LocalEndpoint<'_>,
    mesh: &Snapshot,
    absent: &[DemandKey],
) -> Option<DemandKey> {
    let Authority::Address(to) = authority else {
        return None;
    };
    let workload = endpoint.workload;
    if endpoint.owns(to.ip()) || workload.application_tunnel.is_some() {
        return None;
    }
    let network = &workload.network;
    let services = mesh.entries_by_vip(network, to.ip());
    let found = mesh.workload_by_address(network, to.ip());
    let own = found.and_then(|found| found.waypoint.as_deref());
    let mut gateways = services
        .flat_map(|entry| gateways_of(&entry.service))
        .chain(own)
        .peekable();
    if found.is_some() || gateways.peek().is_some() {
        return first(gateways, mesh, absent);
    }
    Some(DemandKey::at(network, to.ip())).filter(|key| !absent.contains(key))
}

/// All waypoints of a service.
pub fn gateways_of(service: &Arc<Service>) -> impl Iterator<Item = &GatewayAddress> {
    let several = service.weighted_waypoints.iter();
    several
        .map(|each| &each.destination)
        .chain(&service.waypoint)
}

fn first<'a>(
    mut gateways: impl Iterator<Item = &'a GatewayAddress>,
    mesh: &Snapshot,
    absent: &[DemandKey],
) -> Option<DemandKey> {
    gateways.find_map(|gateway| route::missing(gateway, mesh).filter(|key| !absent.contains(key)))
}

/// The pod's own workload, if the mesh does not know it and was not asked.
pub fn own(uid: &crate::Uid, mesh: &Snapshot, absent: &[DemandKey]) -> Option<DemandKey> {
    let unknown = !mesh.is_whole() && mesh.workload_by_uid(uid).is_none();
    let key = unknown.then(|| DemandKey::Workload(uid.clone()));
    key.filter(|key| !absent.contains(key))
}

/// Who is at an address, if the mesh does not know.
pub fn at(network: &Arc<str>, client: std::net::IpAddr, mesh: &Snapshot) -> Option<DemandKey> {
    let unknown = !mesh.is_whole() && !mesh.knows_address(network, client);
    unknown.then(|| DemandKey::at(network, client))
}

#[cfg(test)]
mod tests;

//! The resources that have to be discovered before an inbound connection is authorized against a
//! partial snapshot.

use std::sync::Arc;

use super::target::LocalEndpoint;
use crate::{Authority, GatewayAddress, ResourceKey, Service, Snapshot, route};

/// The next key to discover, if any. `absent` lists keys that the control plane does not have;
/// `on_behalf` is set if the peer names a client that it speaks for.
pub fn next_key(
    authority: &Authority,
    on_behalf: bool,
    endpoint: LocalEndpoint<'_>,
    mesh: &Snapshot,
    absent: &[ResourceKey],
) -> Option<ResourceKey> {
    if mesh.is_complete() {
        return None;
    }
    let open = |key: &ResourceKey| !absent.contains(key);
    let workload = endpoint.workload;
    // The waypoints of the workload's services may speak for clients.
    let mut services = workload.services.iter().map(|(key, _)| key);
    let is_named = |hostname: &str| match authority {
        Authority::Host(name, _) => hostname.eq_ignore_ascii_case(name),
        Authority::Address(_) => false,
    };
    let service = services.find_map(|key| {
        let is_relevant = on_behalf || is_named(&key.hostname);
        let unknown = is_relevant && mesh.service(key).is_none();
        let key = unknown.then(|| ResourceKey::Service(key.clone()));
        key.filter(open)
    });
    if service.is_some() {
        return service;
    }
    if on_behalf {
        let gateways =
            route::waypoints_of(workload, mesh).chain(workload.network_gateway.as_deref());
        let gateway = first_key(gateways, mesh, absent);
        if gateway.is_some() {
            return gateway;
        }
    }
    waypoint_key(authority, endpoint, mesh, absent)
}

/// The key to discover for a tunnel to an address of another workload: only a waypoint accepts it.
fn waypoint_key(
    authority: &Authority,
    endpoint: LocalEndpoint<'_>,
    mesh: &Snapshot,
    absent: &[ResourceKey],
) -> Option<ResourceKey> {
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
        return first_key(gateways, mesh, absent);
    }
    Some(ResourceKey::at(network, to.ip())).filter(|key| !absent.contains(key))
}

/// All waypoints of a service.
pub fn gateways_of(service: &Arc<Service>) -> impl Iterator<Item = &GatewayAddress> {
    let several = service.weighted_waypoints.iter();
    several
        .map(|each| &each.destination)
        .chain(&service.waypoint)
}

fn first_key<'a>(
    mut gateways: impl Iterator<Item = &'a GatewayAddress>,
    mesh: &Snapshot,
    absent: &[ResourceKey],
) -> Option<ResourceKey> {
    gateways.find_map(|gateway| {
        route::undiscovered_key(gateway, mesh).filter(|key| !absent.contains(key))
    })
}

/// The key of an address, if the partial snapshot has neither a workload nor a service there.
pub fn unknown_address_key(
    network: &Arc<str>,
    client: std::net::IpAddr,
    mesh: &Snapshot,
) -> Option<ResourceKey> {
    let unknown = !mesh.is_complete() && !mesh.knows_address(network, client);
    unknown.then(|| ResourceKey::at(network, client))
}

#[cfg(test)]
mod tests;

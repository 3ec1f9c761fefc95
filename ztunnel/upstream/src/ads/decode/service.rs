//! Decodes `istio.workload.Service`.

use super::fields::{FieldError, gateway, ip, is_range, port, port_or_zero, range, service_key};
use api::istio::workload as wire;
use mesh::{
    HealthPolicy, Interner, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkAddress,
    NetworkRange, Ports, RoutingScope, Service, Visibility, WeightedWaypoint,
};

pub(super) fn build(service: &wire::Service, texts: &mut Interner) -> Result<Service, FieldError> {
    let key = service_key(&service.namespace, &service.hostname, texts)?;
    let (vips, ranges) = addresses(service, texts)?;
    let waypoint = service.waypoint.as_ref();
    let waypoint = waypoint
        .map(|waypoint| gateway(waypoint, texts).map_err(|error| error.at("waypoint")))
        .transpose()?;
    Ok(Service {
        name: texts.get(&service.name),
        namespace: key.namespace,
        hostname: key.hostname,
        vips,
        ranges,
        ports: ports(&service.ports)?,
        subject_alt_names: service
            .subject_alt_names
            .iter()
            .map(|name| texts.get(name))
            .collect(),
        waypoint,
        weighted_waypoints: weighted_waypoints(service, texts)?,
        ingress_use_waypoint: service.ingress_use_waypoint,
        load_balancing: service.load_balancing.as_ref().map(load_balancing),
        ip_families: ip_families(service.ip_families),
        canonical: service.canonical,
        visibility: visibility(service.visibility),
    })
}

fn addresses(
    service: &wire::Service,
    texts: &mut Interner,
) -> Result<(Vec<NetworkAddress>, Vec<NetworkRange>), FieldError> {
    let (mut vips, mut ranges) = (Vec::new(), Vec::new());
    for (at, each) in service.addresses.iter().enumerate() {
        let at_index = |error: FieldError| error.at(format_args!("addresses[{at}]"));
        let network = texts.get(&each.network);
        match each.length {
            Some(length) if is_range(each) => {
                let range = range(&each.address, length).map_err(at_index)?;
                ranges.push(NetworkRange { network, range });
            }
            _ => {
                let address = ip(&each.address).map_err(at_index)?;
                vips.push(NetworkAddress { network, address });
            }
        }
    }
    Ok((vips, ranges))
}

fn ports(ports: &[wire::Port]) -> Result<Ports, FieldError> {
    let mut decoded = Ports::new();
    for (at, each) in ports.iter().enumerate() {
        let at_index = |error: FieldError| error.at(format_args!("ports[{at}]"));
        let from = port(each.service_port).map_err(|error| at_index(error.at("service_port")))?;
        let to =
            port_or_zero(each.target_port).map_err(|error| at_index(error.at("target_port")))?;
        decoded.insert(from, to);
    }
    Ok(decoded)
}

fn weighted_waypoints(
    service: &wire::Service,
    texts: &mut Interner,
) -> Result<Vec<WeightedWaypoint>, FieldError> {
    let mut decoded = Vec::with_capacity(service.weighted_waypoints.len());
    for (at, each) in service.weighted_waypoints.iter().enumerate() {
        let destination = each
            .destination
            .as_ref()
            .ok_or_else(|| FieldError::new("missing"))
            .and_then(|destination| gateway(destination, texts))
            .map_err(|error| {
                error
                    .at("destination")
                    .at(format_args!("weighted_waypoints[{at}]"))
            })?;
        let weight = each.weight;
        decoded.push(WeightedWaypoint {
            destination,
            weight,
        });
    }
    Ok(decoded)
}

fn load_balancing(balancing: &wire::LoadBalancing) -> LoadBalancing {
    use wire::load_balancing::{HealthPolicy as Health, Mode};
    LoadBalancing {
        routing_preferences: balancing
            .routing_preference
            .iter()
            .filter_map(|&number| scope(number))
            .collect(),
        mode: match Mode::try_from(balancing.mode) {
            Ok(Mode::UnspecifiedMode) | Err(_) => LoadBalancingMode::Standard,
            Ok(Mode::Strict) => LoadBalancingMode::Strict,
            Ok(Mode::Failover) => LoadBalancingMode::Failover,
            Ok(Mode::Passthrough) => LoadBalancingMode::Passthrough,
        },
        health_policy: match Health::try_from(balancing.health_policy) {
            Ok(Health::OnlyHealthy) | Err(_) => HealthPolicy::OnlyHealthy,
            Ok(Health::AllowAll) => HealthPolicy::AllowAll,
        },
    }
}

fn scope(number: i32) -> Option<RoutingScope> {
    use wire::load_balancing::Scope;
    match Scope::try_from(number) {
        Ok(Scope::UnspecifiedScope) | Err(_) => None,
        Ok(Scope::Region) => Some(RoutingScope::Region),
        Ok(Scope::Zone) => Some(RoutingScope::Zone),
        Ok(Scope::Subzone) => Some(RoutingScope::Subzone),
        Ok(Scope::Node) => Some(RoutingScope::Node),
        Ok(Scope::Cluster) => Some(RoutingScope::Cluster),
        Ok(Scope::Network) => Some(RoutingScope::Network),
    }
}

fn ip_families(number: i32) -> IpFamilies {
    match wire::IpFamilies::try_from(number) {
        Ok(wire::IpFamilies::Automatic) | Err(_) => IpFamilies::Automatic,
        Ok(wire::IpFamilies::Ipv4Only) => IpFamilies::Ipv4Only,
        Ok(wire::IpFamilies::Ipv6Only) => IpFamilies::Ipv6Only,
        Ok(wire::IpFamilies::Dual) => IpFamilies::Dual,
    }
}

fn visibility(number: i32) -> Visibility {
    match wire::Visibility::try_from(number) {
        Ok(wire::Visibility::Public) | Err(_) => Visibility::Public,
        Ok(wire::Visibility::Namespace) => Visibility::Namespace,
    }
}

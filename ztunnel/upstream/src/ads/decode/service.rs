//! `istio.workload.Service`.

use super::fields::{BadField, gateway, ip, is_range, port, port_or_zero, range, service_key};
use api::istio::workload as wire;
use mesh::{
    HealthPolicy, Interner, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkAddress,
    NetworkRange, Ports, RoutingScope, Service, Visibility, WeightedWaypoint,
};

pub(super) fn build(service: &wire::Service, texts: &mut Interner) -> Result<Service, BadField> {
    let key = service_key(&service.namespace, &service.hostname, texts)?;
    let (vips, ranges) = addresses(service, texts)?;
    let waypoint = service.waypoint.as_ref();
    let waypoint = waypoint
        .map(|waypoint| gateway(waypoint, texts).map_err(|bad| bad.at("waypoint")))
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
) -> Result<(Vec<NetworkAddress>, Vec<NetworkRange>), BadField> {
    let (mut vips, mut ranges) = (Vec::new(), Vec::new());
    for (at, each) in service.addresses.iter().enumerate() {
        let bad = |bad: BadField| bad.at(format_args!("addresses[{at}]"));
        let network = texts.get(&each.network);
        match each.length {
            Some(length) if is_range(each) => {
                let range = range(&each.address, length).map_err(bad)?;
                ranges.push(NetworkRange { network, range });
            }
            _ => {
                let address = ip(&each.address).map_err(bad)?;
                vips.push(NetworkAddress { network, address });
            }
        }
    }
    Ok((vips, ranges))
}

fn ports(ports: &[wire::Port]) -> Result<Ports, BadField> {
    let mut read = Ports::new();
    for (at, each) in ports.iter().enumerate() {
        let bad = |bad: BadField| bad.at(format_args!("ports[{at}]"));
        let from = port(each.service_port).map_err(|wrong| bad(wrong.at("service_port")))?;
        let to = port_or_zero(each.target_port).map_err(|wrong| bad(wrong.at("target_port")))?;
        read.insert(from, to);
    }
    Ok(read)
}

fn weighted_waypoints(
    service: &wire::Service,
    texts: &mut Interner,
) -> Result<Vec<WeightedWaypoint>, BadField> {
    let mut read = Vec::with_capacity(service.weighted_waypoints.len());
    for (at, each) in service.weighted_waypoints.iter().enumerate() {
        let destination = each
            .destination
            .as_ref()
            .ok_or_else(|| BadField::new("missing"))
            .and_then(|destination| gateway(destination, texts))
            .map_err(|bad| {
                bad.at("destination")
                    .at(format_args!("weighted_waypoints[{at}]"))
            })?;
        let weight = each.weight;
        read.push(WeightedWaypoint {
            destination,
            weight,
        });
    }
    Ok(read)
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

//! Services of the local file.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

use super::fields::{BadField, or};
use super::gateway::Gateway;
use super::scalars::{Port, TargetPort, Vip, VipRange, named};
use crate::{
    HealthPolicy, Interner, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkAddress,
    NetworkRange, RoutingScope, Service, Visibility, WeightedWaypoint,
};

/// A service of the local file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ServiceEntry {
    name: String,
    #[serde(default)]
    namespace: String,
    hostname: String,
    #[serde(default)]
    vips: Vec<Vip>,
    #[serde(default)]
    ranges: Vec<VipRange>,
    #[serde(default)]
    ports: BTreeMap<Port, TargetPort>,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    #[serde(default)]
    waypoint: Option<Gateway>,
    #[serde(default)]
    weighted_waypoints: Vec<Weighted>,
    #[serde(default)]
    ingress_use_waypoint: bool,
    #[serde(default, alias = "loadBalancing")]
    load_balancer: Option<Balancing>,
    #[serde(default, deserialize_with = "ip_families")]
    ip_families: IpFamilies,
    #[serde(default)]
    canonical: bool,
    #[serde(default, deserialize_with = "visibility")]
    visibility: Visibility,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Weighted {
    destination: Gateway,
    #[serde(default = "one")]
    weight: u32,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Balancing {
    #[serde(default, alias = "routingPreference")]
    routing_preferences: Vec<Scope>,
    #[serde(default, deserialize_with = "mode")]
    mode: LoadBalancingMode,
    #[serde(default, deserialize_with = "health_policy")]
    health_policy: HealthPolicy,
}

#[derive(Debug, Clone, Copy)]
struct Scope(RoutingScope);

impl ServiceEntry {
    /// Checks and converts.
    pub(super) fn build(&self, texts: &mut Interner) -> Result<Service, BadField> {
        if self.hostname.is_empty() || self.hostname.contains('/') {
            let problem = format!("{:?} is not a host name", self.hostname);
            return Err(BadField {
                field: "hostname",
                problem,
            });
        }
        let vip = |vip: &Vip, texts: &mut Interner| NetworkAddress {
            network: texts.get(&vip.network),
            address: vip.address,
        };
        let range = |range: &VipRange, texts: &mut Interner| NetworkRange {
            network: texts.get(&range.network),
            range: range.range,
        };
        let waypoints = self.weighted_waypoints.iter();
        Ok(Service {
            name: texts.get(&self.name),
            namespace: texts.get(or(&self.namespace, "default")),
            hostname: texts.get(&self.hostname),
            vips: self.vips.iter().map(|each| vip(each, texts)).collect(),
            ranges: self.ranges.iter().map(|each| range(each, texts)).collect(),
            ports: self
                .ports
                .iter()
                .map(|(port, target)| (port.0, target.0))
                .collect(),
            subject_alt_names: self
                .subject_alt_names
                .iter()
                .map(|name| texts.get(name))
                .collect(),
            waypoint: self.waypoint.as_ref().map(|gateway| gateway.build(texts)),
            weighted_waypoints: waypoints
                .map(|waypoint| WeightedWaypoint {
                    destination: waypoint.destination.build(texts),
                    weight: waypoint.weight,
                })
                .collect(),
            ingress_use_waypoint: self.ingress_use_waypoint,
            load_balancing: self.load_balancer.as_ref().map(|balancing| LoadBalancing {
                routing_preferences: balancing.routing_preferences.iter().map(|s| s.0).collect(),
                mode: balancing.mode,
                health_policy: balancing.health_policy,
            }),
            ip_families: self.ip_families,
            canonical: self.canonical,
            visibility: self.visibility,
        })
    }
}

fn mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LoadBalancingMode, D::Error> {
    use LoadBalancingMode::{Failover, Passthrough, Standard, Strict};
    let names = [
        ("Standard", Standard),
        ("Strict", Strict),
        ("Failover", Failover),
        ("Passthrough", Passthrough),
    ];
    named(deserializer, &names)
}

fn health_policy<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HealthPolicy, D::Error> {
    use HealthPolicy::{AllowAll, OnlyHealthy};
    named(
        deserializer,
        &[("OnlyHealthy", OnlyHealthy), ("AllowAll", AllowAll)],
    )
}

fn ip_families<'de, D: Deserializer<'de>>(deserializer: D) -> Result<IpFamilies, D::Error> {
    use IpFamilies::{Automatic, Dual, Ipv4Only, Ipv6Only};
    let names = [
        ("Automatic", Automatic),
        ("IPv4", Ipv4Only),
        ("IPv6", Ipv6Only),
        ("Dual", Dual),
        ("IPv4Only", Ipv4Only),
        ("IPv6Only", Ipv6Only),
    ];
    named(deserializer, &names)
}

const fn one() -> u32 {
    1
}

fn visibility<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Visibility, D::Error> {
    use Visibility::{Namespace, Public};
    named(
        deserializer,
        &[("Public", Public), ("Namespace", Namespace)],
    )
}

impl<'de> Deserialize<'de> for Scope {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use RoutingScope::{Cluster, Network, Node, Region, Subzone, Zone};
        let names = [
            ("Region", Region),
            ("Zone", Zone),
            ("Subzone", Subzone),
            ("Node", Node),
            ("Cluster", Cluster),
            ("Network", Network),
        ];
        named(deserializer, &names).map(Self)
    }
}

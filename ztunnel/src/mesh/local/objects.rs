//! How workloads and services are written in the local file, and what they become.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};
use serde_yaml_ng::Value;

use super::scalars::{Address, Port, ServiceKey, TargetPort, Vip, named};
use crate::mesh::{
    ApplicationTunnel, GatewayAddress, GatewayDestination, HealthPolicy, HealthStatus, Identity,
    Interner, IpFamilies, LoadBalancing, LoadBalancingMode, Locality, NamespacedHostname,
    NetworkAddress, NetworkMode, ParseIdentityError, RoutingScope, Service, TunnelProtocol, Uid,
    Workload, WorkloadType,
};

/// A workload as it is written.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct WorkloadEntry {
    pub(super) uid: String,
    name: String,
    #[serde(default)]
    namespace: String,
    #[serde(default)]
    trust_domain: String,
    #[serde(default)]
    service_account: String,
    #[serde(default)]
    workload_ips: Vec<Address>,
    #[serde(default)]
    hostname: String,
    #[serde(default)]
    network: String,
    #[serde(default, deserialize_with = "protocol")]
    protocol: TunnelProtocol,
    #[serde(default)]
    waypoint: Option<Gateway>,
    #[serde(default)]
    network_gateway: Option<Gateway>,
    #[serde(default)]
    node: String,
    #[serde(default)]
    canonical_name: String,
    #[serde(default)]
    canonical_revision: String,
    #[serde(default, deserialize_with = "workload_type")]
    workload_type: WorkloadType,
    #[serde(default)]
    workload_name: String,
    #[serde(default)]
    native_tunnel: bool,
    #[serde(default)]
    application_tunnel: Option<Tunnel>,
    #[serde(default)]
    services: BTreeMap<ServiceKey, BTreeMap<Port, Port>>,
    #[serde(default)]
    pub(super) authorization_policies: Vec<String>,
    #[serde(default, deserialize_with = "status")]
    status: HealthStatus,
    #[serde(default)]
    cluster_id: String,
    #[serde(default)]
    locality: Place,
    #[serde(default, deserialize_with = "network_mode")]
    network_mode: NetworkMode,
    #[serde(default = "one")]
    capacity: u32,
}

/// A service as it is written.
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
    ports: BTreeMap<Port, TargetPort>,
    #[serde(default)]
    subject_alt_names: Vec<String>,
    #[serde(default)]
    waypoint: Option<Gateway>,
    #[serde(default, alias = "loadBalancing")]
    load_balancer: Option<Balancing>,
    #[serde(default, deserialize_with = "ip_families")]
    ip_families: IpFamilies,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Place {
    region: String,
    zone: String,
    subzone: String,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Tunnel {
    #[serde(default, deserialize_with = "tunnel_protocol")]
    protocol: bool,
    #[serde(default)]
    port: Option<Port>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Gateway {
    #[serde(deserialize_with = "gateway_destination")]
    destination: Destination,
    #[serde(default = "hbone_port")]
    hbone_mtls_port: Port,
}

#[derive(Debug, Clone)]
enum Destination {
    Hostname(ServiceKey),
    Address(Vip),
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

/// Why an entry is no workload or service: the field and what is wrong with it.
pub(super) struct BadField {
    pub(super) field: &'static str,
    pub(super) problem: String,
}

impl From<ParseIdentityError> for BadField {
    fn from(error: ParseIdentityError) -> Self {
        Self {
            field: "serviceAccount",
            problem: error.to_string(),
        }
    }
}

impl WorkloadEntry {
    /// Fills in what is left out: an empty namespace and service account mean `default`, an empty
    /// trust domain means the mesh's own (`istio.workload.Workload`).
    pub(super) fn build(
        &self,
        trust_domain: &str,
        texts: &mut Interner,
    ) -> Result<Workload, BadField> {
        if self.uid.is_empty() {
            return Err(BadField {
                field: "uid",
                problem: "must not be empty".to_owned(),
            });
        }
        let namespace = or(&self.namespace, "default");
        let service_account = or(&self.service_account, "default");
        let trust_domain = or(&self.trust_domain, trust_domain);
        let services = self.services.iter().map(|(key, ports)| {
            (
                key.build(texts),
                ports
                    .iter()
                    .map(|(port, target)| (port.0, target.0))
                    .collect(),
            )
        });
        let services = services.collect();
        Ok(Workload {
            uid: Uid(texts.get(&self.uid)),
            name: texts.get(&self.name),
            namespace: texts.get(namespace),
            trust_domain: texts.get(trust_domain),
            service_account: texts.get(service_account),
            identity: Identity::new(trust_domain, namespace, service_account)?,
            workload_ips: self.workload_ips.iter().map(|address| address.0).collect(),
            hostname: texts.get(&self.hostname),
            network: texts.get(&self.network),
            protocol: self.protocol,
            waypoint: self.waypoint.as_ref().map(|gateway| gateway.build(texts)),
            network_gateway: self
                .network_gateway
                .as_ref()
                .map(|gateway| gateway.build(texts)),
            node: texts.get(&self.node),
            canonical_name: texts.get(&self.canonical_name),
            canonical_revision: texts.get(&self.canonical_revision),
            workload_type: self.workload_type,
            workload_name: texts.get(&self.workload_name),
            native_tunnel: self.native_tunnel,
            application_tunnel: self.application_tunnel.as_ref().map(Tunnel::build),
            services,
            authorization_policies: self
                .authorization_policies
                .iter()
                .map(|key| texts.get(key))
                .collect(),
            status: self.status,
            cluster_id: texts.get(&self.cluster_id),
            locality: self.locality.build(texts),
            network_mode: self.network_mode,
            capacity: self.capacity,
        })
    }
}

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
        for name in &self.subject_alt_names {
            if let Err(error) = name.parse::<Identity>() {
                return Err(BadField {
                    field: "subjectAltNames",
                    problem: error.to_string(),
                });
            }
        }
        let vip = |vip: &Vip, texts: &mut Interner| NetworkAddress {
            network: texts.get(&vip.network),
            address: vip.address,
        };
        Ok(Service {
            name: texts.get(&self.name),
            namespace: texts.get(or(&self.namespace, "default")),
            hostname: texts.get(&self.hostname),
            vips: self.vips.iter().map(|each| vip(each, texts)).collect(),
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
            load_balancing: self.load_balancer.as_ref().map(|balancing| LoadBalancing {
                routing_preferences: balancing.routing_preferences.iter().map(|s| s.0).collect(),
                mode: balancing.mode,
                health_policy: balancing.health_policy,
            }),
            ip_families: self.ip_families,
        })
    }
}

impl Place {
    fn build(&self, texts: &mut Interner) -> Locality {
        Locality {
            region: texts.get(&self.region),
            zone: texts.get(&self.zone),
            subzone: texts.get(&self.subzone),
        }
    }
}

impl Tunnel {
    fn build(&self) -> ApplicationTunnel {
        ApplicationTunnel {
            proxy_protocol: self.protocol,
            port: self.port.map(|port| port.0),
        }
    }
}

impl ServiceKey {
    fn build(&self, texts: &mut Interner) -> NamespacedHostname {
        let namespace = texts.get(&self.namespace);
        NamespacedHostname {
            namespace,
            hostname: texts.get(&self.hostname),
        }
    }
}

impl Gateway {
    fn build(&self, texts: &mut Interner) -> GatewayAddress {
        let destination = match &self.destination {
            Destination::Hostname(key) => GatewayDestination::Hostname(key.build(texts)),
            Destination::Address(vip) => GatewayDestination::Address(NetworkAddress {
                network: texts.get(&vip.network),
                address: vip.address,
            }),
        };
        GatewayAddress {
            destination,
            hbone_mtls_port: self.hbone_mtls_port.0,
        }
    }
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

const fn one() -> u32 {
    1
}

const fn hbone_port() -> Port {
    Port(15008)
}

/// `network/address`, `namespace/hostname`, or a mapping that spells either out.
fn gateway_destination<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Destination, D::Error> {
    use serde::de::Error as _;
    let value = Value::deserialize(deserializer)?;
    read_destination(&value).ok_or_else(|| {
        D::Error::custom(
            "expected \"network/address\", \"namespace/hostname\", {network, address} or {namespace, hostname}",
        )
    })
}

fn read_destination(value: &Value) -> Option<Destination> {
    if let Some(text) = value.as_str() {
        let address = Vip::parse(text).map(Destination::Address);
        return address.or_else(|| ServiceKey::parse(text).map(Destination::Hostname));
    }
    let mapping = value.as_mapping()?;
    let entry = |name: &str| mapping.get(name);
    let text = |name: &str| entry(name).and_then(Value::as_str);
    match mapping.len() {
        // The API's oneof: the kind, and below it the value.
        1 => read_destination(entry("hostname").or_else(|| entry("address"))?),
        2 => match (
            text("namespace"),
            text("hostname"),
            text("network"),
            text("address"),
        ) {
            (Some(namespace), Some(hostname), None, None) => {
                ServiceKey::parse(&format!("{namespace}/{hostname}")).map(Destination::Hostname)
            }
            (None, None, Some(network), Some(address)) => {
                Vip::parse(&format!("{network}/{address}")).map(Destination::Address)
            }
            _ => None,
        },
        _ => None,
    }
}

fn protocol<'de, D: Deserializer<'de>>(deserializer: D) -> Result<TunnelProtocol, D::Error> {
    named(
        deserializer,
        &[
            ("TCP", TunnelProtocol::Tcp),
            ("HBONE", TunnelProtocol::Hbone),
        ],
    )
}

fn workload_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WorkloadType, D::Error> {
    use WorkloadType::{CronJob, Deployment, Job, Pod};
    named(
        deserializer,
        &[
            ("deployment", Deployment),
            ("cronjob", CronJob),
            ("pod", Pod),
            ("job", Job),
        ],
    )
}

fn tunnel_protocol<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    named(deserializer, &[("NONE", false), ("PROXY", true)])
}

fn status<'de, D: Deserializer<'de>>(deserializer: D) -> Result<HealthStatus, D::Error> {
    use HealthStatus::{Healthy, Unhealthy};
    named(
        deserializer,
        &[("Healthy", Healthy), ("Unhealthy", Unhealthy)],
    )
}

fn network_mode<'de, D: Deserializer<'de>>(deserializer: D) -> Result<NetworkMode, D::Error> {
    use NetworkMode::{HostNetwork, Standard};
    named(
        deserializer,
        &[("Standard", Standard), ("HostNetwork", HostNetwork)],
    )
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

//! Workloads of the local file.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Deserializer};

use super::fields::{BadField, or};
use super::gateway::Gateway;
use super::scalars::{Address, Port, ServiceKey, named};
use crate::{
    ApplicationTunnel, GatewayAddress, HealthStatus, Interner, Locality, NetworkMode,
    TunnelProtocol, Uid, Workload, WorkloadType,
};

/// A workload of the local file.
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
    locality: LocalityEntry,
    #[serde(default, deserialize_with = "network_mode")]
    network_mode: NetworkMode,
    #[serde(default = "one")]
    capacity: u32,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct LocalityEntry {
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

impl WorkloadEntry {
    /// Builds the workload. An empty namespace and service account mean `default`, an empty trust
    /// domain means that of the mesh (`istio.workload.Workload`).
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
            let ports = ports.iter().map(|(port, target)| (port.0, target.0));
            (key.build(texts), texts.ports(ports.collect()))
        });
        let services: Vec<_> = services.collect();
        Ok(Workload {
            uid: Uid(texts.get(&self.uid)),
            name: texts.get(&self.name),
            namespace: texts.get(namespace),
            trust_domain: texts.get(trust_domain),
            service_account: texts.get(service_account),
            identity: texts.identity(trust_domain, namespace, service_account)?,
            workload_ips: self.workload_ips.iter().map(|address| address.0).collect(),
            hostname: texts.get(&self.hostname),
            network: texts.get(&self.network),
            protocol: self.protocol,
            waypoint: shared(self.waypoint.as_ref(), texts),
            network_gateway: shared(self.network_gateway.as_ref(), texts),
            node: texts.get(&self.node),
            canonical_name: texts.get(&self.canonical_name),
            canonical_revision: texts.get(&self.canonical_revision),
            workload_type: self.workload_type,
            workload_name: texts.get(&self.workload_name),
            native_tunnel: self.native_tunnel,
            application_tunnel: self.application_tunnel.as_ref().map(Tunnel::build),
            services: texts.services(services),
            authorization_policies: texts
                .policies(self.authorization_policies.iter().map(String::as_str)),
            status: self.status,
            cluster_id: texts.get(&self.cluster_id),
            locality: self.locality.build(texts),
            network_mode: self.network_mode,
            capacity: self.capacity,
        })
    }
}

fn shared(gateway: Option<&Gateway>, texts: &mut Interner) -> Option<Arc<GatewayAddress>> {
    let gateway = gateway.map(|gateway| gateway.build(texts));
    gateway.map(|gateway| texts.gateway(gateway))
}

impl LocalityEntry {
    fn build(&self, texts: &mut Interner) -> Arc<Locality> {
        let locality = Locality {
            region: texts.get(&self.region),
            zone: texts.get(&self.zone),
            subzone: texts.get(&self.subzone),
        };
        texts.locality(locality)
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

const fn one() -> u32 {
    1
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

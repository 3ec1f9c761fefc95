//! Workloads: pods, VMs and other endpoints. The fields follow Istio's workload API
//! (`istio.workload.Workload`).

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use serde::Serialize;

use super::{Identity, ParseIdentityError};

/// The unique id of a workload across clusters, for example `cluster1//v1/Pod/default/a`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct Uid(pub Arc<str>);

impl Uid {
    /// The uid of a pod, in the form of Istio's control plane:
    /// `<cluster>//Pod/<namespace>/<name>`.
    #[must_use]
    pub fn of_pod(cluster: &str, namespace: &str, name: &str) -> Self {
        Self(format!("{cluster}//Pod/{namespace}/{name}").into())
    }

    /// The Kubernetes namespace of a pod, if this is the uid of one ([`Self::of_pod`]).
    #[must_use]
    pub fn pod_namespace(&self) -> Option<&str> {
        let (_cluster, pod) = self.0.split_once("//Pod/")?;
        let (namespace, _name) = pod.split_once('/')?;
        (!namespace.is_empty()).then_some(namespace)
    }
}

/// How a workload is reached.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum TunnelProtocol {
    /// Plain TCP: the workload is outside the mesh.
    #[default]
    Tcp,
    /// HTTP/2 CONNECT over mutual TLS, port 15008.
    Hbone,
}

/// The kind of controller that created a workload; it names the baggage key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment or a similar controller.
    #[default]
    Deployment,
    /// A CronJob.
    CronJob,
    /// A bare pod.
    Pod,
    /// A Job.
    Job,
}

/// Whether a workload may be chosen as a backend.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
pub enum HealthStatus {
    /// The workload may be chosen.
    #[default]
    Healthy,
    /// The workload is chosen only if the service allows all endpoints.
    Unhealthy,
}

/// Which network namespace a workload uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
pub enum NetworkMode {
    /// Its own network namespace.
    #[default]
    Standard,
    /// The network namespace of its node.
    HostNetwork,
}

/// Where a workload runs, for locality-aware load balancing. Empty means unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Locality {
    /// Cloud region.
    pub region: Arc<str>,
    /// Zone inside the region.
    pub zone: Arc<str>,
    /// Subzone inside the zone.
    pub subzone: Arc<str>,
}

/// How a workload wants tunnelled connections delivered to its application.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// Whether a PROXY protocol v2 header precedes the bytes.
    pub proxy_protocol: bool,
    /// The port of delivery, if it is not the dialled one.
    pub port: Option<u16>,
}

/// A service's key: Kubernetes namespace and host name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The fully qualified host name.
    pub hostname: Arc<str>,
}

impl fmt::Display for NamespacedHostname {
    /// `namespace/hostname`, the spelling of the workload API.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// An address inside a named network; the empty name is the default network.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    /// The network's name.
    pub network: Arc<str>,
    /// The address.
    pub address: IpAddr,
}

impl fmt::Display for NetworkAddress {
    /// `network/address`, the spelling of the workload API.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

/// The destination that names a waypoint or gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    /// A service.
    Hostname(NamespacedHostname),
    /// An address.
    Address(NetworkAddress),
}

impl fmt::Display for GatewayDestination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hostname(hostname) => hostname.fmt(f),
            Self::Address(address) => address.fmt(f),
        }
    }
}

/// A waypoint or an east-west gateway.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    /// The service or address of the gateway.
    pub destination: GatewayDestination,
    /// Its HBONE port.
    pub hbone_mtls_port: u16,
}

/// Target ports by service port. In a service, a target of 0 leaves the target port to each backend
/// (a named target port in Kubernetes); a backend without one is not reachable on that port.
pub type Ports = BTreeMap<u16, u16>;

/// Services that a workload backs, each with its target ports by service port.
pub type Backed = [(NamespacedHostname, Arc<Ports>)];

/// A pod, a VM, or another address that the control plane knows.
///
/// A mesh may have a hundred thousand workloads. The replicas of a deployment share equal values
/// behind an `Arc` ([`super::Interner`]), and no list has unused capacity.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(missing_docs, reason = "names and meanings of the workload API")]
pub struct Workload {
    pub uid: Uid,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub trust_domain: Arc<str>,
    pub service_account: Arc<str>,
    /// Its SPIFFE identity: trust domain, namespace and service account.
    pub identity: Identity,
    pub workload_ips: Box<[IpAddr]>,
    pub hostname: Arc<str>,
    pub network: Arc<str>,
    pub protocol: TunnelProtocol,
    pub waypoint: Option<Arc<GatewayAddress>>,
    pub network_gateway: Option<Arc<GatewayAddress>>,
    pub node: Arc<str>,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub workload_type: WorkloadType,
    pub workload_name: Arc<str>,
    pub native_tunnel: bool,
    pub application_tunnel: Option<ApplicationTunnel>,
    /// The services that it backs.
    pub services: Arc<Backed>,
    /// The keys (`namespace/name`) of selector policies that apply to it. A key must not repeat:
    /// each entry is evaluated, and a dry-run policy counted, once per entry.
    pub authorization_policies: Arc<[Arc<str>]>,
    pub status: HealthStatus,
    pub cluster_id: Arc<str>,
    pub locality: Arc<Locality>,
    pub network_mode: NetworkMode,
    /// The weight among the endpoints of a service, 1 by default; a workload with weight 0 is never
    /// chosen.
    pub capacity: u32,
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Workload {
    /// A workload with the API's defaults: trust domain `cluster.local`, namespace and service
    /// account `default`, plain TCP, healthy, capacity 1.
    ///
    /// # Errors
    /// When the parts do not form a SPIFFE identity.
    pub fn new(
        uid: &str,
        name: &str,
        namespace: &str,
        service_account: &str,
    ) -> Result<Self, ParseIdentityError> {
        let trust_domain = "cluster.local";
        let empty: Arc<str> = Arc::default();
        Ok(Self {
            uid: Uid(uid.into()),
            name: name.into(),
            namespace: namespace.into(),
            trust_domain: trust_domain.into(),
            service_account: service_account.into(),
            identity: Identity::new(trust_domain, namespace, service_account)?,
            workload_ips: Box::default(),
            hostname: empty.clone(),
            network: empty.clone(),
            protocol: TunnelProtocol::default(),
            waypoint: None,
            network_gateway: None,
            node: empty.clone(),
            canonical_name: empty.clone(),
            canonical_revision: empty.clone(),
            workload_type: WorkloadType::default(),
            workload_name: empty.clone(),
            native_tunnel: false,
            application_tunnel: None,
            services: Arc::default(),
            authorization_policies: Arc::default(),
            status: HealthStatus::default(),
            cluster_id: empty,
            locality: Arc::default(),
            network_mode: NetworkMode::default(),
            capacity: 1,
        })
    }
}

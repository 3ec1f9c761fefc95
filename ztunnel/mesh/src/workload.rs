//! Workloads: what runs somewhere and can be called or call. Field meanings follow Istio's
//! workload API (`istio.workload.Workload`).

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
    /// The uid of a pod, put together as Istio's control plane does it:
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
    /// Plain TCP: it is outside the mesh.
    #[default]
    Tcp,
    /// HTTP/2 CONNECT over mutual TLS, port 15008.
    Hbone,
}

/// The kind of controller that made a workload; names the baggage key.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkloadType {
    /// A Deployment (or anything like it).
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
    /// It may be chosen.
    #[default]
    Healthy,
    /// It is chosen only where the service allows all endpoints.
    Unhealthy,
}

/// Whose network a workload uses.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize)]
pub enum NetworkMode {
    /// A network namespace of its own.
    #[default]
    Standard,
    /// The node's.
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

/// The application wants to learn the client's address and identity in-band.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    /// Whether a PROXY protocol v2 header precedes the bytes.
    pub proxy_protocol: bool,
    /// Deliver to this port instead of the one that was dialled.
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

/// An address inside a named network; the empty network is the local default.
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

/// What a waypoint or gateway is called.
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
    /// Where it is.
    pub destination: GatewayDestination,
    /// Its HBONE port.
    pub hbone_mtls_port: u16,
}

/// Service port to target port. In a service, a target of 0 says that every backend names its own
/// (a named target port in Kubernetes); a backend that names none is not reachable on that port.
pub type Ports = BTreeMap<u16, u16>;

/// Services that a workload backs, each with its target ports by service port.
pub type Backed = [(NamespacedHostname, Arc<Ports>)];

/// Something that runs: a pod, a VM, or an address that the mesh knows about.
///
/// There are a hundred thousand of these. What the replicas of a deployment have in common is behind
/// an `Arc` that they share ([`super::Interner`]), and no list has room that it does not use.
#[derive(Debug, Clone, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the fields bear the names of the workload API and mean the same"
)]
pub struct Workload {
    pub uid: Uid,
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub trust_domain: Arc<str>,
    pub service_account: Arc<str>,
    /// Its SPIFFE identity, put together from trust domain, namespace and service account.
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
    /// The services it backs.
    pub services: Arc<Backed>,
    /// Selector policies that apply to it, `namespace/name`, none of them twice: each is judged,
    /// and a policy on trial counted, once for each time it is here.
    pub authorization_policies: Arc<[Arc<str>]>,
    pub status: HealthStatus,
    pub cluster_id: Arc<str>,
    pub locality: Arc<Locality>,
    pub network_mode: NetworkMode,
    /// Weight among the endpoints of a service; 1 unless told otherwise, 0 is never chosen.
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

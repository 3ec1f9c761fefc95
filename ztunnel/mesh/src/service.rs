//! Services: names and virtual addresses in front of workloads (`istio.workload.Service`).

use std::sync::Arc;

use ipnet::IpNet;
use serde::Serialize;

use super::{GatewayAddress, NamespacedHostname, NetworkAddress, Ports};

/// Which address families a service answers with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "names of the workload API")]
pub enum IpFamilies {
    #[default]
    Automatic,
    Ipv4Only,
    Ipv6Only,
    Dual,
}

/// A property in which an endpoint can be near to the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[allow(missing_docs, reason = "names of the workload API")]
pub enum RoutingScope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// What the list of preferences means.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum LoadBalancingMode {
    /// Every endpoint is as good as any other.
    #[default]
    Standard,
    /// Endpoints that do not match every preference are left out.
    Strict,
    /// Endpoints with the longest matching prefix of the list come first.
    Failover,
    /// The original address is kept.
    Passthrough,
}

/// Which endpoints may be chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum HealthPolicy {
    /// Healthy ones.
    #[default]
    OnlyHealthy,
    /// All.
    AllowAll,
}

/// How a backend is chosen among the endpoints of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    /// The order of preference.
    pub routing_preferences: Vec<RoutingScope>,
    /// What that order means.
    pub mode: LoadBalancingMode,
    /// Which endpoints count.
    pub health_policy: HealthPolicy,
}

/// Who may reach a service by its name or its virtual address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Visibility {
    /// Everybody.
    #[default]
    Public,
    /// Workloads of its own namespace; for the others it does not exist.
    Namespace,
}

/// A range of addresses inside a named network, all of which lead to one service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NetworkRange {
    /// The network's name.
    pub network: Arc<str>,
    /// The range.
    pub range: IpNet,
}

/// One of several waypoints that share the connections to a service.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct WeightedWaypoint {
    /// Where it is.
    pub destination: GatewayAddress,
    /// Its share, relative to the others' weights; 0 is never chosen.
    pub weight: u32,
}

/// A service of the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(
    missing_docs,
    reason = "the fields bear the names of the workload API and mean the same"
)]
pub struct Service {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
    pub vips: Vec<NetworkAddress>,
    /// Addresses given as a range (`NetworkAddress.length`). An exact address of another service
    /// goes before them, a longer prefix before a shorter one.
    pub ranges: Vec<NetworkRange>,
    pub ports: Ports,
    pub subject_alt_names: Vec<Arc<str>>,
    pub waypoint: Option<GatewayAddress>,
    /// Several waypoints by weight; where there are any they go before [`Self::waypoint`].
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Ingress gateways go through the waypoint too, instead of straight to a backend.
    pub ingress_use_waypoint: bool,
    pub load_balancing: Option<LoadBalancing>,
    pub ip_families: IpFamilies,
    /// Of several services with one host name in several namespaces, the one that is meant where
    /// the client's own namespace has none.
    pub canonical: bool,
    pub visibility: Visibility,
}

impl Service {
    /// The key under which workloads name this service.
    #[must_use]
    pub fn key(&self) -> NamespacedHostname {
        NamespacedHostname {
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
        }
    }
}

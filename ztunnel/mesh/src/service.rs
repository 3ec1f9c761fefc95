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

/// A property by which an endpoint can be near the client.
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

/// The meaning of the list of routing preferences.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum LoadBalancingMode {
    /// The list is ignored: all endpoints are equal.
    #[default]
    Standard,
    /// Endpoints that do not match every preference are never chosen.
    Strict,
    /// Endpoints that match the longest prefix of the list are chosen first.
    Failover,
    /// No endpoint is chosen: the dialled address is kept.
    Passthrough,
}

/// Which endpoints may be chosen.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum HealthPolicy {
    /// Healthy endpoints.
    #[default]
    OnlyHealthy,
    /// All endpoints.
    AllowAll,
}

/// How a backend is chosen among the endpoints of a service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LoadBalancing {
    /// The preferences, the most important first.
    pub routing_preferences: Vec<RoutingScope>,
    /// The meaning of the preferences.
    pub mode: LoadBalancingMode,
    /// Which endpoints may be chosen.
    pub health_policy: HealthPolicy,
}

/// Which workloads may reach a service by its name or its virtual address.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub enum Visibility {
    /// All workloads.
    #[default]
    Public,
    /// Workloads of its own namespace; for other workloads the service does not exist.
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
    /// The waypoint.
    pub destination: GatewayAddress,
    /// Its share relative to the other waypoints; a waypoint with weight 0 is never chosen.
    pub weight: u32,
}

/// A service of the mesh.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "names and meanings of the workload API")]
pub struct Service {
    pub name: Arc<str>,
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
    pub vips: Vec<NetworkAddress>,
    /// Virtual addresses given as ranges (`NetworkAddress.length`). An exact address of another
    /// service takes precedence, and a longer prefix takes precedence over a shorter one.
    pub ranges: Vec<NetworkRange>,
    pub ports: Ports,
    pub subject_alt_names: Vec<Arc<str>>,
    pub waypoint: Option<GatewayAddress>,
    /// Waypoints that share the connections; if not empty, they replace [`Self::waypoint`].
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    /// Connections of ingress gateways go through the waypoint too, not directly to a backend.
    pub ingress_use_waypoint: bool,
    pub load_balancing: Option<LoadBalancing>,
    pub ip_families: IpFamilies,
    /// Among services of several namespaces with one host name, this one is chosen for clients
    /// whose namespace has no such service.
    pub canonical: bool,
    pub visibility: Visibility,
}

impl Service {
    /// The key under which workloads list this service.
    #[must_use]
    pub fn key(&self) -> NamespacedHostname {
        NamespacedHostname {
            namespace: self.namespace.clone(),
            hostname: self.hostname.clone(),
        }
    }
}

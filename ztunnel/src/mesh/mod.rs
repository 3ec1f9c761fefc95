//! What the mesh is: workloads, services, policies and identities as an immutable snapshot with
//! its indexes. Plain data and pure functions; no sockets, no clocks, no tokio. Whoever learns
//! something new about the mesh applies the [`Change`] to a copy of the [`Snapshot`], which is
//! cheap, and swaps it in whole.

mod change;
mod demand;
mod fault;
mod identity;
mod interner;
pub mod local;
mod policy;
mod service;
mod snapshot;
mod workload;
pub mod yaml;

pub use change::Change;
pub use demand::{DemandKey, Fetched};
pub use fault::Fault;
pub use identity::{Identity, ParseIdentityError};
pub use interner::Interner;
pub use policy::{
    Action, Clause, Match, Policy, PolicyContext, PolicyScope, Rule, ServiceAccountMatch,
    StringMatch,
};
pub use service::{
    HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkRange, RoutingScope,
    Service, Visibility, WeightedWaypoint,
};
pub use snapshot::{Endpoint, ServiceEntry, Snapshot};
pub use workload::{
    ApplicationTunnel, Backed, GatewayAddress, GatewayDestination, HealthStatus, Locality,
    NamespacedHostname, NetworkAddress, NetworkMode, Ports, TunnelProtocol, Uid, Workload,
    WorkloadType,
};

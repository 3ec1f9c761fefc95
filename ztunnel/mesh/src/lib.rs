//! The model of the mesh and every decision about a connection: plain data and pure functions. No
//! tokio, no sockets, no clocks, no locks.
//!
//! - The model: [`Workload`], [`Service`], [`Policy`], [`Identity`], and the [`Snapshot`] that
//!   holds and indexes them. A published snapshot never changes: a [`Change`] is applied to a cheap
//!   copy, which then replaces the original as a whole. [`local`] reads a mesh from a file.
//! - The decisions: [`route`](route::route) finds where a connection of a pod goes,
//!   [`authorize`](authorize::authorize) whether a pod accepts a connection, [`inbound`] where a
//!   tunnel to a pod leads, [`fastpath`] which connections the kernel may carry, [`names`] what a
//!   DNS name resolves to. A decision that lacks a resource of the mesh returns what is
//!   [`Missing`]: on-demand discovery has to fetch it, or it is not pushed yet.
//!
//! Every decision about a connection of this node uses one [`View`]: a snapshot, the pods of this
//! node, and the paths that the settings allow them.

mod authority;
pub mod authorize;
mod change;
pub mod fastpath;
mod fault;
mod identity;
pub mod inbound;
mod interner;
pub mod local;
pub mod names;
mod policy;
mod ports;
mod resource;
pub mod route;
mod service;
mod snapshot;
mod view;
mod workload;
pub mod yaml;

pub use authority::{Authority, ParseAuthorityError};
pub use change::Change;
pub use fault::Fault;
pub use identity::{Identity, ParseIdentityError};
pub use interner::Interner;
pub use policy::{
    Action, Clause, HttpAttributes, HttpMatch, Match, Policy, PolicyContext, PolicyScope, Rule,
    ServiceAccountMatch, StringMatch,
};
pub use ports::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT, PROXY_PORTS};
pub use resource::{FetchOutcome, Missing, ResourceKey};
pub use service::{
    HealthPolicy, IpFamilies, LoadBalancing, LoadBalancingMode, NetworkRange, RoutingScope,
    Service, Visibility, WeightedWaypoint,
};
pub use snapshot::{Endpoint, ServiceEntry, Snapshot};
pub use view::{AllowedPaths, LocalPod, NetnsCookie, PathSettings, SameNode, View};
pub use workload::{
    ApplicationTunnel, Backed, GatewayAddress, GatewayDestination, HealthStatus, Locality,
    NamespacedHostname, NetworkAddress, NetworkMode, Ports, TunnelProtocol, Uid, Workload,
    WorkloadType,
};

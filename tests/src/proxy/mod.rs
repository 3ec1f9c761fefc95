//! Real proxies in simulated nodes: their settings, their processes, and a whole mesh of them.
//!
//! Most tests use [`Mesh::start`]: a proxy on each node, and for each pod a workload with its own service
//! account and a service. [`Proxy`] is one process, which can be killed, restarted and given other
//! [`Settings`].

pub(crate) mod admin;
mod binary;
mod mesh;
mod running;
mod settings;
mod sockets;

pub use admin::{Metrics, Sample};
pub use binary::{companion, ztunnel};
pub use mesh::{Mesh, MeshBuilder, ServiceAddress, identity, service_hostname, workload_uid};
pub use running::{Proxy, SEARCH};
pub use settings::{
    Address, Authority, Capture, LocalAuthority, Log, PodEntry, Policy, Service, Settings, Workload,
};

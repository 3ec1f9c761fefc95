//! A real Kubernetes cluster with Istio's control plane and node agent, and this proxy as its node
//! proxy: the one that `kubectl` is configured for.
//!
//! Everything is done with `kubectl`, `docker` and `istioctl`, as an operator does it. Each check
//! makes its own namespaces and removes them.

mod checks;
mod commands;
mod demo;
mod shop;

pub use checks::{ALL, Check};
pub use commands::{Cluster, Membership, Namespace, RunningCalls};
pub use demo::demo;

/// The namespace of the mesh.
const MESH: &str = "istio-system";
/// The image with servers and clients.
pub const TRAFFIC_IMAGE: &str = "localhost/ztunnel-traffic:test";

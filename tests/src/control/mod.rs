//! A control plane for tests: it tells proxies what the mesh is (delta ADS), signs their
//! certificates, and stands in for the node agent that names the pods of a node.
//!
//! It speaks Istio's protocols over real sockets, so a proxy that is started with the environment of
//! Istio's chart and nothing else notices no difference. What istiod computes from a cluster, a test
//! says here itself.

mod agent;
mod authority;
mod server;
mod state;

pub use agent::NodeAgent;
pub use authority::Authority;
pub use server::{ControlPlane, PORT};
pub use state::{Manner, Resource, State};

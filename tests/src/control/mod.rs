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

/// The messages, generated from the proxy's own `.proto` files.
#[allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    clippy::all,
    clippy::too_many_lines,
    clippy::use_self,
    clippy::or_fun_call,
    clippy::allow_attributes_without_reason,
    reason = "generated"
)]
pub mod proto {
    include!(concat!(env!("OUT_DIR"), "/control/mod.rs"));
}

pub use agent::NodeAgent;
pub use authority::Authority;
pub use server::{ControlPlane, PORT};
pub use state::{Manner, Resource, State};

//! A control plane for tests: a delta ADS server, a certificate authority, and a node agent.
//!
//! It uses Istio's protocols over real sockets, so a proxy can be started with only the environment of
//! Istio's chart. The test sets the resources that istiod would compute from a cluster.

mod agent;
mod authority;
mod server;
mod state;

pub use agent::NodeAgent;
pub use authority::Authority;
pub use server::{ControlPlane, PORT};
pub use state::{AnswerMode, Resource, State};

//! What the peer of a tunnel, or a client in plaintext, may ask a pod for: where a tunnel leads,
//! on whose behalf its peer speaks, which service it was meant for, and which resources on-demand
//! discovery needs before that can be said.

mod discovery;
mod service;
mod target;

pub use discovery::{at, gateways_of, missing, own};
pub use service::backed;
pub use target::{LocalEndpoint, TargetError, TunnelTarget, client_of, delivered, target};

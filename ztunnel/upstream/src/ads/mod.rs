//! The client of the control plane: it keeps one delta ADS stream open and says what the mesh is,
//! as a sequence of [`mesh::Change`](mesh::Change)s.
//!
//! [`Client::new`] gives the client and a bounded channel of [`Event`]s, which the node's main loop
//! consumes: as long as it does not, nothing more is read. [`Client::run`] never gives up: when
//! the control plane goes away, what is known stays in force, and the next stream begins with what
//! is held, so that nothing is sent twice. [`Demand`] asks for single resources where not the
//! whole mesh is subscribed. What was found stays subscribed, as it does with Istio's own node
//! proxy: it is what this node's pods talk to, and a change of it has to be heard of.
//!
//! Facts, from Envoy's xDS protocol specification ("Incremental xDS", "ACK/NACK and resource type
//! instance version") and Istio's workload API:
//! - Two types share the stream: `istio.workload.Address` (workloads, named by their uid, and
//!   services, named `namespace/hostname`) and `istio.security.Authorization`
//!   (`namespace/name`). Aliases of an address are `network/ip`.
//! - The first request of a type that names no resource subscribes to all of them. istiod knows
//!   no way to subscribe to none; subscribing to `*` and from it in one request has that effect.
//! - Every response is answered with its nonce: with `error_detail` where a resource was refused,
//!   and the others count all the same. A refused resource is not held: what was known under its
//!   name before stays in force.
//! - istiod leaves versions empty and sends everything again on a new stream; what is the same
//!   byte for byte is not handed on a second time.
//! - istiod answers a subscription only where it changes something, and keeps names subscribed
//!   whose resource is gone; so those are unsubscribed as soon as they are known to be gone.
//! - istiod takes requests of 4 MiB at most. What is held by very large meshes does not fit; then
//!   the new stream begins with nothing, and what its first response does not name is gone.
//! - istiod ends connections that ping more often than every 15 seconds.
//!
//! Invariants: whatever the control plane sends, nothing panics; a resource is applied as a whole
//! or refused by name; the token is sent over TLS only and never logged.

mod backoff;
mod client;
mod config;
mod connection;
pub mod decode;
mod demand;
mod error;
mod event;
mod intake;
mod known;
mod placeholder;
mod push;
mod resource;
mod stream;
mod waiting;

pub use client::Client;
pub use config::{Config, ConfigError, Node, Root, Subscription};
pub use demand::Demand;
pub use error::Error;
pub use event::{Batch, Event};
pub use intake::Intake;
pub use resource::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

#[cfg(test)]
mod tests;

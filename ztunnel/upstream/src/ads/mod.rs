//! The client of the control plane: it keeps one delta ADS stream open and reports the mesh as a
//! sequence of [`mesh::Change`](mesh::Change)s.
//!
//! [`Client::new`] returns the client and a bounded channel of [`Event`]s. While the channel is
//! full, the client reads nothing. [`Client::run`] never gives up: without a control plane the
//! resources stay in use, and the next stream begins with their versions, so that nothing is sent
//! twice. [`OnDemandFetcher`] fetches single resources for on-demand discovery. A resource that was
//! found stays subscribed, as with Istio's node proxy, so that its changes arrive.
//!
//! Facts, from Envoy's xDS protocol specification ("Incremental xDS", "ACK/NACK and resource type
//! instance version") and Istio's workload API:
//! - Two types share the stream: `istio.workload.Address` (workloads, named by their uid, and
//!   services, named `namespace/hostname`) and `istio.security.Authorization` (`namespace/name`).
//!   Aliases of an address are `network/ip`.
//! - A first request of a type without resource names subscribes to all of them. istiod has no way
//!   to subscribe to none; a request that subscribes to `*` and unsubscribes from it has that
//!   effect.
//! - Every response is answered with its nonce, and with `error_detail` if a resource was refused;
//!   the other resources are applied. A refused resource is not held: the former version of it
//!   stays in use.
//! - istiod leaves versions empty and sends all resources again on a new stream; a resource that is
//!   equal byte for byte is not reported again.
//! - istiod answers a subscription only if it changes something, and keeps names subscribed whose
//!   resource was removed; so the client unsubscribes from removed resources.
//! - istiod accepts requests of up to 4 MiB. The versions of a very large mesh do not fit; then the
//!   new stream begins without versions, and resources missing from its first response are removed.
//! - istiod closes connections that ping more often than every 15 seconds.
//!
//! Invariants: no input of the control plane causes a panic; a resource is applied as a whole or
//! refused by name; the token is sent over TLS only and never logged.

mod backoff;
mod client;
mod config;
mod connection;
pub mod decode;
mod error;
mod event;
mod held_resources;
mod offline;
mod on_demand;
mod pending_fetches;
mod placeholder;
mod push;
mod resource;
mod stream;

pub use client::Client;
pub use config::{Config, ConfigError, Node, Root, Subscription};
pub use error::Error;
pub use event::{Batch, Event};
pub use offline::OfflineClient;
pub use on_demand::OnDemandFetcher;
pub use resource::{ADDRESS_TYPE, AUTHORIZATION_TYPE};

#[cfg(test)]
mod tests;

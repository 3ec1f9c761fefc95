//! The fast path: connections of a pod to a pod of its own node or to a destination outside the
//! mesh bypass the proxy after the first one was authorized. One file per feature. The tests need
//! root; each test creates its own simulated nodes and removes them.
//!
//! The evidence for the fast path is the kernel's socket table: the real remote end of the client's
//! socket, and the absence of a socket of the proxy.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "tests and their functions fail by panicking"
)]

mod assertions;

mod address_reuse;
mod deferred_syn;
mod entry_eviction;
mod event_loss;
mod first_connection;
mod identity;
mod inbound_plaintext;
mod joined;
mod killed_under_load;
mod load_balancing;
mod local_backends;
mod outside;
mod overrides;
mod policy_changes;
mod same_node_tunnel;
mod telemetry;
mod termination;
mod without_proxy;

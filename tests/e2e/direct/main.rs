//! The direct lane: what a pod says to a pod of its own node, or to somebody outside the mesh,
//! goes past the proxy once the proxy has judged it. Each file is one promise. The tests need
//! root; each has simulated nodes of its own and takes everything away again.
//!
//! The witness that a connection is direct is the kernel's own table of sockets: whom the
//! client's socket is really connected to, and that the proxy has no socket for it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking, in its functions too"
)]

mod proof;

mod address_reuse;
mod arrivals;
mod choice;
mod cut;
mod first_is_judged;
mod flips;
mod full;
mod identity;
mod joined;
mod killed_under_load;
mod late;
mod local_backends;
mod outside;
mod overrides;
mod records;
mod same_node;
mod storm;
mod survival;

//! The end-to-end tests: one file a promise, one program for all (it links once).
//!
//! They need root, and the proxy built beside them: `cargo xtask test e2e` sees to both.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its helpers too"
)]

mod simulated_nodes;

//! End-to-end tests: real proxies in simulated nodes, real connections, one file a promise.
//!
//! Each test has a world of its own, so they run side by side and leave nothing behind. What
//! they assert comes from the ends of the connection and from the link between the nodes, not
//! from the proxies' word, except where the proxies' word is the promise.
#![allow(
    clippy::unwrap_used,
    reason = "a test fails by panicking, in its functions too"
)]

mod ends;

mod access_log;
mod admin;
mod application_tunnel;
mod around;
mod backend_choice;
mod bulk;
mod closed_port;
mod half_close;
mod in_the_clear;
mod metrics;
mod node_gone;
mod passthrough;
mod pod_address;
mod reset;
mod server_first;
mod service_address;
mod simulated_nodes;
mod slow_reader;
mod socket_names;
mod source_address;
mod thousand_connections;

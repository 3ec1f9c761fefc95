//! End-to-end tests: real proxies in simulated nodes with real connections, one file per feature.
//!
//! Each test has its own world, so tests run in parallel and leave nothing behind. Assertions use
//! the ends of the connections and the link between the nodes, and the proxies' logs and metrics
//! only if these are the subject of the test.
#![allow(
    clippy::unwrap_used,
    reason = "tests and their functions fail by panicking"
)]

mod connections;

mod access_log;
mod admin;
mod application_tunnel;
mod backend_choice;
mod bulk;
mod capture_bypass;
mod closed_port;
mod encryption;
mod half_close;
mod metrics;
mod passthrough;
mod peer_proxy_down;
mod pod_address;
mod reset;
mod server_first;
mod service_address;
mod simulated_nodes;
mod slow_reader;
mod socket_names;
mod source_address;
mod thousand_connections;

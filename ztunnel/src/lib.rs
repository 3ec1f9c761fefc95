//! A node proxy for service meshes: it captures the TCP connections of a node's pods with eBPF,
//! gives every pod a SPIFFE identity, and carries traffic between nodes in mutually
//! authenticated HBONE tunnels.
//!
//! Start reading at [`path`]: it follows one connection from `connect()` to the last byte.
//! Who may import whom is written in ARCHITECTURE.md and checked by `cargo xtask tidy`.

pub mod admin;
pub mod ca;
pub mod cli;
pub mod config;
pub mod dns;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod hbone;
pub mod kernel;
pub mod mesh;
pub mod node;
pub mod path;
pub mod pods;
pub mod telemetry;
pub mod tls;
pub mod xds;

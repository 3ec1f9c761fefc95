//! The load generator: servers, and clients that measure.
//!
//! Everything runs in the calling thread's network namespace, either in threads of a test
//! ([`serve`] from inside [`crate::net::Host::enter`], or [`crate::net::Host`]'s
//! `serve`), or as a process of its own (the binary `traffic`), which is how the benchmark
//! keeps the CPU time of client, server and proxies apart. Bulk transfers use one thread a
//! connection, which blocks or waits for events ([`Manner`]); HTTP uses one epoll loop a side.

pub mod bulk;
pub mod connects;
pub mod dns;
mod end;
mod epoll;
mod exchange;
mod http;
pub mod http_load;
pub mod idle;
pub mod latency;
pub mod pingpong;
mod request;
mod server;
mod server_http;
pub mod tune;

pub use end::{End, Manner};
pub use exchange::exchange;
pub use request::{Answer, get, get_as, get_over};
pub use server::{BULK_BYTES, GREETING, Kind, Server, serve, serve_as};

//! The load generator: servers, and clients that measure.
//!
//! Servers and clients run in the network namespace of the calling thread, either in threads of a test
//! ([`serve`] inside [`crate::net::Host::enter`], or the methods `serve` and `serve_as` of
//! [`crate::net::Host`]) or as a process (the binary `traffic`). The benchmark uses processes to separate
//! the CPU time of client, server and proxies. Bulk transfers use one thread per connection, which blocks
//! or is event-driven ([`IoMode`]); HTTP uses one epoll loop per side.

pub mod bulk;
pub mod calls;
pub mod connects;
pub mod dns;
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
mod stream;
pub mod tune;

pub use exchange::exchange;
pub use request::{Answer, get, get_as, get_over};
pub use server::{BULK_BYTES, GREETING, Kind, Server, serve, serve_as};
pub use stream::{IoMode, Stream};

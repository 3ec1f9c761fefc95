//! HBONE: TCP connections carried as HTTP/2 CONNECT streams over mutually authenticated TLS.
//!
//! One connection between two proxies carries many tunnels. A tunnel is one CONNECT stream whose
//! `:authority` is the real destination; DATA frames are its bytes, END_STREAM is a half-close and
//! RST_STREAM is an abort. [`Pool`] opens tunnels for outbound connections, [`serve`] accepts them
//! for connections to port 15008; `node::proxy` calls both. Both return the same [`Tunnel`].
//!
//! The module is generic over the byte stream below: the caller supplies TLS. All objects stay on
//! the thread that created them (`Rc`, `spawn_local`); there is one task for each connection, none
//! for a stream, and no locks. [`Config`] bounds the memory that a peer can occupy: the stream
//! window for received bytes, the send buffer for bytes to send, and the limits on streams, headers
//! and resets.

mod baggage;
mod config;
mod connection;
mod deferred_flush;
mod error;
pub mod forwarded;
mod group;
mod keepalive;
mod nested;
mod open_tunnel;
mod pool;
mod request;
mod server;
mod trace;
mod tunnel;

pub use baggage::Baggage;
pub use config::{Config, Keepalive};
pub use connection::{Dialled, RevocationFuture, RevokedMark};
pub use error::{DialFailure, Fault, LostConnection, OpenError, ResetBy, ServeError, TunnelError};
pub use nested::{TunnelStream, open_unpooled};
pub use pool::{Pool, PoolKey};
pub use request::{Connect, RequestError, to_http};
pub use server::{Request, serve};
pub use trace::{ParseTraceParentError, TraceParent};
pub use tunnel::{Receiver, Sender, Tunnel};

#[cfg(test)]
mod tests;

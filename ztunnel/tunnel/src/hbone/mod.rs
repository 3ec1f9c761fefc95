//! HBONE: TCP connections carried as HTTP/2 CONNECT streams over mutually authenticated TLS.
//!
//! One connection between two proxies carries many tunnels. A tunnel is one CONNECT stream whose
//! `:authority` is the real destination; DATA frames are its bytes, END_STREAM is a half-close and
//! RST_STREAM is an abort. [`Pool`] opens tunnels for outbound connections, [`serve`] accepts them
//! for connections to port 15008; `node::proxy` calls both. Both return the same [`Tunnel`].
//!
//! The module is generic over the byte stream below: the caller supplies TLS. Everything runs on
//! the thread that created it (`Rc`, `spawn_local`): one task for each connection, none for a
//! stream, and no locks. [`Config`] bounds the memory that a peer can occupy: the stream window for
//! received bytes, the send buffer for bytes to send, and the limits on streams, headers and
//! resets.

mod baggage;
mod client;
mod config;
mod deferred_flush;
mod error;
pub mod forwarded;
mod group;
mod keepalive;
mod nested;
mod opening;
mod pool;
mod request;
mod server;
mod trace;
mod tunnel;

pub use baggage::Baggage;
pub use client::{Dialled, RevokedMark, Revoking};
pub use config::{Config, Keepalive};
pub use error::{DialFailure, Fault, LostConnection, OpenError, ResetBy, ServeError, TunnelError};
pub use nested::{TunnelStream, open_alone};
pub use pool::{Pool, PoolKey};
pub use request::{Connect, RequestError, to_http};
pub use server::{Request, serve};
pub use trace::{ParseTraceParentError, TraceParent};
pub use tunnel::{Receiver, Sender, Tunnel};

#[cfg(test)]
mod tests;

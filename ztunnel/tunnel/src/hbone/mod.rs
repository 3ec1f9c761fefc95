//! HBONE: TCP connections carried as HTTP/2 CONNECT streams over mutually authenticated TLS.
//!
//! One connection between two proxies carries many tunnels. A tunnel is one CONNECT stream whose
//! `:authority` is the real destination; DATA frames are its bytes, END_STREAM is a half-close
//! and RST_STREAM is an abort. [`Pool`] opens tunnels (called by `path` for outbound
//! connections), [`serve`] accepts them (called by `path` for connections to port 15008), and
//! both hand out the same [`Tunnel`].
//!
//! The room is generic over the byte stream below: TLS is the caller's. Everything runs on the
//! thread that made it (`Rc`, `spawn_local`): one task a connection, none a stream, and no lock
//! of ours. What a peer can make us hold is bounded by [`Config`]: the stream window for bytes
//! received, the send buffer for bytes to send, and the limits on streams, headers and resets.

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

//! The fast path: connections that the kernel carries by itself, after the proxy has authorized
//! the first one of their kind.
//!
//! The types are plain values; `node` writes them into the maps of the kernel programs. The
//! functions decide which entries hold and which open connections may stay. They ask the same
//! questions as [`route`](crate::route::route) and [`authorize`](crate::authorize::authorize), of
//! which they are made: what the fast path carries is what the proxy would let through.

mod decide;

use std::net::{IpAddr, SocketAddr};

use smallvec::SmallVec;

use crate::NetnsCookie;

pub use decide::{inbound_holds, may_stay, outbound_entry};

/// How many backends one entry can name; the proxy carries the share of the others.
pub const MAX_BACKENDS: usize = 8;

/// What a pod dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FastPathKey {
    /// The pod.
    pub pod: NetnsCookie,
    /// What it dials.
    pub destination: SocketAddr,
}

/// Whether the two ends of a connection are joined by a sockmap, past TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Ends {
    /// They speak TCP.
    Apart,
    /// They are joined by the sockmap.
    Joined,
}

/// Where the kernel may connect to by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// The address to connect to; of the family that is dialled.
    pub to: SocketAddr,
    /// The pod of this node that has this address; none outside the mesh.
    pub server: Option<NetnsCookie>,
    /// Its share among all backends.
    pub weight: u32,
    /// Whether such a connection is joined.
    pub ends: Ends,
}

/// What lets the kernel carry later connections of a pod to a destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FastPathEntry {
    /// The backends that the kernel may choose, at most [`MAX_BACKENDS`].
    pub backends: SmallVec<[Backend; 1]>,
    /// The weights of all backends, including those that only the proxy reaches.
    pub total: u32,
}

/// What lets the kernel deliver plaintext from outside the mesh to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InboundEntry {
    /// The pod that is called.
    pub pod: NetnsCookie,
    /// The address and port that is called.
    pub to: SocketAddr,
    /// The client's address.
    pub from: IpAddr,
}

/// Who opened a connection of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opener {
    /// A pod of this node.
    Pod,
    /// A client outside; the pod of this node is the server.
    Outside,
    /// The proxy for a pod of this node; it keeps the record itself.
    Proxy,
}

/// An open connection of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastPathConnection {
    /// The pod of this node whose socket is watched: the client's unless [`Opener::Outside`].
    pub pod: NetnsCookie,
    /// The pod that is called, if it is on this node.
    pub server_pod: Option<NetnsCookie>,
    /// Who opened it.
    pub opener: Opener,
    /// The client's end.
    pub client: SocketAddr,
    /// The server's end.
    pub server: SocketAddr,
    /// What the client dialled: a service, or the server.
    pub dialled: SocketAddr,
    /// The watched socket's cookie, which is never used twice while the machine is up.
    pub socket: u64,
    /// When it was opened: nanoseconds of `CLOCK_MONOTONIC`.
    pub opened: u64,
}

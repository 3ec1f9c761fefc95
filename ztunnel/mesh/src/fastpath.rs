//! The fast path: connections that the kernel carries by itself, after the proxy has authorized
//! the first one of their kind.
//!
//! The types are plain values; `node` writes them into the maps of the kernel programs. The
//! functions decide which entries are valid and which open connections may stay. They are built
//! from [`route`](crate::route::route) and [`authorize`](crate::authorize::authorize), so the fast
//! path carries only what the proxy would allow.

mod decide;

use std::net::{IpAddr, SocketAddr};

use smallvec::SmallVec;

use crate::NetnsCookie;

pub use decide::{
    entry, entry_after_change, fate, inbound_allowed, inbound_entry, opened_may_go_on,
};

/// The most backends of one entry. The proxy carries the share of the backends beyond.
pub const MAX_BACKENDS: usize = 8;

/// A pod and the destination that it dials.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FastPathKey {
    /// The pod.
    pub pod: NetnsCookie,
    /// The address and port that the pod dials.
    pub destination: SocketAddr,
}

/// Whether a sockmap joins the two sockets of a connection, so that its bytes bypass TCP.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum JoinMode {
    /// The sockets speak TCP.
    Apart,
    /// The sockmap joins the sockets.
    Joined,
}

/// A backend that the kernel may connect to without the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backend {
    /// The address to connect to, of the same family as the dialled address.
    pub to: SocketAddr,
    /// The pod of this node that has this address; `None` outside the mesh.
    pub server: Option<NetnsCookie>,
    /// The share of this backend among all backends.
    pub weight: u32,
    /// Whether the sockets of such a connection are joined.
    pub join_mode: JoinMode,
}

/// The value of a fast-path entry: it lets the kernel carry later connections of a pod to a
/// destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FastPathEntry {
    /// The backends that the kernel may choose, at most [`MAX_BACKENDS`].
    pub backends: SmallVec<[Backend; 1]>,
    /// The sum of the weights of all backends, including those that only the proxy can reach.
    pub total: u32,
}

/// A fast-path entry for plaintext from outside the mesh: it lets the kernel deliver connections
/// of a client to a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct InboundEntry {
    /// The destination pod.
    pub pod: NetnsCookie,
    /// The destination address and port.
    pub to: SocketAddr,
    /// The client's address.
    pub from: IpAddr,
}

/// The party that opened a connection of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Opener {
    /// A pod of this node.
    Pod,
    /// A client outside the node; the pod of this node is the server.
    Outside,
    /// The proxy on behalf of a pod of this node. The proxy reports the connection itself.
    Proxy,
}

/// What a change of the mesh means for an open connection of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It is still allowed.
    Stays,
    /// Its destination was outside the mesh and has joined it: new connections are encrypted. This
    /// one may finish soon; it is not allowed forever.
    Drains,
    /// It is no longer allowed.
    Ends,
}

/// An open connection of the fast path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FastPathConnection {
    /// The pod of this node whose socket is watched: the client, or the server for
    /// [`Opener::Outside`].
    pub pod: NetnsCookie,
    /// The destination pod, if it is on this node.
    pub server_pod: Option<NetnsCookie>,
    /// The party that opened the connection.
    pub opener: Opener,
    /// The client's address and port.
    pub client: SocketAddr,
    /// The server's address and port.
    pub server: SocketAddr,
    /// The address that the client dialled: the virtual address of a service, or the server's.
    pub dialled: SocketAddr,
    /// The cookie of the watched socket, which is unique until the machine restarts.
    pub socket: u64,
    /// The time of opening, in nanoseconds of `CLOCK_MONOTONIC`.
    pub opened: u64,
}

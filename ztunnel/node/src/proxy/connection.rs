//! One connection of an application, as far as it is known when it is accepted. The steps that
//! decide about the connection and open it take this value.

use std::fmt;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use tokio::net::TcpStream;

use crate::bpf::ApplicationSocket;
use mesh::NetnsCookie;
use mesh::fastpath::FastPathKey;
use tunnel::hbone::TraceParent;

/// The number of a connection that the proxy carries, unique in this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnectionId(pub u64);

impl ConnectionId {
    fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A socket that a listener in a pod has accepted. It becomes a [`Connection`] when its original
/// destination is known.
pub(super) struct Accepted {
    /// The socket.
    pub(super) stream: TcpStream,
    /// The address of the socket's other end.
    pub(super) peer: SocketAddr,
    /// When it was accepted.
    pub(super) accepted_at: Instant,
}

/// One connection of an application: one captured TCP connection, or one CONNECT request of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Connection {
    /// Its number.
    pub(super) id: ConnectionId,
    /// The network namespace of the pod: the client's for an outbound connection, the server's for
    /// an inbound one.
    pub(super) pod: NetnsCookie,
    /// The client's address as seen from outside its pod. In a tunnel: the address of the tunnel's
    /// peer, which may connect on behalf of the client.
    pub(super) client: SocketAddr,
    /// The original destination: the address that the client dialled. In a tunnel: the local
    /// address of the TCP connection that carries it.
    pub(super) destination: SocketAddr,
    /// When it was accepted.
    pub(super) accepted: Instant,
    /// Its position in a distributed trace: that of the CONNECT request, which a tunnel carries.
    pub(super) trace: TraceParent,
    /// What the application has chosen for its socket.
    pub(super) application: ApplicationSocket,
}

impl Connection {
    /// A connection with a new number.
    pub(super) fn new(
        pod: NetnsCookie,
        client: SocketAddr,
        destination: SocketAddr,
        accepted: Instant,
        trace: TraceParent,
    ) -> Self {
        Self {
            id: ConnectionId::next(),
            pod,
            client,
            destination,
            accepted,
            trace,
            application: ApplicationSocket::default(),
        }
    }

    /// The key of the fast-path entry for later connections of the pod to the same destination.
    pub(super) const fn fast_path_key(&self) -> FastPathKey {
        FastPathKey {
            pod: self.pod,
            destination: self.destination,
        }
    }
}

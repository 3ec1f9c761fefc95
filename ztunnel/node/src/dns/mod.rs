//! The DNS proxy: names of the mesh are answered here, the rest goes on to the resolver that the
//! application asked.
//!
//! The kernel programs redirect what an enrolled pod sends to port 53 to a server inside the pod
//! ([`Server`]; one for each pod and worker). A plain question for addresses is put to the snapshot
//! ([`answer()`], a pure function); whatever the mesh does not know leaves the pod from a marked
//! socket, byte by byte as it came but for its id, and the answer is kept for as long as it says. Nothing
//! here knows of eBPF or of connections: [`ServerContext`] is all that a server asks of the room
//! that runs it.
//!
//! What comes from applications and from resolvers is bounded: messages in length, queries and
//! connections in number (of a pod, and of all of a worker's), waiting in time, the cache in entries
//! and bytes.

mod cache;
mod forward;
mod query;
mod reply;
mod server;
mod system;
mod wire;

pub use cache::{Cache, Key as CacheKey};
pub use query::Query;
pub use reply::ReplyContext;
pub use server::{Common, Server};
pub use system::system_resolver;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};

use mesh::{Snapshot, Workload};
use telemetry::DnsRefusal;

/// What a server needs to know from the settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's domain, in lower case and without a dot at its end: `cluster.local`.
    pub domain: Arc<str>,
    /// How long a resolver may take.
    pub timeout: Duration,
    /// Who is asked where nothing says which resolver the application asked.
    pub resolver: Option<SocketAddr>,
}

/// What a pod's server asks of the room that runs it.
pub trait ServerContext {
    /// The mesh as it is now.
    fn mesh(&self) -> Arc<Snapshot>;

    /// What the mesh says about the pod, if it knows it.
    fn client(&self, mesh: &Snapshot) -> Option<Arc<Workload>>;

    /// The Kubernetes namespace of the pod, as far as it is known without its workload; none before
    /// anything is known of the mesh.
    fn namespace(&self) -> Option<&str>;

    /// Waits until the mesh knows the pod, which may have been announced before its workload was
    /// pushed; for a bounded time.
    ///
    /// # Errors
    /// Why the question that waits is not to be answered.
    fn known(&self) -> impl Future<Output = Result<(), DnsRefusal>>;

    /// The cookie of the pod's network namespace.
    fn pod(&self) -> u64;

    /// Which resolver the application asked with its UDP socket that is bound to this address.
    fn asked_by_datagram(&self, client: SocketAddr) -> Option<SocketAddr>;

    /// Which resolver the application connected to, whose end of the connection has this address.
    fn asked_by_stream(&self, stream: &TcpStream, client: SocketAddr) -> Option<SocketAddr>;

    /// Runs what waits for a resolver as a task of this thread, which is not to end before it.
    fn spawn(&self, answering: impl Future<Output = ()> + 'static);

    /// Has the kernel give what comes to other sockets in the same place, from now on. What this
    /// one was given stays in it, and it can still answer.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn step_aside(&self, socket: &UdpSocket) -> io::Result<()>;

    /// A socket inside the pod that is connected to a resolver, has a port of its own, and is left
    /// alone by capture.
    ///
    /// # Errors
    /// As `socket(2)` and `connect(2)`.
    fn socket(&self, resolver: SocketAddr) -> io::Result<UdpSocket>;

    /// A connection from inside the pod to a resolver, left alone by capture.
    ///
    /// # Errors
    /// As `connect(2)`.
    fn connect(&self, resolver: SocketAddr) -> impl Future<Output = io::Result<TcpStream>>;

    /// Sends an answer so that the application takes it for one of the resolver that it asked.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    fn reply(
        &self,
        socket: &UdpSocket,
        reply: &[u8],
        client: SocketAddr,
    ) -> impl Future<Output = io::Result<()>>;

    /// A random number, to order addresses with.
    fn random(&self) -> u64;
}

#[cfg(test)]
mod example;

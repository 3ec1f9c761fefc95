//! The DNS proxy: it answers queries for names of the mesh and forwards the others to the resolver
//! that the application addressed.
//!
//! The kernel programs redirect an enrolled pod's traffic to port 53 to a server inside the pod
//! ([`Server`], one for each pod and worker). A plain query for addresses is answered from the
//! snapshot ([`mesh::names::answer`], a pure function). Any other query leaves the pod unchanged,
//! except for its id, from a marked socket, and the answer is cached for its TTL. The module does
//! not depend on eBPF or on connections: [`ServerContext`] is its only interface to the caller.
//!
//! Input from applications and resolvers is bounded: messages in length, queries and connections in
//! number (per pod, and per worker), waits in time, the cache in entries and bytes.

mod cache;
mod forward;
mod query;
mod reply;
mod response;
mod server;
mod system;
mod wire;

pub use cache::{Cache, Key as CacheKey};
pub use query::Query;
pub use reply::ReplyContext;
pub use server::{Server, SharedState};
pub use system::system_resolver;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpStream, UdpSocket};

use mesh::{Snapshot, Workload};
use telemetry::DnsRefusal;

/// The settings that a server uses.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's domain, in lower case and without a trailing dot: `cluster.local`.
    pub domain: Arc<str>,
    /// The time limit for a resolver's answer.
    pub timeout: Duration,
    /// The resolver for queries whose original resolver is unknown.
    pub resolver: Option<SocketAddr>,
}

/// The interface of a pod's server to its pod and worker.
pub trait ServerContext {
    /// The current snapshot of the mesh.
    fn mesh(&self) -> Arc<Snapshot>;

    /// The pod's workload, if the snapshot contains it.
    fn client(&self, mesh: &Snapshot) -> Option<Arc<Workload>>;

    /// The Kubernetes namespace of the pod, as far as it is known without the pod's workload;
    /// `None` before the first snapshot.
    fn kubernetes_namespace(&self) -> Option<&str>;

    /// Waits, for a bounded time, until the snapshot contains the pod's workload: the pod may have
    /// been announced before its workload was pushed.
    ///
    /// # Errors
    /// Why the waiting query is refused.
    fn wait_for_workload(&self) -> impl Future<Output = Result<(), DnsRefusal>>;

    /// The cookie of the pod's network namespace.
    fn netns_cookie(&self) -> u64;

    /// The resolver that the application addressed with its UDP socket bound to `client`.
    fn resolver_of_datagram(&self, client: SocketAddr) -> Option<SocketAddr>;

    /// The resolver of the application's TCP connection whose own address is `client`.
    fn resolver_of_stream(&self, stream: &TcpStream, client: SocketAddr) -> Option<SocketAddr>;

    /// Runs a task on this thread. The thread does not end before the task.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Makes the kernel deliver new datagrams to other sockets on the same address. Datagrams
    /// already queued stay, and the socket can still send answers.
    ///
    /// # Errors
    /// As `connect(2)`.
    fn leave_reuseport_group(&self, socket: &UdpSocket) -> io::Result<()>;

    /// A socket inside the pod, connected to a resolver, with its own port and excluded from
    /// capture.
    ///
    /// # Errors
    /// As `socket(2)` and `connect(2)`.
    fn resolver_socket(&self, resolver: SocketAddr) -> io::Result<UdpSocket>;

    /// A connection from inside the pod to a resolver, excluded from capture.
    ///
    /// # Errors
    /// As `connect(2)`.
    fn connect_to_resolver(
        &self,
        resolver: SocketAddr,
    ) -> impl Future<Output = io::Result<TcpStream>>;

    /// Sends an answer with the address of the resolver that the application addressed.
    ///
    /// # Errors
    /// As `sendmsg(2)`.
    fn send_reply(
        &self,
        socket: &UdpSocket,
        reply: &[u8],
        client: SocketAddr,
    ) -> impl Future<Output = io::Result<()>>;

    /// A random number that determines the order of addresses.
    fn random(&self) -> u64;
}

#[cfg(test)]
mod example;

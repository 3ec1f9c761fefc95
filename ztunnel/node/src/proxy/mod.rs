//! The proxy: the life of one connection.
//!
//! An application in a pod calls `connect()`. The kernel programs redirect the connection to the
//! proxy's listener inside the pod. These modules handle it from there:
//!
//! 1. [`accept`](self): a worker accepts the connection and determines its client, its original
//!    destination and its pod.
//! 2. [`route`]: a pure function of the connection and a [`View`] selects the path: a tunnel (to
//!    the destination's node, its waypoint, or the gateway of its network), a plain connection to a
//!    pod of this node, or passthrough. [`Resolve`] resolves a backend that has a name. With a
//!    partial view of the mesh, [`OnDemandClient`] asks the control plane.
//! 3. [`authorize`]: at the destination, a pure function returns the verdict and the rule behind
//!    it.
//! 4. `tunnel`: the proxy opens an HBONE tunnel, or terminates one of a peer; `passthrough` handles
//!    connections without a tunnel. [`FastPath`] lets the kernel carry later connections of the
//!    same kind.
//! 5. `relay`: moves and counts the bytes.
//! 6. `report`: one report per connection feeds the metrics and the access log.
//!
//! `wait` waits until the control plane has pushed the workload of a new pod.
//!
//! `names` connects the DNS proxy with the pods, where DNS is captured.
//!
//! `outbound` and `inbound` run these steps for the two directions. All work for one connection
//! runs on one [`worker`](Workers) thread. The module uses snapshots and a certificate source and
//! does not depend on their origin.

mod accept;
mod authorized;
mod connection_table;
mod connections;
mod inbound;
mod names;
mod open_tunnel;
mod outbound;
mod passthrough;
mod policy;
pub mod proxy_protocol;
mod recheck;
pub(crate) mod relay;
pub(crate) mod report;
mod resolve;
pub mod socks5;
mod wait;
mod worker;

pub use connection_table::{Carried, ConnectionTable};
pub use recheck::RecheckQueue;
pub use resolve::{Resolve, ResolveError, Resolving, SystemResolver};
pub use wait::WorkloadWaits;
pub use worker::{WorkerError, Workers};

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::bpf::Kernel;
use crate::discovery::OnDemandClient;
use crate::dns;
use crate::fastpath::FastPath;
use crate::pods;
use telemetry::Telemetry;
use tunnel::hbone;
use tunnel::tls;

/// The settings that the proxy uses.
#[derive(Debug, Clone)]
pub struct Config {
    /// The network of this node, as named in the mesh.
    pub network: Arc<str>,
    /// The number of workers.
    pub workers: usize,
    /// Whether pods may name their destination by SOCKS.
    pub socks5: bool,
    /// The mark of the proxy's own sockets. Capture ignores marked sockets.
    pub mark: u32,
    /// The settings for outgoing TCP connections.
    pub dial: pods::Dial,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Limits and window sizes of tunnels.
    pub hbone: hbone::Config,
    /// The cluster's domain, in lower case and without a trailing dot.
    pub domain: Arc<str>,
    /// Whether connections that get a PROXY header are delivered to the pod's loopback address.
    pub localhost_app_tunnel: bool,
    /// The settings of the DNS proxy, where DNS is captured.
    pub dns: Option<dns::Config>,
}

/// The state that all workers share. Authorizing a connection takes no lock.
pub struct ProxyState {
    /// The view in force and the fast-path entries.
    pub fast_path: Arc<FastPath>,
    /// The maps of the kernel programs. `None` where redirection rules of another component capture
    /// the pods.
    pub kernel: Option<Arc<Kernel>>,
    /// The current certificates.
    pub certificates: Arc<tls::Store>,
    /// Resolves backends that have names.
    pub resolver: Arc<dyn Resolve>,
    /// The client for on-demand discovery. `None` if the control plane pushes the whole mesh.
    pub on_demand: Option<Arc<OnDemandClient>>,
    /// Waits for workloads of enrolled pods that the control plane has not pushed yet.
    pub waits: WorkloadWaits,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// The open connections of all workers.
    pub connection_table: ConnectionTable,
    /// Pods to check again for redirection rules or for programs of another proxy.
    pub recheck: RecheckQueue,
    /// The settings.
    pub config: Config,
}

impl fmt::Debug for ProxyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

//! The reader's path: the life of one connection.
//!
//! An application in a pod calls `connect()`. The kernel programs send the connection to the
//! proxy's listener inside the pod, and from there on it is followed here, file by file:
//!
//! 1. [`accept`](self): a worker accepts it and asks who called, whom, and from which pod.
//! 2. [`route`]: a pure function of the connection and a [`View`] picks the lane: into a tunnel (to
//!    the destination's node, its waypoint, or the gateway of its network), directly to a pod of
//!    this node, or on as it is. Where a backend has a name, [`Resolve`] is asked in between; where the
//!    mesh is known in part only, the control plane ([`OnDemandClient`]).
//! 3. [`authorize`]: at the destination, a pure function gives the verdict and the rule behind
//!    it.
//! 4. `tunnel`: the HBONE tunnel is opened here, or was opened to us; `passthrough` is for what
//!    takes none. [`direct`] lets the kernel carry the next one of the same kind by itself.
//! 5. `relay`: bytes are moved and counted.
//! 6. `report`: one record a connection feeds metrics and the access log.
//!
//! `wait` is for what comes before the control plane has pushed the workload of a new pod.
//!
//! `names` lets the DNS proxy answer in the pods, where DNS is captured.
//!
//! `outbound` and `inbound` walk these steps for the two directions; each is the one place to
//! read for its direction. Everything of one connection happens on one [`worker`](Workers)
//! thread. The room sees snapshots and a certificate source, never where they come from.

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

/// What the path needs to know from the settings.
#[derive(Debug, Clone)]
pub struct Config {
    /// The network this node is in, as the mesh names it.
    pub network: Arc<str>,
    /// How many workers there are.
    pub workers: usize,
    /// Whether pods may say by SOCKS where they want to go.
    pub socks5: bool,
    /// The mark of the proxy's own sockets, which capture leaves alone.
    pub mark: u32,
    /// How connections are dialled.
    pub dial: pods::Dial,
    /// How long a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Limits and windows of tunnels.
    pub hbone: hbone::Config,
    /// The cluster's domain, in lower case and without a dot at its end.
    pub domain: Arc<str>,
    /// Whether what is delivered with a PROXY header goes to the pod's loopback address.
    pub localhost_app_tunnel: bool,
    /// How DNS is answered, where it is captured.
    pub dns: Option<dns::Config>,
}

/// What all workers share. Nobody waits for a lock while a connection is judged.
pub struct ProxyState {
    /// The mesh and the pods as they are now, and what the kernel may decide by itself.
    pub fast_path: Arc<FastPath>,
    /// The kernel programs' maps; none where the pods are captured by redirection rules of others.
    pub kernel: Option<Arc<Kernel>>,
    /// The certificates in use.
    pub certificates: Arc<tls::Store>,
    /// Finds the addresses of backends that have names.
    pub resolver: Arc<dyn Resolve>,
    /// What the control plane is asked, where the mesh is known in part only.
    pub on_demand: Option<Arc<OnDemandClient>>,
    /// What waits for workloads of enrolled pods that the control plane has not pushed yet.
    pub waits: WorkloadWaits,
    /// Metrics.
    pub telemetry: Arc<Telemetry>,
    /// What the workers carry now.
    pub connection_table: ConnectionTable,
    /// Pods that may have got rules which redirect what comes in, or another proxy's programs.
    pub recheck: RecheckQueue,
    /// Settings.
    pub config: Config,
}

impl fmt::Debug for ProxyState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

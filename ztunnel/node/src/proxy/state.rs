//! The state that all workers share, and the settings that the proxy uses.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::connection_table::ConnectionTable;
use super::recheck::RecheckQueue;
use super::resolve::Resolve;
use super::wait::WorkloadWaits;
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
        f.debug_struct("ProxyState")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

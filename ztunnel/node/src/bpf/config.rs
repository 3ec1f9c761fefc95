//! What the programs are told at the start.

use std::path::PathBuf;

use ipnet::IpNet;

/// How the programs are set up.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where programs and maps are pinned. Two proxies on one machine need two directories.
    pub directory: PathBuf,
    /// The cgroup v2 directory whose processes are seen; by default the hierarchy's root.
    pub cgroup: Option<PathBuf>,
    /// `SO_MARK` of the proxy's own sockets, which are not captured.
    pub mark: u32,
    /// `SO_MARK` of the proxy's deliveries.
    pub delivery_mark: u32,
    /// What is never captured.
    pub exemptions: Exemptions,
    /// The proxy's ports in each pod.
    pub ports: Ports,
    /// How many calls, and how many sources of plaintext, can go past the proxy. Counts when the
    /// maps are made.
    pub verdicts: u32,
}

/// What is never captured. Each direction has its own: leaving a pod's calls to some port alone
/// must not open the same port of every pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exemptions {
    /// Ports that a pod calls.
    pub outbound_ports: Vec<u16>,
    /// Networks that a pod calls.
    pub outbound_cidrs: Vec<IpNet>,
    /// Ports of a pod that are called.
    pub inbound_ports: Vec<u16>,
    /// Networks that a pod is called from.
    pub inbound_cidrs: Vec<IpNet>,
}

/// The proxy's listeners in a pod's network namespace; the numbers are the peer's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Captured outbound connections, on the pod's loopback.
    pub outbound: u16,
    /// Steered inbound connections.
    pub inbound: u16,
    /// HBONE, on the pod's addresses.
    pub hbone: u16,
    /// DNS by UDP and TCP, on the pod's loopback, where it is captured.
    pub dns: u16,
}

impl Default for Ports {
    fn default() -> Self {
        Self {
            outbound: 15001,
            inbound: 15006,
            hbone: 15008,
            dns: 15053,
        }
    }
}

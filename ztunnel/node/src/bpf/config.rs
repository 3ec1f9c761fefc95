//! The configuration of the programs.

use std::path::PathBuf;

use ipnet::IpNet;

/// How the programs are attached and what they capture.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where links and maps are pinned. Two proxies on one machine need two directories.
    pub directory: PathBuf,
    /// The cgroup v2 directory whose processes' sockets run the programs; by default the
    /// hierarchy's root.
    pub cgroup: Option<PathBuf>,
    /// `SO_MARK` of the proxy's own sockets, which are not captured.
    pub mark: u32,
    /// `SO_MARK` of the proxy's deliveries.
    pub delivery_mark: u32,
    /// Ports and networks that are not captured.
    pub exemptions: Exemptions,
    /// The proxy's ports in each pod.
    pub ports: Ports,
    /// How many fast-path entries and how many inbound entries the maps hold. Used when the maps
    /// are created.
    pub max_entries: u32,
}

/// Ports and networks that are not captured, separate for each direction: an exempt outbound port
/// must not open the same port of every pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exemptions {
    /// Ports that a pod connects to.
    pub outbound_ports: Vec<u16>,
    /// Networks that a pod connects to.
    pub outbound_cidrs: Vec<IpNet>,
    /// Ports of a pod that clients connect to.
    pub inbound_ports: Vec<u16>,
    /// Networks that clients connect from.
    pub inbound_cidrs: Vec<IpNet>,
}

/// The ports of the proxy's listeners in a pod's network namespace; the defaults are those of
/// Istio's ztunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// Captured outbound connections, on the pod's loopback device.
    pub outbound: u16,
    /// Steered inbound connections.
    pub inbound: u16,
    /// HBONE, on the pod's addresses.
    pub hbone: u16,
    /// Captured DNS over UDP and TCP, on the pod's loopback device.
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

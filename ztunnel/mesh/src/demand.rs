//! On-demand discovery: the keys of resources and the outcome of fetching one.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{NamespacedHostname, NetworkAddress, Uid};

/// The key of a resource that the control plane can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DemandKey {
    /// The workload with this address, or the service with this virtual address.
    Address(NetworkAddress),
    /// A service.
    Service(NamespacedHostname),
    /// A workload.
    Workload(Uid),
}

impl DemandKey {
    /// The key of an address in a network.
    #[must_use]
    pub fn at(network: &Arc<str>, address: IpAddr) -> Self {
        Self::Address(NetworkAddress {
            network: network.clone(),
            address: address.to_canonical(),
        })
    }
}

impl fmt::Display for DemandKey {
    /// The resource name that the control plane uses.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => NetworkAddress {
                network: address.network.clone(),
                address: address.address.to_canonical(),
            }
            .fmt(f),
            Self::Service(key) => key.fmt(f),
            Self::Workload(uid) => uid.fmt(f),
        }
    }
}

/// The outcome of fetching one resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FetchOutcome {
    /// The resource exists and the published snapshot holds it.
    Found,
    /// The control plane does not have the resource: it is outside the mesh.
    Absent,
    /// No answer arrived in time, or the answer could not be decoded. The caller must not treat
    /// the resource as outside the mesh.
    Unknown,
}

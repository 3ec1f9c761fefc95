//! What can be asked for where the mesh is known in part only, and what the answer may be.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{NamespacedHostname, NetworkAddress, Uid};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DemandKey {
    /// Whatever has this address: a workload, or a service by its virtual address.
    Address(NetworkAddress),
    /// A service.
    Service(NamespacedHostname),
    /// A workload.
    Workload(Uid),
}

impl DemandKey {
    /// Asks who has an address in a network.
    #[must_use]
    pub fn at(network: &Arc<str>, address: IpAddr) -> Self {
        Self::Address(NetworkAddress {
            network: network.clone(),
            address: address.to_canonical(),
        })
    }
}

impl fmt::Display for DemandKey {
    /// The name under which the control plane knows it.
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

/// What became of a question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fetched {
    /// It is there, and the mesh that is in force knows it.
    Found,
    /// The control plane does not know it: it is outside of the mesh.
    Absent,
    /// Nothing can be said: no answer in time, or one that could not be used. Whoever asks must
    /// not take it for outside of the mesh.
    Unknown,
}

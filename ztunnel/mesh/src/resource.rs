//! The resources that a decision can lack, and their discovery keys.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{NamespacedHostname, NetworkAddress, Snapshot, Uid};

/// The key of a resource that the control plane can be asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum ResourceKey {
    /// The workload with this address, or the service with this virtual address.
    Address(NetworkAddress),
    /// A service.
    Service(NamespacedHostname),
    /// A workload.
    Workload(Uid),
}

impl ResourceKey {
    /// The key of an address in a network.
    #[must_use]
    pub fn at(network: &Arc<str>, address: IpAddr) -> Self {
        Self::Address(NetworkAddress {
            network: network.clone(),
            address: address.to_canonical(),
        })
    }
}

impl fmt::Display for ResourceKey {
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

/// A resource of the mesh that a decision lacks. The caller obtains it and decides again, by the
/// view in force then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Missing {
    /// On-demand discovery has not requested the resource from the control plane.
    Resource(ResourceKey),
    /// The control plane has not pushed the workload of the deciding pod yet.
    OwnWorkload(Uid),
    /// The control plane has not pushed the workload of another pod of this node yet. Until then the
    /// policies and waypoints of that pod are not known. Two pods can briefly have the same uid, so
    /// the uid can be that of the deciding pod.
    LocalWorkload(Uid),
}

impl Missing {
    /// What is missing if the mesh does not contain the workload of a pod of this node. `absent`
    /// lists keys that the control plane does not have.
    #[must_use]
    pub fn own_workload(uid: &Uid, mesh: &Snapshot, absent: &[ResourceKey]) -> Self {
        let key = ResourceKey::Workload(uid.clone());
        let is_known = mesh.is_complete() || mesh.workload_by_uid(uid).is_some();
        if is_known || absent.contains(&key) {
            return Self::OwnWorkload(uid.clone());
        }
        Self::Resource(key)
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

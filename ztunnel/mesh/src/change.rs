//! One change of the mesh configuration.

use std::sync::Arc;

use super::{NamespacedHostname, NetworkAddress, Policy, Service, Uid, Workload};

/// One change of the mesh configuration. It is applied to a copy of a
/// [`Snapshot`](super::Snapshot) before that copy is published.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A workload was added or replaced.
    Workload(Box<Workload>),
    /// A workload was removed.
    RemoveWorkload(Uid),
    /// A service was added or replaced.
    Service(Box<Service>),
    /// A service was removed.
    RemoveService(NamespacedHostname),
    /// A policy was added or replaced.
    Policy(Box<Policy>),
    /// The policy with this key (`namespace/name`) was removed.
    RemovePolicy(Arc<str>),
    /// Stands for a workload or service that could not be decoded, so that its addresses are not
    /// treated as outside the mesh.
    Placeholder {
        /// The resource name that the control plane gave.
        name: Arc<str>,
        /// The addresses that could be decoded.
        addresses: Vec<NetworkAddress>,
    },
    /// The placeholder with this resource name was removed, or its resource can be decoded now.
    RemovePlaceholder(Arc<str>),
}

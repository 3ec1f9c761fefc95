//! One change of what the mesh is, as a control plane tells it.

use std::sync::Arc;

use super::{NamespacedHostname, NetworkAddress, Policy, Service, Uid, Workload};

/// One change of what the mesh is. Applied to a [`Snapshot`](super::Snapshot) before that is
/// published; a published one never changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A workload is there, or is another one now.
    Workload(Box<Workload>),
    /// A workload is gone.
    RemoveWorkload(Uid),
    /// A service is there, or is another one now.
    Service(Box<Service>),
    /// A service is gone.
    RemoveService(NamespacedHostname),
    /// A policy is there, or is another one now.
    Policy(Box<Policy>),
    /// The policy with this key (`namespace/name`) is gone.
    RemovePolicy(Arc<str>),
    /// A workload or service is there that could not be read, and nothing is known of it but where
    /// it is: nobody must take it for outside of the mesh.
    Refused {
        /// The name under which it was told.
        name: Arc<str>,
        /// Its addresses, as far as they could be read.
        addresses: Vec<NetworkAddress>,
    },
    /// What could not be read is gone, or comes as something that can be.
    Readable(Arc<str>),
}

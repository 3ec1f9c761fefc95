//! The pods that should be enrolled.

use std::fmt;
use std::sync::Arc;

use crate::agent::zds::PodUid;
use crate::pods::NetnsSource;
use mesh::{Uid, Workload};

/// Which source lists a pod, and under which name. For a short time two announced pods can be the
/// same workload of the mesh: the one that leaves and its replacement.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum PodKey {
    /// The settings list the pod.
    Listed(Uid),
    /// The node agent has announced the pod.
    Announced(PodUid),
}

impl fmt::Display for PodKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Listed(uid) => uid.fmt(f),
            Self::Announced(uid) => uid.fmt(f),
        }
    }
}

/// A pod that should be enrolled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DesiredPod {
    /// Its source and its name there.
    pub(crate) key: PodKey,
    /// Its workload. If the mesh does not know the workload yet, the pod is captured anyway, and its
    /// connections wait for it.
    pub(crate) uid: Uid,
    /// Its service account, if the node agent names it.
    pub(crate) account: Option<Arc<str>>,
    /// Its workload as far as the node agent's announcement tells it, without addresses: the
    /// certificate is requested early, and the pod's own connections can go on with it if the
    /// control plane does not push the workload in time.
    pub(crate) announced: Option<Arc<Workload>>,
    /// Its network namespace.
    pub(crate) netns: NetnsSource,
}

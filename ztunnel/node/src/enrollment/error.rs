//! Why a pod could not be enrolled.

use super::PodKey;
use crate::{bpf, pods};

/// Why a pod is not enrolled.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrollError {
    /// Its namespace could not be prepared.
    #[error(transparent)]
    Pod(#[from] pods::Error),
    /// Another enrolled pod has the same namespace.
    #[error(
        "its network namespace is that of pod {other}, which is enrolled already; a pod needs a \
         network namespace of its own"
    )]
    NetnsInUse {
        /// The other pod.
        other: PodKey,
    },
    /// Its addresses could not be listed.
    #[error("cannot list the addresses on the pod's interfaces: {0}")]
    Addresses(#[source] std::io::Error),
    /// A listener could not be duplicated.
    #[error("cannot duplicate a listener: {0}")]
    Duplicate(#[source] std::io::Error),
    /// Neither rules nor programs would capture it.
    #[error(
        "no rules inside the pod redirect its connections, and this node captures without kernel \
         programs: the pod would bypass the mesh (istio-cni installs the rules; see capture.by)"
    )]
    NoRules,
    /// Foreign programs capture it: outbound connections would arrive without their destination, and
    /// inbound ones not at all.
    #[error(
        "the eBPF programs of another proxy capture it, but this proxy expects redirection rules to \
         capture (capture.by): stop that proxy if it runs, then run `ztunnel kernel remove` on the \
         node"
    )]
    Captured {
        /// Whether the other proxy runs: it listens in the pod.
        served: bool,
    },
    /// Capture could not be turned on.
    #[error(transparent)]
    Kernel(#[from] bpf::Error),
}

impl EnrollError {
    /// Whether the pod's sandbox is gone or not complete yet: only its runtime can change that.
    pub(super) const fn is_sandbox_down(&self) -> bool {
        matches!(self, Self::Pod(pods::Error::LoopbackDown))
    }
}

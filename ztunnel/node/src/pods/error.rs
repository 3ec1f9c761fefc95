//! Errors while a pod is prepared.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::NetnsSource;

/// Names a capability that the process lacks, if an operation failed for lack of permission.
pub(super) fn lacking(source: &io::Error, capabilities: &str) -> String {
    if source.kind() == io::ErrorKind::PermissionDenied {
        format!("; {capabilities} is needed")
    } else {
        String::new()
    }
}

/// Why a pod could not be prepared. Each message names the object and, if one is known, the remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace file could not be opened.
    #[error("cannot open network namespace {path}: {source}; check that the pod still exists", path = .path.display())]
    OpenNetns {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The file is not a network namespace, or the kernel cannot report its cookie.
    #[error("cannot identify network namespace {netns}: {source}")]
    Identify {
        /// The source of the namespace.
        netns: NetnsSource,
        /// The system's error.
        source: io::Error,
    },
    /// A received descriptor is not a network namespace.
    #[error("the descriptor sent for pod {pod} is not a network namespace but {found}")]
    NoNetns {
        /// The pod.
        pod: Arc<str>,
        /// What the descriptor refers to.
        found: String,
    },
    /// A received descriptor is the proxy's own network namespace.
    #[error("the descriptor sent for pod {pod} is the network namespace of the proxy itself")]
    Own {
        /// The pod.
        pod: Arc<str>,
    },
    /// A received descriptor cannot be inspected.
    #[error("cannot inspect the descriptor sent for pod {pod}: {source}")]
    Inspect {
        /// The pod.
        pod: Arc<str>,
        /// The system's error.
        source: io::Error,
    },
    /// `setns` failed.
    #[error("cannot enter network namespace {netns}: {source}{}", lacking(.source, "CAP_SYS_ADMIN"))]
    Enter {
        /// The source of the namespace.
        netns: NetnsSource,
        /// The system's error.
        source: io::Error,
    },
    /// A new namespace could not be created.
    #[error("cannot create a network namespace: {source}{}", lacking(.source, "CAP_SYS_ADMIN"))]
    Make {
        /// The system's error.
        source: io::Error,
    },
    /// A connection with the client's address could not be delivered.
    #[error("cannot deliver a connection with the client's address: {source}")]
    Deliver {
        /// The system's error.
        source: io::Error,
    },
    /// A listener could not be opened.
    #[error("cannot listen on {address} in the pod's network namespace: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The routing rule or the route for delivery was refused.
    #[error("cannot add the {what} for delivery: {source}{}", lacking(.source, "CAP_NET_ADMIN"))]
    Route {
        /// The object.
        what: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// The loopback device is down, as in the namespace of a sandbox that its runtime has removed.
    #[error(
        "the loopback device of the pod's network namespace is down: the pod's sandbox is gone, or \
         its container runtime is still creating it; a new sandbox of the pod is enrolled when the \
         node agent announces it"
    )]
    LoopbackDown,
    /// A sysctl could not be written.
    #[error(
        "cannot set {key} to 1: {source}{}",
        lacking(.source, "CAP_NET_ADMIN, with a writable /proc/sys or CAP_SYS_ADMIN,")
    )]
    Sysctl {
        /// The key as a path below /proc/sys.
        key: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The thread that works inside the namespace panicked.
    #[error("the thread that works in the pod's network namespace has panicked")]
    Thread,
}

impl Error {
    /// Whether the address does not exist in the pod, as in one without IPv6.
    pub(super) fn is_absent(&self) -> bool {
        let absent = io::ErrorKind::AddrNotAvailable;
        matches!(self, Self::Listen { source, .. } if source.kind() == absent)
    }

    /// Whether the kernel takes part of a route for invalid.
    pub(super) fn is_invalid(&self) -> bool {
        let invalid = io::ErrorKind::InvalidInput;
        matches!(self, Self::Route { source, .. } if source.kind() == invalid)
    }

    /// Whether another socket has the address.
    pub(super) fn is_in_use(&self) -> bool {
        let in_use = io::ErrorKind::AddrInUse;
        matches!(self, Self::Listen { source, .. } if source.kind() == in_use)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_capability_is_named_only_where_the_permission_was_missing() {
        let route = |code| Error::Route {
            what: "local route",
            source: io::Error::from_raw_os_error(code),
        };
        let refused = route(libc::EPERM).to_string();
        assert!(refused.ends_with("; CAP_NET_ADMIN is needed"), "{refused}");
        let no_memory = route(libc::ENOMEM).to_string();
        assert!(!no_memory.contains("CAP_"), "{no_memory}");
    }
}

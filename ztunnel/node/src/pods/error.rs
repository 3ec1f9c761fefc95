//! What can go wrong while a pod is prepared.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use super::NetnsSource;

/// Why a pod could not be prepared. Each message names the object and, where one is known, the
/// way out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The namespace file could not be opened.
    #[error("network namespace {path}: {source}; is the pod still there?", path = .path.display())]
    OpenNetns {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a network namespace, or the kernel does not tell its cookie.
    #[error("network namespace {place}: cannot be identified: {source}")]
    Identify {
        /// Where it was found.
        place: NetnsSource,
        /// What the system said.
        source: io::Error,
    },
    /// A descriptor that was handed over is not a network namespace.
    #[error("what was handed over for pod {pod} is not a network namespace but {found}")]
    NoNetns {
        /// The pod.
        pod: Arc<str>,
        /// What it is.
        found: String,
    },
    /// A descriptor that was handed over is the proxy's own network namespace.
    #[error("what was handed over for pod {pod} is the network namespace of the proxy itself")]
    Own {
        /// The pod.
        pod: Arc<str>,
    },
    /// A descriptor that was handed over cannot be looked at.
    #[error("what was handed over for pod {pod} cannot be looked at: {source}")]
    Inspect {
        /// The pod.
        pod: Arc<str>,
        /// What the system said.
        source: io::Error,
    },
    /// `setns` failed.
    #[error("cannot enter network namespace {place}: {source}; CAP_SYS_ADMIN is needed")]
    Enter {
        /// Where it was found.
        place: NetnsSource,
        /// What the system said.
        source: io::Error,
    },
    /// A namespace of its own could not be made.
    #[error("cannot make a network namespace: {source}; CAP_SYS_ADMIN is needed")]
    Make {
        /// What the system said.
        source: io::Error,
    },
    /// A connection that bears another's address did not come to be.
    #[error("a delivery with the client's address fails: {source}")]
    Deliver {
        /// What the system said.
        source: io::Error,
    },
    /// A listener could not be opened.
    #[error("cannot listen on {address} in the pod's network namespace: {source}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// The routing rule or the route for delivery was refused.
    #[error("cannot add the {what} for delivery: {source}; CAP_NET_ADMIN is needed")]
    Route {
        /// Which object.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// A sysctl could not be written.
    #[error(
        "cannot set {key} to 1: {source}; CAP_NET_ADMIN is needed, and a writable /proc/sys or CAP_SYS_ADMIN"
    )]
    Sysctl {
        /// The key as a path below /proc/sys.
        key: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The thread that works inside the namespace ended early.
    #[error("the thread that prepares the pod ended early")]
    Thread,
}

impl Error {
    /// Whether the pod has no such address, as one without IPv6.
    pub(super) fn is_absent(&self) -> bool {
        let absent = io::ErrorKind::AddrNotAvailable;
        matches!(self, Self::Listen { source, .. } if source.kind() == absent)
    }

    /// Whether somebody else has the address.
    pub(super) fn is_taken(&self) -> bool {
        let taken = io::ErrorKind::AddrInUse;
        matches!(self, Self::Listen { source, .. } if source.kind() == taken)
    }
}

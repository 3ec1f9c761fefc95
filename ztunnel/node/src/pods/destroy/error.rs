//! Errors while connections are destroyed.

use std::io;

use super::super::error::lacking;
use mesh::Fault;

/// Why the whole call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An exchange with the kernel failed.
    #[error("cannot {what} over netlink: {source}{}", lacking(.source, "CAP_NET_ADMIN"))]
    Netlink {
        /// The attempted operation.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The kernel's answer could not be decoded.
    #[error("cannot decode the kernel's answer about a socket: {problem}")]
    Answer {
        /// The defect.
        problem: &'static str,
    },
    /// The kernel does not support requests about TCP sockets.
    #[error("this kernel cannot list TCP sockets; it needs CONFIG_INET_DIAG")]
    NoDiag,
    /// The kernel has no `SOCK_DESTROY`, and packets cannot be used instead.
    #[error(
        "cannot {what}: {source}{}",
        lacking(.source, "on a kernel without CONFIG_INET_DIAG_DESTROY, CAP_NET_RAW")
    )]
    Packets {
        /// The attempted operation.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl Error {
    /// A short name out of a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Netlink { .. } => "netlink",
            Self::Answer { .. } => "answer",
            Self::NoDiag => "no_diag",
            Self::Packets { .. } => "packets",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Us
    }
}

/// Why one connection still exists.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel refused to destroy it.
    #[error("the kernel refuses to destroy the socket: {source}")]
    Refused {
        /// The kernel's error.
        source: io::Error,
    },
    /// The socket did not reveal its sequence numbers.
    #[error("the socket answered none of {probes} probes for its sequence numbers")]
    Unanswered {
        /// The number of probes.
        probes: u32,
    },
    /// The socket's sequence numbers had advanced each time before a reset arrived.
    #[error(
        "{resets} resets came too late: the socket's sequence numbers had advanced; the next sweep \
         tries again"
    )]
    Outran {
        /// The number of resets.
        resets: u32,
    },
    /// The socket is bound to a device, and packets over loopback do not reach it.
    #[error(
        "the socket is bound to the device with index {device}, so packets over loopback cannot reach \
         it; a kernel with CONFIG_INET_DIAG_DESTROY can destroy it"
    )]
    Bound {
        /// The index of the device.
        device: u32,
    },
}

impl Failure {
    /// A short name out of a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Refused { .. } => "refused",
            Self::Unanswered { .. } => "unanswered",
            Self::Outran { .. } => "outran",
            Self::Bound { .. } => "bound",
        }
    }

    /// Whose fault it is.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Us
    }
}

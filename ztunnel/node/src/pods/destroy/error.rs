//! What can go wrong while connections are destroyed.

use std::io;

use mesh::Fault;

/// Why no connection could be destroyed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel could not be asked about sockets.
    #[error("cannot {what} over netlink: {source}; CAP_NET_ADMIN is needed")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The kernel's answer is none.
    #[error("the kernel's answer about a socket cannot be read: {problem}")]
    Answer {
        /// What is wrong with it.
        problem: &'static str,
    },
    /// The kernel does not tell about TCP sockets.
    #[error("this kernel does not tell about TCP sockets; CONFIG_INET_DIAG is needed")]
    NoDiag,
    /// The kernel cannot destroy, and packets cannot be sent instead.
    #[error(
        "cannot {what}: {source}; without CONFIG_INET_DIAG_DESTROY in the kernel, CAP_NET_RAW is \
         needed"
    )]
    Packets {
        /// What was tried.
        what: &'static str,
        /// What the system said.
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

/// Why one connection is still there.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The kernel refused.
    #[error("the kernel refuses to destroy it: {source}")]
    Refused {
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket did not say at which sequence numbers it is.
    #[error("its socket answered none of {probes} probes")]
    Unanswered {
        /// How often it was asked.
        probes: u32,
    },
    /// It did, but was past them each time before the reset came.
    #[error("it outran {resets} resets")]
    Outran {
        /// How many were sent to it.
        resets: u32,
    },
    /// The socket is bound to a device, and packets from loopback do not reach it.
    #[error("it is bound to the device with the index {device}, where no packet of ours arrives")]
    Bound {
        /// The device.
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

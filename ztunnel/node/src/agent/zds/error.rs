//! Errors of the connection to the node agent, and reasons to refuse a pod.

use std::io;
use std::path::PathBuf;

use super::packet::MAX_BYTES;
use super::pod::PodUid;
use crate::pods;
use mesh::Fault;

/// Why the connection to the node agent failed or ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The socket does not accept connections.
    #[error("cannot connect to the node agent at {socket}: {source}; check that istio-cni runs on this node", socket = .socket.display())]
    Connect {
        /// The agent's socket.
        socket: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The agent has ended the connection.
    #[error("the node agent has closed the connection")]
    Closed,
    /// A packet could not be received.
    #[error("cannot receive from the node agent: {source}")]
    Receive {
        /// What the system said.
        source: io::Error,
    },
    /// An answer could not be sent.
    #[error("cannot send to the node agent: {source}")]
    Send {
        /// What the system said.
        source: io::Error,
    },
    /// A packet was longer than any request.
    #[error(
        "the node agent has sent a packet of more than {MAX_BYTES} bytes, the limit of a request"
    )]
    TooLong,
    /// A packet came with more than one descriptor, or this process cannot open more files.
    #[error(
        "the node agent has sent more than one descriptor with a packet, or this process has reached \
         its limit of open files"
    )]
    Descriptors,
    /// A packet could not be decoded.
    #[error("cannot decode a packet of the node agent as a request: {source}")]
    Undecodable {
        /// The decoder's error.
        source: prost::DecodeError,
    },
    /// The kind of a request is missing or unknown.
    #[error(
        "the node agent has sent a request of an unknown kind; is istio-cni newer than this proxy?"
    )]
    Unknown,
    /// The uid of a pod is empty or too long.
    #[error("the node agent has sent a pod uid of {length} bytes, expected 1 to {most}")]
    Uid {
        /// Its length.
        length: usize,
        /// The longest allowed.
        most: usize,
    },
    /// A descriptor came with a request that takes none.
    #[error("the node agent has sent a descriptor with the request {request}, which takes none")]
    UnexpectedDescriptor {
        /// The kind of the request.
        request: &'static str,
    },
    /// A request came out of order.
    #[error("the node agent has sent {request} after the end of the snapshot")]
    Order {
        /// The kind of the request.
        request: &'static str,
    },
    /// The proxy is stopping.
    #[error("the proxy is stopping")]
    Stopping,
}

impl Error {
    /// A short name out of a closed set, for logs and metrics.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Connect { .. } => "agent_connect",
            Self::Closed => "agent_closed",
            Self::Receive { .. } | Self::Send { .. } => "agent_io",
            Self::TooLong
            | Self::Descriptors
            | Self::Undecodable { .. }
            | Self::Unknown
            | Self::Uid { .. }
            | Self::UnexpectedDescriptor { .. }
            | Self::Order { .. } => "agent_protocol",
            Self::Stopping => "stopping",
        }
    }

    /// Whose fault it is. The agent, which describes this node's pods, is a part of the mesh.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Receive { .. } | Self::Send { .. } | Self::Stopping => Fault::Us,
            _ => Fault::Mesh,
        }
    }
}

/// Why an announced pod is refused.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The descriptor of its network namespace is missing.
    #[error("pod {uid} was announced without the descriptor of its network namespace")]
    NoDescriptor {
        /// The pod.
        uid: PodUid,
    },
    /// Its workload_info is missing.
    #[error("pod {uid} was announced without workload_info")]
    NoInfo {
        /// The pod.
        uid: PodUid,
    },
    /// A field of its workload_info is invalid.
    #[error(
        "pod {uid} was announced with a workload_info whose {field} {found:?} is not a valid name in \
         Kubernetes"
    )]
    Name {
        /// The pod.
        uid: PodUid,
        /// The field.
        field: &'static str,
        /// Its value.
        found: String,
    },
    /// Its descriptor is not the network namespace of a pod.
    #[error(transparent)]
    Netns(#[from] pods::Error),
}

//! What can go wrong with the node agent.

use std::io;
use std::path::PathBuf;

use super::packet::MOST_BYTES;
use crate::pods;
use mesh::Fault;

/// Why there is no connection to the node agent any more.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers.
    #[error("no connection to the node agent at {socket}: {source}; does istio-cni run on this node?", socket = .socket.display())]
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
    /// A packet was longer than any request is.
    #[error("the node agent has sent a packet of more than {MOST_BYTES} bytes")]
    TooLong,
    /// A packet came with more than one descriptor, or this process can open no more files.
    #[error(
        "the node agent has sent more than one descriptor, or no more files can be opened here"
    )]
    Descriptors,
    /// A packet was no request.
    #[error("the node agent has sent what is no request: {source}")]
    Undecodable {
        /// What is wrong with it.
        source: prost::DecodeError,
    },
    /// A request of a kind that is not known here, or of none.
    #[error("the node agent has sent a request of no known kind")]
    Unknown,
    /// A request named no pod, or an impossible one.
    #[error("the node agent has sent the uid of a pod with {length} bytes, expected 1 to {most}")]
    Uid {
        /// How long it was.
        length: usize,
        /// How long it may be.
        most: usize,
    },
    /// A descriptor came with a request that has none.
    #[error("the node agent has sent a descriptor with a request that takes none ({request})")]
    Stray {
        /// The kind of the request.
        request: &'static str,
    },
    /// A request came when it means nothing.
    #[error("the node agent has sent {request} after the end of the snapshot")]
    Order {
        /// The kind of the request.
        request: &'static str,
    },
    /// The proxy stops.
    #[error("the proxy is stopping")]
    Stopping,
}

impl Error {
    /// Why, as one of a few words.
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
            | Self::Stray { .. }
            | Self::Order { .. } => "agent_protocol",
            Self::Stopping => "stopping",
        }
    }

    /// Whose fault it is. The agent is who describes the pods of this node.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Receive { .. } | Self::Send { .. } | Self::Stopping => Fault::Us,
            _ => Fault::Mesh,
        }
    }
}

/// Why a pod is not taken on, though the agent has named it.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// It came without its namespace.
    #[error("pod {uid} came without the descriptor of its network namespace")]
    NoDescriptor {
        /// The pod.
        uid: super::PodUid,
    },
    /// It came without what says which workload it is.
    #[error("pod {uid} came without its workload_info")]
    NoInfo {
        /// The pod.
        uid: super::PodUid,
    },
    /// What says which workload it is cannot be.
    #[error(
        "pod {uid} came with a workload_info whose {field} {found:?} cannot be a name in Kubernetes"
    )]
    Name {
        /// The pod.
        uid: super::PodUid,
        /// Which part.
        field: &'static str,
        /// What it says.
        found: String,
    },
    /// Its namespace is none.
    #[error(transparent)]
    Netns(#[from] pods::Error),
}

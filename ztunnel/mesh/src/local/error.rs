//! Why a local file cannot be used.

use std::net::IpAddr;

use crate::Fault;
use crate::yaml::YamlError;

/// Why a local file cannot be used. Every message begins with the path of the value in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// It is no YAML, or a value is not what stands there.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// The same, in a document that has a name.
    #[error("{document}: {error}")]
    Document {
        /// The document.
        document: String,
        /// What is wrong in it.
        error: YamlError,
    },
    /// A value is well formed but cannot be.
    #[error("{path}: {problem}")]
    Invalid {
        /// Where, for example `workloads[0].uid`.
        path: String,
        /// What is wrong.
        problem: String,
    },
    /// Two objects have the same key.
    #[error("{path}: {key:?} is already the {kind} at {first}")]
    Duplicate {
        /// Where the second one is.
        path: String,
        /// What it is: `uid of the workload`, `key of the service`, `key of the policy`.
        kind: &'static str,
        /// The key.
        key: String,
        /// Where the first one is.
        first: String,
    },
    /// Two objects claim the same address in the same network.
    #[error("{path}: {address} in network {network:?} already belongs to {owner} ({first})")]
    AddressTaken {
        /// Where the second claim is.
        path: String,
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
        /// Who has it.
        owner: String,
        /// Where the first claim is.
        first: String,
    },
}

impl LocalError {
    /// A short name out of a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Yaml(_) | Self::Document { .. } => "yaml",
            Self::Invalid { .. } => "invalid_value",
            Self::Duplicate { .. } => "duplicate_key",
            Self::AddressTaken { .. } => "address_taken",
        }
    }

    /// Whose fault it is: always that of whoever describes the mesh.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Mesh
    }
}

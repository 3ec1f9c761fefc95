//! Why a local file cannot be used.

use std::net::IpAddr;

use crate::Fault;
use crate::yaml::YamlError;

/// A local file cannot be used. Every message begins with the path of the value in the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LocalError {
    /// The file is no YAML, a key is unknown or a value has the wrong type.
    #[error(transparent)]
    Yaml(#[from] YamlError),
    /// The same, in a document that has a name.
    #[error("{document}: {error}")]
    Document {
        /// The document.
        document: String,
        /// The error in it.
        error: YamlError,
    },
    /// A value is well formed but invalid.
    #[error("{path}: {problem}")]
    Invalid {
        /// The path of the value, for example `workloads[0].uid`.
        path: String,
        /// The problem.
        problem: String,
    },
    /// Two objects have the same key.
    #[error("{path}: {key:?} is already the {kind} at {first}")]
    Duplicate {
        /// The path of the second object.
        path: String,
        /// `uid of the workload`, `key of the service` or `key of the policy`.
        kind: &'static str,
        /// The key.
        key: String,
        /// The path of the first object.
        first: String,
    },
    /// Two objects claim the same address in the same network.
    #[error("{path}: {address} in network {network:?} already belongs to {owner} ({first})")]
    AddressTaken {
        /// The path of the second claim.
        path: String,
        /// The address.
        address: IpAddr,
        /// The network.
        network: String,
        /// The object that has the address.
        owner: String,
        /// The path of the first claim.
        first: String,
    },
}

impl LocalError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Yaml(_) | Self::Document { .. } => "yaml",
            Self::Invalid { .. } => "invalid_value",
            Self::Duplicate { .. } => "duplicate_key",
            Self::AddressTaken { .. } => "address_taken",
        }
    }

    /// The party that has to act: always the author of the file.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Mesh
    }
}

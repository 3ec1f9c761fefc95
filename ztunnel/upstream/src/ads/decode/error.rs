//! The errors of decoding a resource.

use mesh::Fault;

/// A resource cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not a message of the expected type.
    #[error("the content is not a valid {message}: {source}")]
    Malformed {
        /// The expected type.
        message: &'static str,
        /// The error of the decoder.
        source: prost::DecodeError,
    },
    /// An `Address` of an unknown kind.
    #[error("the content is neither a workload nor a service")]
    Empty,
    /// The value of a field is invalid.
    #[error("{kind} {name}: {field}: {problem}")]
    Field {
        /// `workload`, `service` or `policy`.
        kind: &'static str,
        /// The name of the resource, at most 256 characters.
        name: String,
        /// The path of the field.
        field: String,
        /// The problem.
        problem: String,
    },
}

impl DecodeError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Malformed { .. } => "malformed",
            Self::Empty => "empty",
            Self::Field { .. } => "field",
        }
    }

    /// The party that has to act: the operator of the mesh configuration.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Mesh
    }
}

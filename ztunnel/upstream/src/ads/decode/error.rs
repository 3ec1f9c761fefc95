//! Why the bytes of a resource are not used.

use mesh::Fault;

/// Why the bytes of a resource are not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes are not the message that they should be.
    #[error("no {message}: {source}")]
    Malformed {
        /// What was expected.
        message: &'static str,
        /// What the decoder said.
        source: prost::DecodeError,
    },
    /// An address that is neither of the two that are known.
    #[error("neither a workload nor a service")]
    Empty,
    /// A field holds what it may not hold.
    #[error("{kind} {name}: {field}: {problem}")]
    Field {
        /// `workload`, `service` or `policy`.
        kind: &'static str,
        /// Which one, at most 256 characters of its name.
        name: String,
        /// The path of the field.
        field: String,
        /// What is wrong with it.
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

    /// Who has to act: the operator of the mesh configuration.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Mesh
    }
}

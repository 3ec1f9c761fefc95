//! Errors of the file of revocation lists. Each message names the file.

use std::io;
use std::path::PathBuf;

use super::super::Fault;

/// Why the file of revocation lists cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RevocationError {
    /// The file cannot be read.
    #[error("cannot read the revocation lists in {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        source: io::Error,
    },
    /// The file had lists before; now it is missing or empty.
    #[error(
        "the file of revocation lists {path} is missing or empty; the previous lists stay in force"
    )]
    Gone {
        /// The file.
        path: PathBuf,
    },
    /// The file has no list.
    #[error(
        "no revocation list found in {path}: expected PEM blocks \"X509 CRL\", or one list in DER"
    )]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// The file has more lists than the limit.
    #[error("{path} has more than {limit} revocation lists")]
    TooMany {
        /// The file.
        path: PathBuf,
        /// The limit.
        limit: usize,
    },
    /// A list is invalid, or of a kind that is not supported.
    #[error("cannot use revocation list {number} in {path}: {why}")]
    Unusable {
        /// The file.
        path: PathBuf,
        /// The position of the list in the file, from 1.
        number: usize,
        /// The problem.
        why: String,
    },
}

impl RevocationError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "crl_io",
            Self::Gone { .. } => "crl_gone",
            Self::Empty { .. } => "crl_empty",
            Self::TooMany { .. } => "crl_too_many",
            Self::Unusable { .. } => "crl_unusable",
        }
    }

    /// The party that has to fix the error: the provider of the file.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Mesh
    }
}

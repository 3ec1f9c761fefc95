//! Errors in the settings of the client of the control plane's authority.

use std::io;
use std::path::PathBuf;

use tunnel::tls::Fault;

/// A setting of the client is invalid.
#[derive(Debug, thiserror::Error)]
pub enum IstiodError {
    /// The address cannot be used.
    #[error("the certificate authority's address {address:?} cannot be used: {why}")]
    Address {
        /// The setting.
        address: String,
        /// The problem.
        why: String,
    },
    /// The token would be sent in plaintext.
    #[error(
        "the certificate authority's address {address:?} is not a loopback address, so it must begin \
         with https://"
    )]
    Plaintext {
        /// The setting.
        address: String,
    },
    /// The name of the control plane's certificate is invalid, or the system has no roots.
    #[error("cannot configure TLS to {address}: {why}")]
    Tls {
        /// The address.
        address: String,
        /// The problem.
        why: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A file does not hold root certificates.
    #[error("{path} does not hold root certificates: {why}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// A header cannot be sent. Its value is not shown, because it may be a secret.
    #[error("the header {name:?} for the certificate authority cannot be sent: {why}")]
    Header {
        /// Its name.
        name: String,
        /// The problem.
        why: &'static str,
    },
}

impl IstiodError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Address { .. } => "ca_address",
            Self::Plaintext { .. } => "ca_plaintext",
            Self::Tls { .. } => "ca_tls",
            Self::Io { .. } => "ca_io",
            Self::Roots { .. } => "ca_roots",
            Self::Header { .. } => "ca_header",
        }
    }

    /// The party that has to act: always the operator.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Mesh
    }
}

//! Why the control plane's authority cannot be asked at all; each text names the setting.

use std::io;
use std::path::PathBuf;

use tunnel::tls::Fault;

/// Why the control plane's authority cannot be asked with these settings.
#[derive(Debug, thiserror::Error)]
pub enum IstiodError {
    /// The address cannot be used.
    #[error("the certificate authority's address {address:?} cannot be used: {why}")]
    Address {
        /// The setting.
        address: String,
        /// What is wrong with it.
        why: String,
    },
    /// The token would be sent in the clear.
    #[error(
        "the certificate authority's address {address:?} is not on this machine, so it must begin \
         with https://"
    )]
    Plaintext {
        /// The setting.
        address: String,
    },
    /// The name in the control plane's certificate cannot be one, or the system has no roots.
    #[error("TLS to {address} cannot be set up: {why}")]
    Tls {
        /// Where to.
        address: String,
        /// What is wrong.
        why: String,
    },
    /// A file cannot be read.
    #[error("cannot read {path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A file does not hold root certificates.
    #[error("{path} does not hold root certificates: {why}")]
    Roots {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// A header cannot be sent. Its value is not shown: it may be a secret.
    #[error("the header {name:?} for the certificate authority cannot be sent: {why}")]
    Header {
        /// Its name.
        name: String,
        /// What is wrong with it.
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

    /// Who has to act: always whoever set this node up.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        Fault::Mesh
    }
}

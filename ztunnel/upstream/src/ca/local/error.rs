//! Errors of the embedded authority's files and settings.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use tunnel::tls::Fault;

/// The shortest lifetime of leaf certificates; below it renewal cannot keep up on a slow machine.
pub const MIN_LEAF_TTL: Duration = Duration::from_secs(2);

/// The embedded authority cannot be used. The message says how to fix it.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    /// A file or the directory cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// The operation.
        action: &'static str,
        /// The file or directory.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// Other users can read the key file.
    #[error(
        "the root key {path} is readable by other users (mode {mode:03o}), who could issue \
         certificates of the mesh: run `chmod 600` on it, or remove root and key if it may have leaked"
    )]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate exists without its key.
    #[error(
        "{path} is missing, but its root certificate exists: restore the key or remove the certificate"
    )]
    KeyMissing {
        /// The key's file.
        path: PathBuf,
    },
    /// The content of a file is invalid.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// The key belongs to another certificate.
    #[error(
        "the root key in {directory} is not the key of the root certificate there: restore the right files or remove both"
    )]
    Mismatch {
        /// The directory of both.
        directory: PathBuf,
    },
    /// The lifetime of leaf certificates is too short.
    #[error(
        "a lifetime of {ttl:?} for certificates is too short: expected at least {MIN_LEAF_TTL:?}"
    )]
    LeafTtl {
        /// The setting.
        ttl: Duration,
    },
    /// The root could not be created.
    #[error("cannot create a root certificate for {trust_domain:?}: {why}")]
    Generate {
        /// The mesh's trust domain.
        trust_domain: String,
        /// The problem.
        why: String,
    },
}

impl LocalCaError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::KeyExposed { .. } => "key_exposed",
            Self::KeyMissing { .. } => "key_missing",
            Self::Damaged { .. } => "damaged",
            Self::Mismatch { .. } => "mismatch",
            Self::LeafTtl { .. } => "leaf_ttl",
            Self::Generate { .. } => "generate",
        }
    }

    /// The party that has to act.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Generate { .. } => Fault::Us,
            _ => Fault::Mesh,
        }
    }
}

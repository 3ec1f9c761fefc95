//! Why the embedded authority cannot be used; each text says how to mend it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use super::MIN_LEAF_TTL;
use tunnel::tls::Fault;

/// Why the embedded authority cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum LocalCaError {
    /// A file or the directory cannot be read or written.
    #[error("cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The key file is not private.
    #[error(
        "the root key {path} may be read by others (mode {mode:03o}); whoever could read it can \
         issue certificates of the mesh: replace the root if in doubt, else `chmod 600` it"
    )]
    KeyExposed {
        /// The file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// The certificate is there without its key.
    #[error("{path} is missing but the root certificate is there: restore the key, or remove both")]
    KeyMissing {
        /// The key's file.
        path: PathBuf,
    },
    /// A file does not hold what it should.
    #[error("{path} is damaged: {why}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The key belongs to another certificate.
    #[error("the root key and the root certificate in {directory} do not belong together")]
    Mismatch {
        /// Where both are.
        directory: PathBuf,
    },
    /// A setting that cannot work.
    #[error("a leaf lifetime of {ttl:?} is too short, the least is {MIN_LEAF_TTL:?}")]
    LeafTtl {
        /// The setting.
        ttl: Duration,
    },
    /// The root could not be made.
    #[error("cannot create a root certificate for {trust_domain:?}: {why}")]
    Generate {
        /// The mesh's trust domain.
        trust_domain: String,
        /// What went wrong.
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

    /// Who has to act: always whoever set this node up.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Generate { .. } => Fault::Us,
            _ => Fault::Mesh,
        }
    }
}

//! The seam to certificate authorities: what an issuer gives, and how it is asked.

use std::fmt;
use std::future::Future;
use std::pin::Pin;

use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::error::IssueError;
use crate::mesh::Identity;

/// A source of certificates: the embedded authority, or a client of the control plane's.
pub trait Issuer: Send + Sync + 'static {
    /// Issues a certificate with a fresh key. [`Store`](super::Store) calls it on the main
    /// runtime, once at a time per identity, and retries with back-off.
    fn issue<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>>;
}

/// A certificate with its key, and whom to trust.
pub struct Issued {
    /// The chain, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKeyDer<'static>,
    /// The mesh's root certificates.
    pub roots: Vec<CertificateDer<'static>>,
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("chain", &self.chain.len())
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

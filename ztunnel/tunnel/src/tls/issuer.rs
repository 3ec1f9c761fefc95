//! The interface to a certificate authority: the request and its result.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use webpki::KeyUsage;

use super::credentials::root_store;
use super::error::IssueError;
use super::revocation::Revocations;
use super::verify::{Trust, identity_of};
use mesh::Identity;

/// A source of certificates: the embedded certificate authority, or the client of a remote one.
pub trait Issuer: Send + Sync + 'static {
    /// Issues a certificate with a fresh key. [`Store`](super::Store) calls it on the main runtime,
    /// one call at a time for each identity, and retries with back-off.
    fn issue<'a>(
        &'a self,
        identity: &'a Identity,
    ) -> Pin<Box<dyn Future<Output = Result<Issued, IssueError>> + Send + 'a>>;
}

/// A certificate with its key, and the roots to trust.
pub struct Issued {
    /// The chain, leaf first, without the root.
    pub chain: Vec<CertificateDer<'static>>,
    /// The leaf's private key.
    pub key: PrivateKeyDer<'static>,
    /// The mesh's root certificates.
    pub roots: Vec<CertificateDer<'static>>,
}

impl Issued {
    /// Checks that peers that trust `roots` accept the certificate for `identity`, both as a client
    /// and as a server.
    ///
    /// # Errors
    /// [`IssueError::Unusable`], with the cause.
    pub fn check(&self, identity: &Identity) -> Result<(), IssueError> {
        let unusable = |why: String| IssueError::Unusable { why };
        let Some((leaf, above)) = self.chain.split_first() else {
            return Err(unusable("the chain is empty".to_owned()));
        };
        let found = identity_of(leaf).map_err(|error| unusable(error.to_string()))?;
        if found != *identity {
            return Err(unusable(format!("it is for {found} instead of {identity}")));
        }
        let trust = Trust {
            roots: Arc::new(root_store(&self.roots)?),
            revocations: Revocations::default(),
        };
        for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
            let checked = trust.check(leaf, above, UnixTime::now(), usage);
            checked.map_err(|error| {
                unusable(format!("its chain to the root is not valid now: {error}"))
            })?;
        }
        Ok(())
    }
}

impl fmt::Debug for Issued {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Issued")
            .field("chain", &self.chain.len())
            .field("roots", &self.roots.len())
            .finish_non_exhaustive()
    }
}

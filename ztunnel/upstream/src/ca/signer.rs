//! Signing, apart from key generation: a [`CertificateSigner`] never sees a private key of a
//! workload. The embedded authority signs its own requests with it, and a control plane can sign
//! the requests of others.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, CertificateSigningRequestDer};

use mesh::Identity;
use tunnel::tls::Fault;

/// Signs certificates for identities that the caller has authenticated.
pub trait CertificateSigner: Send + Sync {
    /// Signs a certificate for the public key of a request. The signature of the request proves
    /// that the requester has the private key. All names and extensions of the request are ignored:
    /// the certificate is for `identity`, and valid for `lifetime` or until the root expires.
    ///
    /// Returns the chain, leaf first, without the root.
    ///
    /// # Errors
    /// When the request is malformed or its signature is wrong, or the authority does not sign for
    /// this identity.
    fn sign(
        &self,
        request: &CertificateSigningRequestDer<'_>,
        identity: &Identity,
        lifetime: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, SignError>;
}

/// A certificate request was not signed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SignError {
    /// The request cannot be parsed, or its signature does not match its public key.
    #[error("the certificate signing request cannot be used: {why}")]
    Request {
        /// The problem with it.
        why: String,
    },
    /// The identity is of another trust domain.
    #[error("{identity} is not in the trust domain {trust_domain} that this authority signs for")]
    TrustDomain {
        /// The identity of the request.
        identity: Identity,
        /// The trust domain of the authority.
        trust_domain: String,
    },
    /// The root certificate has expired.
    #[error("the root certificate has expired: remove it and its key to create a new one")]
    RootExpired,
    /// The certificate could not be built or signed.
    #[error("the certificate could not be signed: {why}")]
    Failed {
        /// The problem.
        why: String,
    },
}

impl SignError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Request { .. } => "csr",
            Self::TrustDomain { .. } => "trust_domain",
            Self::RootExpired => "root_expired",
            Self::Failed { .. } => "sign_failed",
        }
    }

    /// The party that has to act.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Request { .. } => Fault::Downstream,
            Self::TrustDomain { .. } | Self::RootExpired => Fault::Mesh,
            Self::Failed { .. } => Fault::Us,
        }
    }
}

//! The errors of certificates, handshakes and records, one enum for each stage. Each error has a
//! `reason()` from a closed set (metric label, log field) and a `fault()`; its message names the
//! likely cause, because operators see only the message.

mod handshake;
mod record;

use std::sync::Arc;

use rustls::AlertDescription;

pub use self::handshake::{HandshakeError, IdentityRefusal};
pub use self::record::RecordError;
use mesh::Identity;

/// The party that has to fix an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The side that connected to us.
    Downstream,
    /// The side that we connected to.
    Upstream,
    /// The mesh's configuration or certificate authority.
    Mesh,
    /// This proxy.
    Us,
}

/// Which end of a handshake this proxy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It opened the connection.
    Client,
    /// It accepted the connection.
    Server,
}

impl Role {
    /// The peer's name in messages.
    const fn peer(self) -> &'static str {
        match self {
            Self::Client => "server",
            Self::Server => "client",
        }
    }

    /// The fault of an error that the peer caused.
    const fn fault(self) -> Fault {
        match self {
            Self::Client => Fault::Upstream,
            Self::Server => Fault::Downstream,
        }
    }
}

/// Why a TLS session could not be established.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no valid certificate for the local identity of the session.
    #[error("no valid certificate for {identity}: {cause}")]
    Issue {
        /// The local identity.
        identity: Identity,
        /// The error of the issuer.
        cause: Arc<IssueError>,
    },
    /// The handshake failed.
    #[error("TLS handshake with the {} failed: {cause}", role.peer())]
    Handshake {
        /// Which end this proxy was.
        role: Role,
        /// The cause.
        cause: Box<HandshakeError>,
    },
}

impl Error {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Issue { cause, .. } => cause.reason(),
            Self::Handshake { cause, .. } => cause.reason(),
        }
    }

    /// Whether a certificate of the peer's chain was revoked.
    #[must_use]
    pub fn is_revocation(&self) -> bool {
        matches!(self, Self::Handshake { cause, .. } if matches!(**cause, HandshakeError::Revoked))
    }

    /// Whether the connection was lost during the handshake, and no certificate refused.
    #[must_use]
    pub fn is_lost_connection(&self) -> bool {
        let Self::Handshake { cause, .. } = self else {
            return false;
        };
        matches!(**cause, HandshakeError::Io { .. } | HandshakeError::Closed)
    }

    /// The party that has to fix the error.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Issue { cause, .. } => cause.fault(),
            Self::Handshake { role, cause } => cause.fault(*role),
        }
    }
}

/// Why an issuer did not issue a certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The issuer could not be reached; a retry may succeed.
    #[error("the certificate authority {issuer} cannot be reached: {why}")]
    Unavailable {
        /// Which issuer, for example its directory or address.
        issuer: String,
        /// The cause.
        why: String,
    },
    /// The issuer refused the request.
    #[error("the certificate authority {issuer} refused the request: {why}")]
    Refused {
        /// Which issuer.
        issuer: String,
        /// The issuer's answer.
        why: String,
    },
    /// The issued certificate cannot be used for the identity.
    #[error("the issued certificate cannot be used: {why}")]
    Unusable {
        /// The problem.
        why: String,
    },
    /// The task that requests the certificate ended first: the store no longer serves the identity,
    /// or the process is shutting down.
    #[error(
        "the certificate request was cancelled: no pod of this node has the identity any more, or the proxy is shutting down"
    )]
    Cancelled,
}

impl IssueError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "ca_unavailable",
            Self::Refused { .. } => "ca_refused",
            Self::Unusable { .. } => "ca_unusable",
            Self::Cancelled => "ca_given_up",
        }
    }

    /// The party that has to fix the error.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Unavailable { .. } | Self::Refused { .. } | Self::Unusable { .. } => Fault::Mesh,
            Self::Cancelled => Fault::Us,
        }
    }
}

/// The likely cause of an alert with which a peer refuses us.
fn explain(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA => "it does not trust our root certificate (another mesh?)",
        AlertDescription::CertificateExpired => {
            "our certificate has expired, or the peer's clock is wrong"
        }
        AlertDescription::CertificateRequired => "it requires a client certificate",
        AlertDescription::AccessDenied | AlertDescription::CertificateUnknown => {
            "it does not accept our identity (another trust domain, or not an identity that it expects)"
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::DecryptError => "it does not accept our certificate",
        AlertDescription::CertificateRevoked => {
            "our certificate, or an intermediate certificate of our chain, is on its revocation list"
        }
        AlertDescription::NoApplicationProtocol => "it does not accept ALPN \"h2\" on this port",
        AlertDescription::ProtocolVersion
        | AlertDescription::HandshakeFailure
        | AlertDescription::InsufficientSecurity => {
            "no TLS version or cipher suite in common (this proxy requires TLS 1.3)"
        }
        _ => "see the peer's log",
    }
}

//! Why a handshake failed, and why the names in a certificate were not accepted.

use std::io;

use rustls::AlertDescription;

use super::{Fault, Role, explain};
use mesh::Identity;

/// Why the names in a certificate were not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityRefusal {
    /// The certificate could not be read.
    #[error("its certificate cannot be parsed")]
    Unreadable,
    /// The certificate has no URI name.
    #[error("its certificate has no SPIFFE URI name; it was not issued for a mesh workload")]
    Missing,
    /// The SPIFFE X.509-SVID specification (section 2) allows one URI name.
    #[error("its certificate has {count} URI names, exactly one is allowed")]
    Several {
        /// The number of URI names.
        count: usize,
    },
    /// The URI is not a workload identity.
    #[error("its certificate names {found:?}, which is not a workload's SPIFFE identity")]
    Foreign {
        /// The URI, at most 256 characters of it.
        found: String,
    },
    /// The peer has an identity other than the ones that the caller expects.
    #[error(
        "it is {found}, expected {expected}: the address may have been given to another workload, \
         or the mesh's state is stale"
    )]
    Unexpected {
        /// The peer's identity.
        found: Identity,
        /// The identities that the caller expects.
        expected: String,
    },
    /// The identity is of another trust domain.
    #[error("it is {found}, not of our trust domain {trust_domain}")]
    TrustDomain {
        /// The peer's identity.
        found: Identity,
        /// Our trust domain.
        trust_domain: String,
    },
}

impl IdentityRefusal {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unreadable => "bad_certificate",
            Self::Missing => "no_identity",
            Self::Several { .. } => "several_identities",
            Self::Foreign { .. } => "foreign_identity",
            Self::Unexpected { .. } => "wrong_identity",
            Self::TrustDomain { .. } => "wrong_trust_domain",
        }
    }
}

/// Why a handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// The connection broke.
    #[error("the connection broke: {source}")]
    Io {
        /// The error of the socket.
        source: io::Error,
    },
    /// The peer closed before the handshake was complete.
    #[error("it closed the connection before the handshake was complete")]
    Closed,
    /// The first bytes are not TLS.
    #[error("it does not speak TLS (first byte {first:#04x}): plaintext sent to the tunnel port?")]
    NotTls {
        /// The first byte it sent.
        first: u8,
    },
    /// More handshake bytes than any honest peer sends.
    #[error("it sent more than {limit} bytes of handshake")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The client has no certificate.
    #[error("it presented no certificate: not a mesh workload?")]
    NoCertificate,
    /// The certificate does not chain to our roots.
    #[error(
        "its certificate is signed by an unknown authority: another mesh, or a root was replaced"
    )]
    UnknownIssuer,
    /// The certificate has expired, or is not valid yet.
    #[error("its certificate is not valid now ({why}): is its renewal stuck, or a clock wrong?")]
    NotValidNow {
        /// The limits of its validity.
        why: String,
    },
    /// A certificate of the peer's chain is on a revocation list.
    #[error("its certificate, or one of those above it, is revoked")]
    Revoked,
    /// The certificate does not allow this side of TLS.
    #[error("its certificate is not for this use ({why})")]
    WrongPurpose {
        /// The missing use.
        why: String,
    },
    /// The certificate, or the proof that the peer owns its key, is invalid.
    #[error("its certificate is not acceptable: {why}")]
    BadCertificate {
        /// The problem.
        why: String,
    },
    /// The certificate is valid but names the wrong workload.
    #[error("{source}")]
    Identity {
        /// The problem with the name.
        source: IdentityRefusal,
    },
    /// The peer did not agree to ALPN `h2`.
    #[error("it does not agree to ALPN \"h2\": not an HBONE endpoint?")]
    NoHbone,
    /// The two sides have no version, cipher or group in common.
    #[error("it is not compatible: {why} (TLS 1.3 is required)")]
    Incompatible {
        /// The missing feature.
        why: String,
    },
    /// The peer refused us.
    #[error("it refused with the alert {alert:?}: {}", explain(*alert))]
    Refused {
        /// The alert it sent.
        alert: AlertDescription,
    },
    /// The peer violated the protocol.
    #[error("it broke the protocol: {why}")]
    Misbehaved {
        /// The violation.
        why: String,
    },
    /// An internal operation failed unexpectedly.
    #[error("internal: {why}")]
    Internal {
        /// The operation and its error.
        why: String,
    },
}

impl HandshakeError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Io { .. } => "io",
            Self::Closed => "closed",
            Self::NotTls { .. } => "not_tls",
            Self::TooLarge { .. } => "too_large",
            Self::NoCertificate => "no_certificate",
            Self::UnknownIssuer => "unknown_issuer",
            Self::NotValidNow { .. } => "not_valid_now",
            Self::Revoked => "cert_revoked",
            Self::WrongPurpose { .. } => "wrong_purpose",
            Self::BadCertificate { .. } => "bad_certificate",
            Self::Identity { source } => source.reason(),
            Self::NoHbone => "no_alpn",
            Self::Incompatible { .. } => "incompatible",
            Self::Refused { .. } => "refused_by_peer",
            Self::Misbehaved { .. } => "misbehaved",
            Self::Internal { .. } => "internal",
        }
    }

    /// The party that has to fix the error, seen from the given end.
    #[must_use]
    pub const fn fault(&self, role: Role) -> Fault {
        match self {
            Self::Internal { .. } => Fault::Us,
            Self::UnknownIssuer => Fault::Mesh,
            _ => role.fault(),
        }
    }
}

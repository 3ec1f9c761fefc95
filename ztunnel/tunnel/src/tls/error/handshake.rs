//! Errors of handshakes, and of the identity in a peer's certificate.

use std::io;

use rustls::AlertDescription;

use super::{Fault, Role, explain};
use mesh::Identity;

/// Why the identity in a certificate was not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityRefusal {
    /// The certificate could not be read.
    #[error("its certificate cannot be parsed")]
    Unreadable,
    /// The certificate has no URI name.
    #[error("its certificate has no SPIFFE URI: it was not issued for a mesh workload")]
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
        "it is {found}, expected {expected}: another workload may have the address now, or the \
         mesh configuration is outdated"
    )]
    Unexpected {
        /// The peer's identity.
        found: Identity,
        /// The identities that the caller expects.
        expected: String,
    },
    /// The identity is of another trust domain.
    #[error("it is {found}, expected an identity of the trust domain {trust_domain}")]
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
    /// The socket returned an error.
    #[error("the connection failed: {source}")]
    Io {
        /// The error of the socket.
        source: io::Error,
    },
    /// The peer closed before the handshake was complete.
    #[error("it closed the connection before the handshake was complete")]
    Closed,
    /// The first bytes are not TLS.
    #[error("it sent no TLS record (first byte {first:#04x}): plaintext on the tunnel port?")]
    NotTls {
        /// The first byte it sent.
        first: u8,
    },
    /// The handshake is larger than the limit.
    #[error("its handshake is larger than {limit} bytes")]
    TooLarge {
        /// The limit in bytes.
        limit: usize,
    },
    /// The client has no certificate.
    #[error("it presented no client certificate: not a mesh workload?")]
    NoCertificate,
    /// The certificate does not chain to our roots.
    #[error(
        "its certificate is not signed by a trusted root: another mesh, or a root rotation that is not complete"
    )]
    UnknownIssuer,
    /// The certificate has expired, or is not valid yet.
    #[error("its certificate is not valid now ({why}): check its renewal and the clocks")]
    NotValidNow {
        /// The limits of its validity.
        why: String,
    },
    /// A certificate of the peer's chain is on a revocation list.
    #[error("its certificate, or an intermediate certificate of its chain, is revoked")]
    Revoked,
    /// The certificate's extended key usage does not allow this role.
    #[error("its certificate does not allow this use ({why})")]
    WrongPurpose {
        /// The missing usage.
        why: String,
    },
    /// The certificate, or the proof that the peer owns its key, is invalid.
    #[error("its certificate is invalid: {why}")]
    BadCertificate {
        /// The problem.
        why: String,
    },
    /// The certificate is valid, but its identity is not accepted.
    #[error("{source}")]
    Identity {
        /// The cause.
        source: IdentityRefusal,
    },
    /// The peer did not agree to ALPN `h2`.
    #[error("it did not negotiate ALPN \"h2\": not an HBONE endpoint?")]
    NoAlpn,
    /// The two sides have no version, cipher or group in common.
    #[error("it is not compatible: {why} (TLS 1.3 is required)")]
    Incompatible {
        /// The missing feature.
        why: String,
    },
    /// The peer ended the handshake with an alert.
    #[error("it refused with the alert {alert:?}: {}", explain(*alert))]
    Rejected {
        /// The alert it sent.
        alert: AlertDescription,
    },
    /// The peer violated the protocol.
    #[error("it violated the TLS protocol: {why}")]
    ProtocolViolation {
        /// The violation.
        why: String,
    },
    /// An operation of this proxy failed unexpectedly.
    #[error("internal error: {why}")]
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
            Self::NoAlpn => "no_alpn",
            Self::Incompatible { .. } => "incompatible",
            Self::Rejected { .. } => "refused_by_peer",
            Self::ProtocolViolation { .. } => "misbehaved",
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

//! Why a handshake failed, and why a certificate's names were not accepted.

use std::io;

use rustls::AlertDescription;

use super::{Fault, Role, explain};
use mesh::Identity;

/// Why a certificate's names were not accepted.
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
        /// How many there are.
        count: usize,
    },
    /// The URI is not a workload identity.
    #[error("its certificate names {found:?}, which is not a workload's SPIFFE identity")]
    Foreign {
        /// The URI, at most 256 characters of it.
        found: String,
    },
    /// It is somebody else than the caller wanted to reach.
    #[error(
        "it is {found}, expected {expected}: the address may have been given to another workload, \
         or the mesh's state is stale"
    )]
    Unexpected {
        /// Who it is.
        found: Identity,
        /// Whom the caller accepts.
        expected: String,
    },
    /// A workload of another trust domain.
    #[error("it is {found}, not of our trust domain {trust_domain}")]
    TrustDomain {
        /// Who it is.
        found: Identity,
        /// Ours.
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
        /// What the socket said.
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
    /// The certificate's time is over, or has not come.
    #[error("its certificate is not valid now ({why}): is its renewal stuck, or a clock wrong?")]
    NotValidNow {
        /// The limits of its validity.
        why: String,
    },
    /// A certificate of the peer's chain is on a revocation list.
    #[error("its certificate, or one of those above it, is revoked")]
    Revoked,
    /// The certificate must not be used for this side of TLS.
    #[error("its certificate is not for this use ({why})")]
    WrongPurpose {
        /// Which use is missing.
        why: String,
    },
    /// The certificate, or the proof that the peer owns it, is broken.
    #[error("its certificate is not acceptable: {why}")]
    BadCertificate {
        /// What is wrong with it.
        why: String,
    },
    /// The certificate is good but names the wrong workload.
    #[error("{source}")]
    Identity {
        /// What is wrong with the name.
        source: IdentityRefusal,
    },
    /// No ALPN `h2`.
    #[error("it does not agree to ALPN \"h2\": not an HBONE endpoint?")]
    NoHbone,
    /// The two sides have no version, cipher or group in common.
    #[error("it is not compatible: {why} (TLS 1.3 is required)")]
    Incompatible {
        /// What is missing.
        why: String,
    },
    /// The peer refused us.
    #[error("it refused with the alert {alert:?}: {}", explain(*alert))]
    Refused {
        /// The alert it sent.
        alert: AlertDescription,
    },
    /// The peer broke the protocol.
    #[error("it broke the protocol: {why}")]
    Misbehaved {
        /// How.
        why: String,
    },
    /// Something that should not fail here did.
    #[error("internal: {why}")]
    Internal {
        /// What.
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

    /// Who has to act, seen from the given end.
    #[must_use]
    pub const fn fault(&self, role: Role) -> Fault {
        match self {
            Self::Internal { .. } => Fault::Us,
            Self::UnknownIssuer => Fault::Mesh,
            _ => role.fault(),
        }
    }
}

//! What goes wrong with certificates, handshakes and records, one enum a stage. Each error has a
//! `reason()` from a closed set (metric label, log field) and a `fault()`; its text names the
//! likely cause, because it is all an operator will see.

use std::io;
use std::sync::Arc;

use rustls::AlertDescription;

use crate::mesh::Identity;

/// Who has to act to make an error go away.
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
    /// It connected.
    Client,
    /// It accepted.
    Server,
}

impl Role {
    /// The peer's name in texts.
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

/// Why there is no TLS session.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No valid certificate for the identity that was to be used.
    #[error("no certificate for {identity}: {cause}")]
    Issue {
        /// The identity that was asked for.
        identity: Identity,
        /// What the issuer said.
        cause: Arc<IssueError>,
    },
    /// The handshake failed.
    #[error("TLS handshake with the {} failed: {cause}", role.peer())]
    Handshake {
        /// Which end we were.
        role: Role,
        /// What went wrong.
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

    /// Who has to act.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Issue { cause, .. } => cause.fault(),
            Self::Handshake { role, cause } => cause.fault(*role),
        }
    }
}

/// Why an issuer did not give a certificate.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// The issuer could not be asked; asking again may help.
    #[error("the certificate authority {issuer} cannot be reached: {why}")]
    Unavailable {
        /// Which issuer, for example its directory or address.
        issuer: String,
        /// What happened.
        why: String,
    },
    /// The issuer said no.
    #[error("the certificate authority {issuer} refused: {why}")]
    Refused {
        /// Which issuer.
        issuer: String,
        /// What it said.
        why: String,
    },
    /// The issuer answered with something that cannot be used for the identity.
    #[error("the issued certificate cannot be used: {why}")]
    Unusable {
        /// What is wrong with it.
        why: String,
    },
    /// The issuing task ended without an answer: the store was asked to forget the identity, or
    /// the process is shutting down.
    #[error(
        "issuing was given up: the identity is no longer served here, or the proxy is stopping"
    )]
    GivenUp,
}

impl IssueError {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Unavailable { .. } => "ca_unavailable",
            Self::Refused { .. } => "ca_refused",
            Self::Unusable { .. } => "ca_unusable",
            Self::GivenUp => "ca_given_up",
        }
    }

    /// Who has to act.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Unavailable { .. } | Self::Refused { .. } | Self::Unusable { .. } => Fault::Mesh,
            Self::GivenUp => Fault::Us,
        }
    }
}

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

/// What went wrong with an established session. Travels inside [`io::Error`], where
/// [`RecordError::of`] finds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The peer ended the session with an alert.
    #[error("the TLS peer aborted with the alert {alert:?}")]
    Alert {
        /// The alert it sent.
        alert: AlertDescription,
    },
    /// The peer refused our certificate. In TLS 1.3 a client learns of it only with its first
    /// read (RFC 8446, section 4.6.2 and appendix E.1).
    #[error("the TLS server refused our certificate with the alert {alert:?}: {}", explain(*alert))]
    Rejected {
        /// The alert it sent.
        alert: AlertDescription,
    },
    /// The connection ended without close_notify: bytes may be missing.
    #[error("the TLS connection was cut: it ended without close_notify")]
    Truncated,
    /// A record's authentication failed.
    #[error("a TLS record was forged or damaged on the way (authentication failed)")]
    Forged,
    /// A record is longer than RFC 8446, section 5.2, allows.
    #[error("a TLS record claims {length} bytes, more than the protocol allows")]
    Overflow {
        /// The length it claims.
        length: usize,
    },
    /// A record or message that has no place here.
    #[error("the TLS peer sent an unexpected {what}")]
    Unexpected {
        /// What it sent.
        what: &'static str,
    },
    /// A message that cannot be parsed.
    #[error("the TLS peer sent a malformed {what}")]
    Malformed {
        /// What it sent.
        what: &'static str,
    },
    /// A stream of records that carry nothing.
    #[error("the TLS peer sent {count} records in a row without data")]
    Fruitless {
        /// How many.
        count: u8,
    },
    /// Key derivation or sealing failed in this process.
    #[error("TLS keys cannot be used: {what}")]
    Keys {
        /// What failed.
        what: &'static str,
    },
    /// A write after shutdown.
    #[error("the TLS stream was shut down for writing")]
    Closed,
}

impl RecordError {
    /// The record error inside an I/O error that a [`Stream`](super::Stream) returned.
    #[must_use]
    pub fn of(error: &io::Error) -> Option<&Self> {
        error.get_ref()?.downcast_ref()
    }

    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Alert { .. } => "alert",
            Self::Rejected { .. } => "refused_by_peer",
            Self::Truncated => "truncated",
            Self::Forged => "forged_record",
            Self::Overflow { .. } => "record_overflow",
            Self::Unexpected { .. } => "unexpected_message",
            Self::Malformed { .. } => "malformed_message",
            Self::Fruitless { .. } => "fruitless_records",
            Self::Keys { .. } => "keys",
            Self::Closed => "closed",
        }
    }

    /// Who has to act, seen from the given end.
    #[must_use]
    pub const fn fault(&self, role: Role) -> Fault {
        match self {
            Self::Keys { .. } | Self::Closed => Fault::Us,
            _ => role.fault(),
        }
    }

    /// The alert to send for this error (RFC 8446, section 6.2); none when the peer is gone.
    pub(super) const fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Alert { .. } | Self::Rejected { .. } | Self::Truncated | Self::Closed => None,
            Self::Forged => Some(AlertDescription::BadRecordMac),
            Self::Overflow { .. } => Some(AlertDescription::RecordOverflow),
            Self::Unexpected { .. } | Self::Fruitless { .. } => {
                Some(AlertDescription::UnexpectedMessage)
            }
            Self::Malformed { .. } => Some(AlertDescription::DecodeError),
            Self::Keys { .. } => Some(AlertDescription::InternalError),
        }
    }
}

impl From<RecordError> for io::Error {
    fn from(error: RecordError) -> Self {
        let kind = match error {
            RecordError::Truncated => io::ErrorKind::UnexpectedEof,
            RecordError::Alert { .. } => io::ErrorKind::ConnectionAborted,
            RecordError::Rejected { .. } => io::ErrorKind::PermissionDenied,
            RecordError::Closed => io::ErrorKind::BrokenPipe,
            RecordError::Keys { .. } => io::ErrorKind::Other,
            RecordError::Forged
            | RecordError::Overflow { .. }
            | RecordError::Unexpected { .. }
            | RecordError::Malformed { .. }
            | RecordError::Fruitless { .. } => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

/// The likely cause of an alert that refuses us.
fn explain(alert: AlertDescription) -> &'static str {
    match alert {
        AlertDescription::UnknownCA => "it does not know our root certificate (another mesh?)",
        AlertDescription::CertificateExpired => "our certificate ran out, or its clock is wrong",
        AlertDescription::CertificateRequired => "it wants a certificate and got none",
        AlertDescription::AccessDenied | AlertDescription::CertificateUnknown => {
            "it does not accept our identity (another trust domain, or not whom it expects)"
        }
        AlertDescription::BadCertificate
        | AlertDescription::UnsupportedCertificate
        | AlertDescription::CertificateRevoked
        | AlertDescription::DecryptError => "it does not accept our certificate",
        AlertDescription::NoApplicationProtocol => "it does not speak HTTP/2 on this port",
        AlertDescription::ProtocolVersion
        | AlertDescription::HandshakeFailure
        | AlertDescription::InsufficientSecurity => "no version or cipher in common (TLS 1.3 only)",
        _ => "see the peer's log",
    }
}

//! Errors in the records of an established session.

use std::io;

use rustls::AlertDescription;

use super::{Fault, Role, explain};

/// An error of an established session. It travels inside [`io::Error`], where [`RecordError::of`]
/// finds it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// The peer ended the session with an alert.
    #[error("the TLS peer ended the session with the alert {alert:?}")]
    Alert {
        /// The alert it sent.
        alert: AlertDescription,
    },
    /// The peer refused our certificate. In TLS 1.3 a client gets this alert only with its first
    /// read (RFC 8446, section 4.6.2 and appendix E.1).
    #[error("the TLS server refused our certificate with the alert {alert:?}: {}", explain(*alert))]
    Rejected {
        /// The alert it sent.
        alert: AlertDescription,
    },
    /// The connection ended without close_notify: bytes may be missing.
    #[error("the TLS connection was truncated: it ended without close_notify")]
    Truncated,
    /// A record's authentication failed.
    #[error("the authentication of a TLS record failed: it was forged or damaged")]
    Forged,
    /// A record is longer than RFC 8446, section 5.2, allows.
    #[error("a TLS record has a length of {length} bytes, more than the protocol allows")]
    Overflow {
        /// The length in its header.
        length: usize,
    },
    /// A record or message that is not allowed at this point.
    #[error("the TLS peer sent an unexpected {what}")]
    Unexpected {
        /// The record or message.
        what: &'static str,
    },
    /// A message that cannot be parsed.
    #[error("the TLS peer sent a malformed {what}")]
    Malformed {
        /// The record or message.
        what: &'static str,
    },
    /// Too many records in a row without data.
    #[error("the TLS peer sent {count} records in a row without data")]
    NoData {
        /// The number of records.
        count: u8,
    },
    /// Key derivation or sealing failed in this process.
    #[error("TLS keys cannot be used: {what}")]
    Keys {
        /// The operation that failed.
        what: &'static str,
    },
    /// A write after shutdown.
    #[error("the TLS stream was shut down for writing")]
    Closed,
}

impl RecordError {
    /// The record error inside an I/O error that a [`Stream`](crate::tls::Stream) returned.
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
            Self::NoData { .. } => "fruitless_records",
            Self::Keys { .. } => "keys",
            Self::Closed => "closed",
        }
    }

    /// The party that has to fix the error, seen from the given end.
    #[must_use]
    pub const fn fault(&self, role: Role) -> Fault {
        match self {
            Self::Keys { .. } | Self::Closed => Fault::Us,
            _ => role.fault(),
        }
    }

    /// The alert to send for this error (RFC 8446, section 6.2); none when the peer has ended the
    /// session.
    pub(in crate::tls) const fn alert(&self) -> Option<AlertDescription> {
        match self {
            Self::Alert { .. } | Self::Rejected { .. } | Self::Truncated | Self::Closed => None,
            Self::Forged => Some(AlertDescription::BadRecordMac),
            Self::Overflow { .. } => Some(AlertDescription::RecordOverflow),
            Self::Unexpected { .. } | Self::NoData { .. } => {
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
            | RecordError::NoData { .. } => io::ErrorKind::InvalidData,
        };
        Self::new(kind, error)
    }
}

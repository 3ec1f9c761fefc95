//! The errors of HBONE connections and tunnels, one enum for each stage.
//!
//! `node::proxy` turns `reason()` into a metric label and a log field, and `fault()` into a
//! response flag. Messages name the likely cause, because they appear in access logs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

/// The side that caused a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The side that opens the tunnel: the client of an accepted connection.
    Downstream,
    /// The side that we dialled: a proxy or waypoint.
    Upstream,
    /// This proxy.
    Us,
}

/// Why a dial failed. Each request that waited for the dial gets a clone.
#[derive(Debug, thiserror::Error)]
pub enum DialFailure<E> {
    /// The caller's dial (TCP and TLS) failed.
    #[error("{error}")]
    Dial {
        /// The error of the dial.
        error: Arc<E>,
    },
    /// The caller's dial took too long.
    #[error(
        "no connection to the peer within {after:?}: check that its port 15008 is reachable and that an HBONE proxy listens there"
    )]
    DialTimeout {
        /// The limit it exceeded.
        after: Duration,
    },
    /// The HTTP/2 preface could not be written.
    #[error(
        "the peer closed the connection during the HTTP/2 handshake (it may have refused our certificate): {error}"
    )]
    Handshake {
        /// The HTTP/2 error.
        error: Arc<h2::Error>,
    },
    /// The task that dialled was dropped: its thread is shutting down.
    #[error("the dial was cancelled: this proxy is shutting down")]
    Abandoned,
}

// Not derived, because the derive would require `E: Clone`.
impl<E> Clone for DialFailure<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Dial { error } => Self::Dial {
                error: Arc::clone(error),
            },
            Self::DialTimeout { after } => Self::DialTimeout { after: *after },
            Self::Handshake { error } => Self::Handshake {
                error: Arc::clone(error),
            },
            Self::Abandoned => Self::Abandoned,
        }
    }
}

/// How a connection was lost while a CONNECT was waiting for its response.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LostConnection {
    /// The peer had sent GOAWAY and did not process the stream.
    GoingAway,
    /// The peer refused the stream without processing it (REFUSED_STREAM).
    RefusedStream,
    /// The byte stream ended: closed, reset, or silent for longer than the keepalive allows.
    Closed,
    /// This proxy ended the connection: the peer's certificate was revoked.
    Revoked,
}

impl fmt::Display for LostConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GoingAway => "the peer is shutting down (GOAWAY)",
            Self::RefusedStream => "the peer refused the stream (REFUSED_STREAM)",
            Self::Closed => "the connection closed (the peer stopped, or refused our certificate)",
            Self::Revoked => "this proxy closed the connection: the peer's certificate was revoked",
        })
    }
}

/// Why a tunnel could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError<E> {
    /// No connection to the peer.
    #[error("{failure}")]
    Connection {
        /// The cause.
        failure: DialFailure<E>,
    },
    /// The connection was lost before the response, and a retry was not possible or failed the same
    /// way.
    #[error("no response to CONNECT {authority}: {lost}: {cause}")]
    Lost {
        /// The requested destination.
        authority: String,
        /// How the connection was lost.
        lost: LostConnection,
        /// The error of HTTP/2 or the byte stream, for example a TLS alert.
        cause: String,
    },
    /// The peer reset the stream before a response.
    #[error("the peer reset CONNECT {authority}: {reason}")]
    Reset {
        /// The requested destination.
        authority: String,
        /// The code of its RST_STREAM.
        reason: h2::Reason,
    },
    /// The response did not arrive in time.
    #[error(
        "no response to CONNECT {authority} within {after:?} (the peer may be waiting for its application)"
    )]
    Timeout {
        /// The requested destination.
        authority: String,
        /// The limit it exceeded.
        after: Duration,
    },
    /// The peer answered with a status other than 200.
    #[error("the peer refused CONNECT {authority} with {status}: {}", likely_cause(*.status))]
    Refused {
        /// The requested destination.
        authority: String,
        /// The status of the response.
        status: StatusCode,
    },
    /// HTTP/2 refused to send the request.
    #[error("CONNECT {authority} could not be sent: {error}")]
    Unsendable {
        /// The requested destination.
        authority: String,
        /// The HTTP/2 error.
        error: h2::Error,
    },
}

fn likely_cause(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "the request is malformed, or the peer does not serve this destination",
        401 | 403 => "an authorization policy of the peer denies it",
        404 | 405 => "the peer is not an HBONE proxy",
        431 => "the request headers exceed the peer's limit",
        502..=504 => "the application cannot be reached (does it listen on this port?)",
        _ => "HBONE gives this status no meaning",
    }
}

impl<E> OpenError<E> {
    /// The closed set of names for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Connection { failure } => match failure {
                DialFailure::Dial { .. } => "dial",
                DialFailure::DialTimeout { .. } => "dial_timeout",
                DialFailure::Handshake { .. } => "h2_handshake",
                DialFailure::Abandoned => "shutdown",
            },
            Self::Lost { .. } => "connection_lost",
            Self::Reset { .. } => "stream_reset",
            Self::Timeout { .. } => "response_timeout",
            Self::Refused { .. } => "refused",
            Self::Unsendable { .. } => "unsendable",
        }
    }

    /// The side that caused the failure.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Connection {
                failure: DialFailure::Abandoned,
            }
            | Self::Unsendable { .. } => Fault::Us,
            _ => Fault::Upstream,
        }
    }
}

/// Why an accepted connection ended without an orderly close.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No HTTP/2 preface arrived in time.
    #[error("no HTTP/2 preface within {after:?}")]
    HandshakeTimeout {
        /// The limit it exceeded.
        after: Duration,
    },
    /// The client sent something other than HTTP/2.
    #[error("not an HTTP/2 client (a plain TLS client on the HBONE port?): {error}")]
    Handshake {
        /// The HTTP/2 error.
        error: h2::Error,
    },
    /// Writing to the byte stream failed.
    #[error("cannot write to the connection (the client closed it): {error}")]
    Unwritable {
        /// The error of the byte stream.
        error: std::io::Error,
    },
    /// The client did not answer a PING.
    #[error("the client did not answer PINGs for {after:?}: its node or the network is down")]
    Unresponsive {
        /// How long the client was silent.
        after: Duration,
    },
    /// The client violated HTTP/2 or one of its limits.
    #[error("the client violated HTTP/2: {error}")]
    Protocol {
        /// The HTTP/2 error.
        error: h2::Error,
    },
    /// The byte stream ended while tunnels were open.
    #[error("the connection broke: {error}")]
    Broken {
        /// The error of the byte stream.
        error: h2::Error,
    },
}

impl ServeError {
    /// The closed set of names for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::HandshakeTimeout { .. } => "h2_handshake_timeout",
            Self::Handshake { .. } => "h2_handshake",
            Self::Unwritable { .. } => "unwritable",
            Self::Unresponsive { .. } => "unresponsive",
            Self::Protocol { .. } => "protocol",
            Self::Broken { .. } => "broken",
        }
    }

    /// The side that caused the failure.
    #[must_use]
    pub fn fault(&self) -> Fault {
        Fault::Downstream
    }
}

/// Which end reset a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetBy {
    /// The peer: an RST_STREAM arrived.
    Peer,
    /// This proxy: its own decision, or h2's reaction to a protocol violation.
    Us,
}

impl fmt::Display for ResetBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Peer => "the peer",
            Self::Us => "this proxy",
        })
    }
}

/// Whether a reset with this code is an orderly end of a tunnel. Envoy resets with NO_ERROR after
/// END_STREAM (1.36 to 1.39, and for TCP in 1.40), and with CONNECT_ERROR instead of END_STREAM
/// (for HTTP in 1.40), when its own upstream has closed both directions.
fn is_orderly(reason: h2::Reason) -> bool {
    matches!(reason, h2::Reason::NO_ERROR | h2::Reason::CONNECT_ERROR)
}

/// Why an open tunnel ended before both sides had finished.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The other end or this proxy aborted the tunnel.
    #[error("{by} reset the tunnel with {reason:?} ({reason})")]
    Reset {
        /// The code of the RST_STREAM.
        reason: h2::Reason,
        /// Which end sent it.
        by: ResetBy,
    },
    /// The connection that carried the tunnel was lost.
    #[error("the connection that carried the tunnel was lost: {error}")]
    Connection {
        /// The HTTP/2 error.
        error: h2::Error,
    },
    /// Bytes were sent after `finish`.
    #[error("the sending direction of the tunnel is already closed")]
    Finished,
    /// h2 refused an operation on the stream: a bug of the caller, for example more bytes were
    /// released than received.
    #[error("HTTP/2 refused an operation on the tunnel (a bug of this proxy): {error}")]
    Misuse {
        /// The HTTP/2 error.
        error: h2::Error,
    },
}

impl TunnelError {
    /// The closed set of names for metrics and logs.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Reset { .. } => "reset",
            Self::Connection { .. } => "connection_lost",
            Self::Finished => "finished",
            Self::Misuse { .. } => "misuse",
        }
    }

    /// Whether the peer ended the tunnel in an orderly way: the bytes it sent before are complete,
    /// and it accepts no more.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::Reset { reason, by: ResetBy::Peer } if is_orderly(*reason))
    }

    /// The side that caused the failure. The peer of a tunnel is always called upstream.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Finished
            | Self::Misuse { .. }
            | Self::Reset {
                by: ResetBy::Us, ..
            } => Fault::Us,
            Self::Reset { .. } | Self::Connection { .. } => Fault::Upstream,
        }
    }
}

impl From<h2::Error> for TunnelError {
    fn from(error: h2::Error) -> Self {
        match error.reason() {
            Some(reason) if error.is_reset() => Self::Reset {
                reason,
                by: if error.is_remote() {
                    ResetBy::Peer
                } else {
                    ResetBy::Us
                },
            },
            _ if error.is_io() || error.is_go_away() => Self::Connection { error },
            // h2 reports a reset that it finds while sending as a bare reason.
            Some(reason) => Self::Reset {
                reason,
                by: ResetBy::Peer,
            },
            None => Self::Misuse { error },
        }
    }
}

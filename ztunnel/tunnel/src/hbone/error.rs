//! What can go wrong between two ends of a tunnel, one enum a stage.
//!
//! `path` turns `reason()` into a metric's label and a log's field, `fault()` into a response
//! flag. The texts name the likely cause, because they end up in access logs.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

/// Whose doing a failure was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// The side that asks: the client of an accepted connection.
    Downstream,
    /// The side that is asked: the proxy or waypoint we dialled.
    Upstream,
    /// This proxy.
    Us,
}

/// Why no connection came of a dial. Cloned to every open that waited for it.
#[derive(Debug, thiserror::Error)]
pub enum DialFailure<E> {
    /// The caller's dial (TCP and TLS) failed.
    #[error("{error}")]
    Dial {
        /// What the dial said.
        error: Arc<E>,
    },
    /// The caller's dial took too long.
    #[error(
        "no connection within {after:?} (is the peer's port 15008 reachable, and is it a proxy?)"
    )]
    DialTimeout {
        /// The limit it exceeded.
        after: Duration,
    },
    /// The HTTP/2 preface could not be written.
    #[error(
        "the peer ended the connection during the HTTP/2 handshake (it may have refused our certificate): {error}"
    )]
    Handshake {
        /// What HTTP/2 said.
        error: Arc<h2::Error>,
    },
    /// The task that dialled is gone: its thread is shutting down.
    #[error("the dial was abandoned: this proxy is shutting down")]
    Abandoned,
}

// Not derived, because that would ask for `E: Clone`.
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

/// How a connection was lost under a CONNECT that had no response yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum LostConnection {
    /// The peer had announced that it goes away (GOAWAY) and did not look at the stream.
    GoingAway,
    /// The peer refused the stream without looking at it (REFUSED_STREAM).
    RefusedStream,
    /// The bytes stopped: closed, reset, or silent for longer than the keepalive allows.
    Closed,
    /// We ended it: the peer's certificate was revoked.
    Revoked,
}

impl fmt::Display for LostConnection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::GoingAway => "the peer is shutting down",
            Self::RefusedStream => "the peer takes no more streams",
            Self::Closed => {
                "the connection closed (the peer stopped, or did not accept our certificate)"
            }
            Self::Revoked => "the connection was ended, because the peer's certificate was revoked",
        })
    }
}

/// Why a tunnel could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError<E> {
    /// No connection to the peer.
    #[error("{failure}")]
    Connection {
        /// Why.
        failure: DialFailure<E>,
    },
    /// The connection was lost before the response, and a fresh one too or there was none.
    #[error("no answer to CONNECT {authority}: {lost}: {cause}")]
    Lost {
        /// The destination asked for.
        authority: String,
        /// How.
        lost: LostConnection,
        /// What HTTP/2 or the byte stream said, a TLS alert for example.
        cause: String,
    },
    /// The peer reset the stream instead of answering.
    #[error("the peer reset CONNECT {authority}: {reason}")]
    Reset {
        /// The destination asked for.
        authority: String,
        /// The code of its RST_STREAM.
        reason: h2::Reason,
    },
    /// The peer did not answer in time.
    #[error(
        "no answer to CONNECT {authority} within {after:?} (the peer may be waiting for its application)"
    )]
    Timeout {
        /// The destination asked for.
        authority: String,
        /// The limit it exceeded.
        after: Duration,
    },
    /// The peer answered with something other than 200.
    #[error("the peer refused CONNECT {authority} with {status}: {}", likely_cause(*.status))]
    Refused {
        /// The destination asked for.
        authority: String,
        /// Its answer.
        status: StatusCode,
    },
    /// HTTP/2 would not send the request.
    #[error("CONNECT {authority} could not be sent: {error}")]
    Unsendable {
        /// The destination asked for.
        authority: String,
        /// What HTTP/2 said.
        error: h2::Error,
    },
}

fn likely_cause(status: StatusCode) -> &'static str {
    match status.as_u16() {
        400 => "malformed, or the destination is not a pod behind this peer",
        401 | 403 => "an authorization policy there denies it",
        404 | 405 => "the peer is no HBONE proxy",
        431 => "our headers are too large for it",
        502..=504 => "the application could not be reached (does it listen on this port?)",
        _ => "no cause is known for this code",
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

    /// Whose doing it was.
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

/// Why an accepted connection ended otherwise than by the two sides' agreement.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No HTTP/2 preface in time.
    #[error("no HTTP/2 preface within {after:?}")]
    HandshakeTimeout {
        /// The limit it exceeded.
        after: Duration,
    },
    /// Something other than HTTP/2 came.
    #[error("not an HTTP/2 client (a plain TLS client on the HBONE port?): {error}")]
    Handshake {
        /// What HTTP/2 said.
        error: h2::Error,
    },
    /// The byte stream took no more bytes.
    #[error("the connection could not be written to (the client closed it): {error}")]
    Unwritable {
        /// What the byte stream said.
        error: std::io::Error,
    },
    /// The client did not answer a PING.
    #[error("the client answered no PING for {after:?}: its node or the network is gone")]
    Unresponsive {
        /// The silence.
        after: Duration,
    },
    /// The client broke HTTP/2 or one of its limits.
    #[error("the client violated HTTP/2: {error}")]
    Protocol {
        /// What HTTP/2 said.
        error: h2::Error,
    },
    /// The bytes stopped with tunnels open.
    #[error("the connection broke: {error}")]
    Broken {
        /// What the byte stream said.
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

    /// Whose doing it was.
    #[must_use]
    pub fn fault(&self) -> Fault {
        Fault::Downstream
    }
}

/// Which end of a tunnel has reset it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ResetBy {
    /// The far end: an RST_STREAM came.
    Peer,
    /// This proxy: its own code, or the answer of its HTTP/2 to a violation of the protocol.
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

/// Whether a peer that resets a tunnel with this code ends it in an orderly way. Envoy resets with
/// NO_ERROR after END_STREAM (1.36 to 1.39, and for TCP in 1.40), and with CONNECT_ERROR instead of
/// END_STREAM (for HTTP in 1.40), where its own upstream has closed both directions.
fn is_orderly(reason: h2::Reason) -> bool {
    matches!(reason, h2::Reason::NO_ERROR | h2::Reason::CONNECT_ERROR)
}

/// Why an open tunnel ended before both sides had finished.
#[derive(Debug, thiserror::Error)]
pub enum TunnelError {
    /// The other end aborted the tunnel, or we did.
    #[error("{by} reset the tunnel with {reason:?} ({reason})")]
    Reset {
        /// The code of the RST_STREAM.
        reason: h2::Reason,
        /// Which end sent it.
        by: ResetBy,
    },
    /// The connection that carried the tunnel is gone.
    #[error("the connection under the tunnel is gone: {error}")]
    Connection {
        /// What HTTP/2 said.
        error: h2::Error,
    },
    /// Bytes were sent after `finish`.
    #[error("this end of the tunnel was finished already")]
    Finished,
    /// More was released than was received: a mistake of the caller.
    #[error("the tunnel's end was used out of order: {error}")]
    Misuse {
        /// What HTTP/2 said.
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

    /// Whether the peer has ended the tunnel in an orderly way: what it had sent before is whole,
    /// and it takes nothing more.
    #[must_use]
    pub fn is_orderly(&self) -> bool {
        matches!(self, Self::Reset { reason, by: ResetBy::Peer } if is_orderly(*reason))
    }

    /// Whose doing it was. A tunnel looks the same from both ends, so the far end is upstream.
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
            // A bare reason is how h2 reports a reset it learnt of while sending.
            Some(reason) => Self::Reset {
                reason,
                by: ResetBy::Peer,
            },
            None => Self::Misuse { error },
        }
    }
}

//! The errors of a stream. Each message names the likely cause: an operator sees only the message.

use std::path::PathBuf;
use std::time::Duration;

use tonic::Code;

use mesh::Fault;
use telemetry::XdsTermination;

/// A stream could not be opened, or failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The root certificates cannot be read.
    #[error("the control plane's root certificates in {path} cannot be used: {why}")]
    Root {
        /// The file.
        path: PathBuf,
        /// The problem.
        why: String,
    },
    /// The token cannot be read.
    #[error("the token for the control plane in {path} cannot be used: {why}")]
    Token {
        /// The file.
        path: PathBuf,
        /// The problem, without any part of the token.
        why: String,
    },
    /// The connection failed.
    #[error("the control plane {address} cannot be reached: {why}")]
    Connect {
        /// Its address.
        address: String,
        /// The error, with the likely cause.
        why: String,
    },
    /// The connection attempt timed out.
    #[error("the control plane {address} did not answer within {after:?}")]
    ConnectTimeout {
        /// Its address.
        address: String,
        /// The limit.
        after: Duration,
    },
    /// The control plane refused the stream.
    #[error("the control plane {address} refused the stream: {code:?}: {message}{}", hint(*.code))]
    Refused {
        /// Its address.
        address: String,
        /// The status code.
        code: Code,
        /// Its message.
        message: String,
    },
    /// The stream ended with an error.
    #[error("the stream from the control plane ended: {code:?}: {message}{}", hint(*.code))]
    Ended {
        /// The status code.
        code: Code,
        /// Its message.
        message: String,
    },
    /// The control plane does not read requests.
    #[error("the control plane has not read the requests of this node for {after:?}")]
    Stalled {
        /// The limit.
        after: Duration,
    },
    /// The receiver of the events was dropped.
    #[error("the receiver of mesh changes was dropped")]
    ReceiverDropped,
}

/// The likely cause of a status.
const fn hint(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => {
            " (it does not accept the token: check its expiry and its audience)"
        }
        Code::PermissionDenied => " (this node is not allowed to subscribe)",
        Code::Unimplemented => {
            " (it does not support delta ADS: check that the address is that of a control plane)"
        }
        Code::ResourceExhausted => " (a message is too large, or the control plane is overloaded)",
        _ => "",
    }
}

impl Error {
    /// A short name from a closed set, for metrics and logs.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        match self {
            Self::Root { .. } => "xds_root",
            Self::Token { .. } => "xds_token",
            Self::Connect { .. } => "xds_connect",
            Self::ConnectTimeout { .. } => "xds_connect_timeout",
            Self::Refused { .. } => "xds_refused",
            Self::Ended { .. } => "xds_ended",
            Self::Stalled { .. } => "xds_stalled",
            Self::ReceiverDropped => "xds_abandoned",
        }
    }

    /// The party that has to act.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Root { .. } | Self::Token { .. } | Self::ReceiverDropped => Fault::Us,
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Refused { .. }
            | Self::Ended { .. }
            | Self::Stalled { .. } => Fault::Mesh,
        }
    }

    /// The metric's label for the end of the stream. The end of the connection and a restart of the
    /// control plane are normal.
    pub(super) const fn termination(&self) -> XdsTermination {
        match self {
            Self::Ended { code, .. } => match code {
                Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable => {
                    XdsTermination::Reconnect
                }
                _ => XdsTermination::Error,
            },
            Self::Stalled { .. } | Self::ReceiverDropped => XdsTermination::Error,
            _ => XdsTermination::ConnectionError,
        }
    }
}

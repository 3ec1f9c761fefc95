//! Why there is no stream, or no longer one. Each text names the likely cause, because it is all
//! an operator will see.

use std::path::PathBuf;
use std::time::Duration;

use tonic::Code;

use mesh::Fault;
use telemetry::XdsTermination;

/// Why there is no stream, or no longer one.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The root certificates cannot be read.
    #[error("the control plane's root certificates in {path} cannot be used: {why}")]
    Root {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The token cannot be read.
    #[error("the token for the control plane in {path} cannot be used: {why}")]
    Token {
        /// The file.
        path: PathBuf,
        /// What is wrong; nothing of the token.
        why: String,
    },
    /// No connection.
    #[error("the control plane {address} cannot be reached: {why}")]
    Connect {
        /// Its address.
        address: String,
        /// What happened, with the likely cause.
        why: String,
    },
    /// No connection in time.
    #[error("the control plane {address} did not answer within {after:?}")]
    ConnectTimeout {
        /// Its address.
        address: String,
        /// The limit.
        after: Duration,
    },
    /// The control plane would not open the stream.
    #[error("the control plane {address} refuses: {code:?}: {message}{}", hint(*.code))]
    Refused {
        /// Its address.
        address: String,
        /// The status it gave.
        code: Code,
        /// What it said.
        message: String,
    },
    /// The stream ended otherwise than in order.
    #[error("the stream from the control plane ended: {code:?}: {message}{}", hint(*.code))]
    Ended {
        /// The status it gave.
        code: Code,
        /// What it said.
        message: String,
    },
    /// It sends but does not read.
    #[error("the control plane has not read our answers for {after:?}")]
    Stalled {
        /// The limit.
        after: Duration,
    },
    /// The node has stopped listening.
    #[error("nobody takes the changes of the mesh any more")]
    Abandoned,
}

/// The likely cause of a status.
const fn hint(code: Code) -> &'static str {
    match code {
        Code::Unauthenticated => " (it does not accept the token: expired, or of another audience)",
        Code::PermissionDenied => " (it does not let this node ask)",
        Code::Unimplemented => " (it does not speak delta ADS: is it a control plane?)",
        Code::ResourceExhausted => " (a message is too large, or it is busy)",
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
            Self::Abandoned => "xds_abandoned",
        }
    }

    /// Who has to act.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            Self::Root { .. } | Self::Token { .. } | Self::Abandoned => Fault::Us,
            Self::Connect { .. }
            | Self::ConnectTimeout { .. }
            | Self::Refused { .. }
            | Self::Ended { .. }
            | Self::Stalled { .. } => Fault::Mesh,
        }
    }

    /// How the end is counted. A stream that ends because the connection does, or because the
    /// control plane goes away, is nothing unusual.
    pub(super) const fn termination(&self) -> XdsTermination {
        match self {
            Self::Ended { code, .. } => match code {
                Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable => {
                    XdsTermination::Reconnect
                }
                _ => XdsTermination::Error,
            },
            Self::Stalled { .. } | Self::Abandoned => XdsTermination::Error,
            _ => XdsTermination::ConnectionError,
        }
    }
}

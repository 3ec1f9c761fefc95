//! Why a connection did not leave, and what the metrics call it.

use std::net::SocketAddr;
use std::sync::Arc;

use super::super::demand::NotTold;
use super::super::permit::Denied;
use super::super::report::Failure;
use super::super::resolve::ResolveError;
use super::super::route::RouteError;
use super::super::tunnel::DialError;
use crate::hbone::{DialFailure, OpenError};
use crate::kernel;
use crate::telemetry::ResponseFlag;
use crate::tls;

/// Why a connection did not leave.
#[derive(Debug, thiserror::Error)]
pub(super) enum DepartError {
    /// The kernel programs know nothing about this connection.
    #[error("nobody redirected this connection: {client} connected to the proxy's port itself")]
    NotCaptured {
        /// Who connected.
        client: SocketAddr,
    },
    /// The map of original destinations could not be asked.
    #[error("cannot learn the original destination: {0}")]
    Kernel(#[from] kernel::Error),
    /// The rule that redirected it could not be asked.
    #[error("cannot learn the original destination: {0}")]
    Original(#[source] std::io::Error),
    /// The pod is enrolled, but the mesh no longer knows it.
    #[error("workload {uid} is not in the mesh")]
    UnknownWorkload {
        /// The pod's workload.
        uid: Arc<str>,
    },
    /// The control plane has not said what is there.
    #[error(transparent)]
    NotTold(#[from] NotTold),
    /// No way leads to the destination.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// A backend has a name, and the name no address.
    #[error(transparent)]
    Name(#[from] ResolveError),
    /// One name leads to another, and that to another.
    #[error("too many names to resolve on one way, the last one is {hostname}")]
    TooManyNames {
        /// The last one.
        hostname: Arc<str>,
    },
    /// The policies of a pod of this node refused it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The tunnel could not be opened.
    #[error(transparent)]
    Tunnel(#[from] OpenError<DialError>),
    /// The plain connection could not be opened.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// Where.
        to: SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
}

impl Failure for DepartError {
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::NotCaptured { .. }
            | Self::Kernel(_)
            | Self::Original(_)
            | Self::UnknownWorkload { .. }
            | Self::NotTold(_)
            | Self::Route(_)
            | Self::Name(_)
            | Self::TooManyNames { .. }
            | Self::Connect { .. } => ResponseFlag::Connect,
            Self::Denied(_) => ResponseFlag::Deny,
            Self::Tunnel(error) => tunnel_flag(error),
        }
    }
}

fn tunnel_flag(error: &OpenError<DialError>) -> ResponseFlag {
    let OpenError::Connection { failure } = error else {
        return match error {
            OpenError::Refused { status, .. } if status.as_u16() == 401 => ResponseFlag::Deny,
            OpenError::Refused { .. } => ResponseFlag::Connect,
            _ => ResponseFlag::H2HandshakeFailure,
        };
    };
    match failure {
        DialFailure::Dial { error } => match &**error {
            DialError::Connect { source, .. } if source.kind() == std::io::ErrorKind::TimedOut => {
                ResponseFlag::NetworkPolicy
            }
            DialError::Connect { .. } => ResponseFlag::Connect,
            DialError::Tls(tls::Error::Issue { .. }) => ResponseFlag::IdentityError,
            DialError::Tls(error) | DialError::Beyond { source: error, .. }
                if error.is_revocation() =>
            {
                ResponseFlag::CertRevoked
            }
            DialError::Tls(_) | DialError::Beyond { .. } | DialError::HandshakeTimeout { .. } => {
                ResponseFlag::TlsFailure
            }
        },
        DialFailure::DialTimeout { .. } | DialFailure::Abandoned => ResponseFlag::Connect,
        DialFailure::Handshake { .. } => ResponseFlag::H2HandshakeFailure,
    }
}

//! Errors of inbound connections, their answers to the peer and their metric labels.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::super::inputs::InputError;
use super::super::policy::{Denied, Revoked};
use super::super::report::Failure;
use mesh::inbound::TargetError;
use telemetry::ResponseFlag;
use tunnel::hbone::TunnelError;
use tunnel::tls;

/// Why an inbound connection failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum InboundError {
    /// The pod is enrolled, but the mesh no longer knows it.
    #[error("workload {uid} is not in the mesh")]
    UnknownWorkload {
        /// The pod's workload.
        uid: Arc<str>,
    },
    /// A resource that the authorization needs could not be obtained.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The peer requests a target that is not in this pod.
    #[error(transparent)]
    TunnelTarget(#[from] TargetError),
    /// A policy denied it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// Policy changed while the proxy connected to the application.
    #[error(transparent)]
    Revoked(#[from] Revoked),
    /// The application could not be reached.
    #[error("cannot connect to the application at {destination}: {source}")]
    Application {
        /// The address of the application.
        destination: SocketAddr,
        /// The system's error.
        source: std::io::Error,
    },
    /// The tunnel ended before it was accepted.
    #[error("the tunnel ended while the application was being connected: {0}")]
    Gone(#[from] TunnelError),
}

impl InboundError {
    /// The response status of a CONNECT request (wire facts, "HBONE").
    pub(super) fn status(&self) -> StatusCode {
        match self {
            Self::TunnelTarget(_) => StatusCode::BAD_REQUEST,
            Self::Denied(_) | Self::Revoked(_) => StatusCode::UNAUTHORIZED,
            Self::UnknownWorkload { .. }
            | Self::Input(_)
            | Self::Application { .. }
            | Self::Gone(_) => StatusCode::SERVICE_UNAVAILABLE,
        }
    }
}

impl Failure for InboundError {
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(_) => ResponseFlag::Deny,
            Self::Revoked(revoked) => revoked.flag(),
            Self::UnknownWorkload { .. } | Self::Input(InputError::Wait(_)) => {
                ResponseFlag::IdentityError
            }
            Self::Input(InputError::Discovery(_))
            | Self::TunnelTarget(_)
            | Self::Application { .. }
            | Self::Gone(_) => ResponseFlag::Connect,
        }
    }
}

/// Why a peer cannot open tunnels to the pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// The pod's workload could not be obtained, so the pod has no certificate.
    #[error(transparent)]
    Input(#[from] InputError),
    /// Mutual TLS failed.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The peer did not finish the handshake in time, or does not speak TLS.
    #[error("no TLS handshake within {after:?}")]
    Timeout {
        /// The limit.
        after: Duration,
    },
}

impl Failure for PeerError {
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::Input(InputError::Wait(_)) | Self::Tls(tls::Error::Issue { .. }) => {
                ResponseFlag::IdentityError
            }
            Self::Input(InputError::Discovery(_)) => ResponseFlag::Connect,
            Self::Tls(error) if error.is_revocation() => ResponseFlag::CertRevoked,
            Self::Tls(_) | Self::Timeout { .. } => ResponseFlag::TlsFailure,
        }
    }
}

impl PeerError {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Input(error) => error.reason(),
            Self::Tls(error) => error.reason(),
            Self::Timeout { .. } => "handshake_timeout",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::wait::WaitError;
    use super::*;
    use tls::{HandshakeError, Role};

    #[test]
    fn a_handshake_that_is_refused_is_counted_by_its_cause() {
        let handshake = |cause| {
            let cause = Box::new(cause);
            let role = Role::Server;
            PeerError::Tls(tls::Error::Handshake { role, cause }).flag()
        };
        assert_eq!(
            handshake(HandshakeError::Revoked),
            ResponseFlag::CertRevoked
        );
        assert_eq!(
            handshake(HandshakeError::UnknownIssuer),
            ResponseFlag::TlsFailure
        );
        let after = Duration::from_secs(1);
        assert_eq!(
            PeerError::Timeout { after }.flag(),
            ResponseFlag::TlsFailure
        );
        let uid = "uid".into();
        let unknown = PeerError::Input(WaitError::Leaving { uid }.into());
        assert_eq!(unknown.flag(), ResponseFlag::IdentityError);
    }
}

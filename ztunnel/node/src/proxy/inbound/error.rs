//! Errors of inbound connections, their answers to the peer and their metric labels.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::super::authorized::Revoked;
use super::super::policy::Denied;
use super::super::report::Failure;
use super::super::wait::WaitError;
use crate::discovery::DiscoveryFailed;
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
    /// The pod's workload was not pushed while it waited.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// On-demand discovery failed.
    #[error(transparent)]
    DiscoveryFailed(#[from] DiscoveryFailed),
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
            | Self::Wait(_)
            | Self::DiscoveryFailed(_)
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
            Self::UnknownWorkload { .. } | Self::Wait(_) => ResponseFlag::IdentityError,
            Self::DiscoveryFailed(_)
            | Self::TunnelTarget(_)
            | Self::Application { .. }
            | Self::Gone(_) => ResponseFlag::Connect,
        }
    }
}

/// Why a peer cannot open tunnels to the pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum PeerError {
    /// The pod is enrolled, but the mesh does not know it, so it has no certificate.
    #[error(transparent)]
    Wait(#[from] WaitError),
    /// On-demand discovery of the pod's workload failed.
    #[error(transparent)]
    DiscoveryFailed(#[from] DiscoveryFailed),
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
            Self::Wait(_) | Self::Tls(tls::Error::Issue { .. }) => ResponseFlag::IdentityError,
            Self::DiscoveryFailed(_) => ResponseFlag::Connect,
            Self::Tls(error) if error.is_revocation() => ResponseFlag::CertRevoked,
            Self::Tls(_) | Self::Timeout { .. } => ResponseFlag::TlsFailure,
        }
    }
}

impl PeerError {
    pub(super) fn reason(&self) -> &'static str {
        match self {
            Self::Wait(error) => error.reason(),
            Self::DiscoveryFailed(_) => "not_told",
            Self::Tls(error) => error.reason(),
            Self::Timeout { .. } => "handshake_timeout",
        }
    }
}

#[cfg(test)]
mod tests {
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
        let unknown = PeerError::Wait(WaitError::Leaving { uid });
        assert_eq!(unknown.flag(), ResponseFlag::IdentityError);
    }
}

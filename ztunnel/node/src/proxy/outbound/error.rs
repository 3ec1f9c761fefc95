//! Errors of outbound connections, and their metric labels.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use super::super::far_end::FarEnd;
use super::super::inputs::InputError;
use super::super::policy::Denied;
use super::super::report::Failure;
use super::super::resolve::ResolveError;
use super::super::socks5::message::Reply;
use super::super::tunnel_client::DialError;
use crate::bpf;
use mesh::route::RouteError;
use telemetry::ResponseFlag;
use tunnel::hbone::{DialFailure, LostConnection, OpenError};
use tunnel::tls;

/// Why an outbound connection failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum OutboundError {
    /// The kernel programs do not know this connection.
    #[error(
        "the original destination of this connection is not known: no program or rule of the mesh \
         has redirected it; {client} connected to the proxy's port itself"
    )]
    NotCaptured {
        /// The client's address.
        client: SocketAddr,
    },
    /// The programs have not kept what the application has set on its socket.
    #[error(
        "the mark and the device of the application's socket at {client} are not known: too many \
         connections of sockets with a mark or a device wait to be accepted"
    )]
    UnknownSocket {
        /// The client's address.
        client: SocketAddr,
    },
    /// Looking up the map of original destinations failed.
    #[error("cannot look up the original destination: {0}")]
    Kernel(#[from] bpf::Error),
    /// Looking up the redirection rule's original destination failed.
    #[error("cannot look up the original destination: {0}")]
    Original(#[source] io::Error),
    /// The destination of a SOCKS request is not allowed.
    #[error(
        "SOCKS destination {destination} is not allowed: it is a loopback, unspecified or multicast \
         address, or its port is 0"
    )]
    SocksDestination {
        /// The requested destination.
        destination: SocketAddr,
    },
    /// The pod is enrolled, but the mesh no longer knows it.
    #[error("workload {uid} is not in the mesh")]
    UnknownWorkload {
        /// The pod's workload.
        uid: Arc<str>,
    },
    /// A resource of the mesh that the decision needs could not be obtained.
    #[error(transparent)]
    Input(#[from] InputError),
    /// There is no route to the destination.
    #[error(transparent)]
    Route(#[from] RouteError),
    /// The name of a backend could not be resolved.
    #[error(transparent)]
    Name(#[from] ResolveError),
    /// Resolving the names of one route took too many steps.
    #[error("too many host names to resolve for one route; the last one is {hostname}")]
    TooManyNames {
        /// The last name.
        hostname: Arc<str>,
    },
    /// The policies of a pod of this node deny it.
    #[error(transparent)]
    Denied(#[from] Denied),
    /// The tunnel could not be opened.
    #[error("{}{source}", .far_end.prefix())]
    Tunnel {
        /// The expected far end.
        far_end: FarEnd,
        /// The cause.
        source: OpenError<DialError>,
    },
    /// The plain connection could not be opened.
    #[error("cannot connect to {to}: {source}")]
    Connect {
        /// The destination.
        to: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
}

impl Failure for OutboundError {
    fn flag(&self) -> ResponseFlag {
        match self {
            Self::NotCaptured { .. }
            | Self::UnknownSocket { .. }
            | Self::SocksDestination { .. }
            | Self::Kernel(_)
            | Self::Original(_)
            | Self::UnknownWorkload { .. }
            | Self::Input(_)
            | Self::Route(_)
            | Self::Name(_)
            | Self::TooManyNames { .. }
            | Self::Connect { .. } => ResponseFlag::Connect,
            Self::Denied(_) => ResponseFlag::Deny,
            Self::Tunnel { source, .. } => tunnel_flag(source),
        }
    }
}

impl OutboundError {
    /// The reply to a SOCKS client.
    pub(super) fn reply(&self) -> Reply {
        match self {
            Self::NotCaptured { .. }
            | Self::UnknownSocket { .. }
            | Self::Kernel(_)
            | Self::Original(_)
            | Self::UnknownWorkload { .. }
            | Self::Input(_)
            // The client may retry: the name may exist.
            | Self::Name(ResolveError::Busy { .. }) => Reply::Failed,
            Self::SocksDestination { .. } | Self::Denied(_) => Reply::NotAllowed,
            Self::Route(RouteError::NoSuchPort { .. }) => Reply::Refused,
            Self::Route(_) | Self::Name(_) | Self::TooManyNames { .. } => Reply::HostUnreachable,
            Self::Tunnel { source, .. } => tunnel_reply(source),
            Self::Connect { source, .. } => connect_reply(source),
        }
    }
}

fn connect_reply(error: &io::Error) -> Reply {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Reply::Refused,
        io::ErrorKind::NetworkUnreachable => Reply::NetworkUnreachable,
        io::ErrorKind::HostUnreachable | io::ErrorKind::TimedOut => Reply::HostUnreachable,
        io::ErrorKind::PermissionDenied => Reply::NotAllowed,
        _ => Reply::Failed,
    }
}

/// The far end answers 401 if its policy denies the tunnel and 503 if the application is
/// unreachable (wire facts, "HBONE").
fn tunnel_reply(error: &OpenError<DialError>) -> Reply {
    match error {
        OpenError::Refused { status, .. } => match status.as_u16() {
            401 => Reply::NotAllowed,
            503 => Reply::Refused,
            _ => Reply::Failed,
        },
        OpenError::Timeout { .. } => Reply::HostUnreachable,
        OpenError::Connection {
            failure: DialFailure::Dial { error },
        } => match &**error {
            DialError::Connect { source, .. } => match connect_reply(source) {
                // "Refused" stands only for a refusal by the application itself.
                Reply::Refused => Reply::HostUnreachable,
                other => other,
            },
            _ => Reply::Failed,
        },
        OpenError::Connection {
            failure: DialFailure::DialTimeout { .. },
        } => Reply::HostUnreachable,
        _ => Reply::Failed,
    }
}

fn tunnel_flag(error: &OpenError<DialError>) -> ResponseFlag {
    let OpenError::Connection { failure } = error else {
        return match error {
            OpenError::Refused { status, .. } if status.as_u16() == 401 => ResponseFlag::Deny,
            OpenError::Refused { .. } => ResponseFlag::Connect,
            OpenError::Lost {
                lost: LostConnection::Revoked,
                ..
            } => ResponseFlag::CertRevoked,
            _ => ResponseFlag::H2HandshakeFailure,
        };
    };
    match failure {
        DialFailure::Dial { error } => match &**error {
            DialError::Connect { source, .. } if source.kind() == io::ErrorKind::TimedOut => {
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

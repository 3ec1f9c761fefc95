//! Another attempt for a connection whose far end could not be reached.
//!
//! A pod that leaves the mesh, or the node, closes its ports a moment before its clients hear of it.
//! Nothing of the application has been sent by then, so the connection can be decided again: it goes
//! to another backend of the service, or to the same place by what the mesh says then.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use smallvec::SmallVec;

use super::super::pod_context::PodContext;
use super::super::tunnel_client::DialError;
use super::decide::Decided;
use super::error::OutboundError;
use mesh::Authority;
use mesh::route::{Destinations, HopKind, Route};
use tunnel::hbone::{DialFailure, LostConnection, OpenError};

/// The longest waits for a change of the mesh before an attempt at the same place.
const WAITS: [Duration; 3] = [
    Duration::from_millis(50),
    Duration::from_millis(200),
    Duration::from_millis(750),
];
/// The maximum number of other backends to try.
const MAX_BACKENDS: usize = 3;

/// The failed attempts of one connection.
#[derive(Debug, Default)]
pub(super) struct Retries {
    failed: SmallVec<[SocketAddr; 2]>,
    waits: usize,
}

/// What could not be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unreachable {
    /// The proxy at the far end.
    Proxy,
    /// The application.
    Application,
}

impl Retries {
    /// The backends that could not be reached.
    pub(super) fn failed(&self) -> &[SocketAddr] {
        &self.failed
    }

    /// Whether to decide the connection again after this error. Returns when it is time to.
    /// `client_gone` resolves when the client closes the connection.
    pub(super) async fn again(
        &mut self,
        context: &PodContext,
        decided: &Decided,
        error: &OutboundError,
        client_gone: impl Future<Output = ()>,
    ) -> bool {
        let Some(what) = unreachable(error) else {
            return false;
        };
        let destinations = &decided.routed.destinations;
        if matches!(destinations, Destinations::Outside(_)) {
            return false;
        }
        if let Some(place) = place(&decided.routed.route)
            && !self.failed.contains(&place)
            && self.failed.len() < MAX_BACKENDS
        {
            self.failed.push(place);
            if has_several_backends(destinations) {
                return true;
            }
        }
        // A port on which no application listens is an answer; the far end's proxy is expected to be
        // there.
        if what == Unreachable::Application {
            return false;
        }
        let Some(wait) = WAITS.get(self.waits) else {
            return false;
        };
        self.waits += 1;
        context
            .wait_for_change(&decided.view, *wait, client_gone)
            .await
    }
}

/// The backend that a route leads to; none for the outside, a waypoint and a gateway.
fn place(route: &Route) -> Option<SocketAddr> {
    match route {
        Route::Direct { to, .. } => Some(*to),
        Route::Passthrough { to, workload, .. } => workload.is_some().then_some(*to),
        Route::Tunnel(hop) => match (&hop.kind, &hop.authority) {
            (HopKind::Destination, Authority::Address(to)) => Some(*to),
            _ => None,
        },
    }
}

fn has_several_backends(destinations: &Destinations) -> bool {
    matches!(destinations, Destinations::Service(entry) if entry.endpoints.len() > 1)
}

/// What an error says is not there; none for errors that another attempt would meet again.
fn unreachable(error: &OutboundError) -> Option<Unreachable> {
    match error {
        OutboundError::Connect { source, .. } => {
            is_refusal(source).then_some(Unreachable::Application)
        }
        OutboundError::Tunnel { source, .. } => in_tunnel(source),
        _ => None,
    }
}

fn in_tunnel(error: &OpenError<DialError>) -> Option<Unreachable> {
    let proxy = Some(Unreachable::Proxy);
    match error {
        OpenError::Connection {
            failure: DialFailure::Dial { error },
        } => match &**error {
            DialError::Connect { source, .. } if is_refusal(source) => proxy,
            DialError::Tls(error) if error.is_lost_connection() => proxy,
            _ => None,
        },
        // A connection that closes right after the TLS handshake means, with TLS 1.3, that the far
        // end has refused the certificate.
        OpenError::Lost {
            lost: LostConnection::GoingAway | LostConnection::RefusedStream,
            ..
        } => proxy,
        // The far end's proxy did not reach the application (wire facts, "HBONE").
        OpenError::Refused { status, .. } if status.as_u16() == 503 => {
            Some(Unreachable::Application)
        }
        _ => None,
    }
}

/// Whether the other end has refused or reset the connection, or its host is gone. A timeout is no
/// refusal: the client has waited long enough.
fn is_refusal(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
    };
    matches!(
        error.kind(),
        ConnectionRefused
            | ConnectionReset
            | ConnectionAborted
            | HostUnreachable
            | NetworkUnreachable
    )
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::super::far_end::FarEnd;
    use super::*;

    fn dial(kind: io::ErrorKind) -> OutboundError {
        let connect = DialError::Connect {
            far_end: FarEnd::default(),
            hbone: ([10, 0, 0, 2], 15008).into(),
            source: kind.into(),
        };
        OutboundError::Tunnel {
            far_end: FarEnd::default(),
            source: OpenError::Connection {
                failure: DialFailure::Dial {
                    error: Arc::new(connect),
                },
            },
        }
    }

    fn refused(status: u16) -> OutboundError {
        OutboundError::Tunnel {
            far_end: FarEnd::default(),
            source: OpenError::Refused {
                authority: "10.0.0.2:80".to_owned(),
                status: http::StatusCode::from_u16(status).unwrap(),
            },
        }
    }

    #[test]
    fn a_refusal_before_the_first_byte_is_tried_again_and_a_decision_is_not() {
        use io::ErrorKind::{ConnectionRefused, ConnectionReset, PermissionDenied, TimedOut};
        for kind in [ConnectionRefused, ConnectionReset] {
            assert_eq!(unreachable(&dial(kind)), Some(Unreachable::Proxy), "{kind}");
        }
        for kind in [TimedOut, PermissionDenied] {
            assert_eq!(unreachable(&dial(kind)), None, "{kind}");
        }
        assert_eq!(unreachable(&refused(503)), Some(Unreachable::Application));
        for status in [400, 401, 404] {
            assert_eq!(unreachable(&refused(status)), None, "{status}");
        }
        let plain = OutboundError::Connect {
            to: ([10, 0, 0, 2], 80).into(),
            source: ConnectionRefused.into(),
        };
        assert_eq!(unreachable(&plain), Some(Unreachable::Application));
    }

    #[test]
    fn a_refused_certificate_is_not_tried_again() {
        for lost in [LostConnection::Closed, LostConnection::Revoked] {
            let error = OutboundError::Tunnel {
                far_end: FarEnd::default(),
                source: OpenError::Lost {
                    authority: "10.0.0.2:80".to_owned(),
                    lost,
                    cause: String::new(),
                },
            };
            assert_eq!(unreachable(&error), None);
        }
    }
}

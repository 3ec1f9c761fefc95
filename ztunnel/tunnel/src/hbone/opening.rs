//! A CONNECT on a pooled connection: the request, the response, and whether a failure may be
//! retried.

use std::rc::Rc;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{Response, StatusCode};

use super::client::{Connection, Slot};
use super::config::Config;
use super::error::{LostConnection, OpenError};
use super::request::Connect;
use super::tunnel::Tunnel;

/// Why a CONNECT on a connection failed.
pub(crate) struct Failure<E> {
    pub(crate) error: OpenError<E>,
    pub(crate) retry: Retry,
    /// The connection on which it failed.
    pub(crate) connection: Rc<Connection>,
}

/// Whether the same CONNECT may be sent on another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Retry is safe: the peer did not process the request; or the connection, which had worked
    /// before, was lost before a byte of the tunnel was sent.
    Elsewhere,
    /// A retry would fail again.
    No,
}

/// Opens a tunnel in the given slot. Dropping the future resets the stream and frees the slot.
pub(crate) async fn open<E>(
    slot: Slot,
    connect: &Connect,
    config: &Config,
) -> Result<Tunnel, Failure<E>> {
    let connection = Rc::clone(slot.connection());
    let failed = |(error, retry)| Failure {
        error,
        retry,
        connection: Rc::clone(&connection),
    };
    let (response, send) = send(&connection, connect).map_err(failed)?;
    let after = config.response_timeout;
    let response = match tokio::time::timeout(after, response).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(failed(unanswered(error, connect, &connection))),
        Err(_elapsed) => {
            let authority = connect.authority.to_string();
            return Err(failed((OpenError::Timeout { authority, after }, Retry::No)));
        }
    };
    connection.prove();
    let status = response.status();
    if status != StatusCode::OK {
        let authority = connect.authority.to_string();
        return Err(failed((
            OpenError::Refused { authority, status },
            Retry::No,
        )));
    }
    Ok(tunnel(send, response, slot))
}

fn tunnel(send: SendStream<Bytes>, response: Response<RecvStream>, slot: Slot) -> Tunnel {
    Tunnel::new(send, response.into_body(), Some(slot))
}

/// Queues the request; h2 refuses it when the connection has ended since it was chosen.
fn send<E>(
    connection: &Connection,
    connect: &Connect,
) -> Result<(ResponseFuture, SendStream<Bytes>), (OpenError<E>, Retry)> {
    let authority = || connect.authority.to_string();
    let request = connect.to_http().map_err(|_malformed| {
        // Only a host name that was not made by the parser fails here.
        let error = h2::Error::from(Reason::INTERNAL_ERROR);
        (
            OpenError::Unsendable {
                authority: authority(),
                error,
            },
            Retry::No,
        )
    })?;
    let Some(mut handle) = connection.request_handle() else {
        let lost = if connection.revoked().is_set() {
            LostConnection::Revoked
        } else {
            LostConnection::Closed
        };
        let cause = connection.cause();
        return Err((
            OpenError::Lost {
                authority: authority(),
                lost,
                cause,
            },
            Retry::Elsewhere,
        ));
    };
    handle.send_request(request, false).map_err(|error| {
        // This includes a connection whose stream ids are used up.
        connection.retire();
        let authority = authority();
        let error = match lost(&error) {
            Some(lost) => OpenError::Lost {
                authority,
                lost,
                cause: error.to_string(),
            },
            None => OpenError::Unsendable { authority, error },
        };
        (error, Retry::Elsewhere)
    })
}

/// The stream or its connection ended before a response.
fn unanswered<E>(
    error: h2::Error,
    connect: &Connect,
    connection: &Connection,
) -> (OpenError<E>, Retry) {
    let authority = connect.authority.to_string();
    let lost = match lost(&error) {
        Some(_) if connection.revoked().is_set() => Some(LostConnection::Revoked),
        lost => lost,
    };
    let retry = match lost {
        // A new handshake shows whether the peer has a valid certificate by now.
        Some(
            LostConnection::GoingAway | LostConnection::RefusedStream | LostConnection::Revoked,
        ) => Retry::Elsewhere,
        Some(LostConnection::Closed) if connection.is_proven() => Retry::Elsewhere,
        Some(LostConnection::Closed) | None => Retry::No,
    };
    let error = match (lost, error.reason()) {
        (Some(lost), _) => OpenError::Lost {
            authority,
            lost,
            cause: error.to_string(),
        },
        (None, Some(reason)) => OpenError::Reset { authority, reason },
        (None, None) => OpenError::Unsendable { authority, error },
    };
    (error, retry)
}

/// How the connection was lost; `None` when only the stream was.
fn lost(error: &h2::Error) -> Option<LostConnection> {
    if error.reason() == Some(Reason::REFUSED_STREAM) {
        Some(LostConnection::RefusedStream)
    } else if error.is_go_away() && error.is_remote() {
        Some(LostConnection::GoingAway)
    } else if error.is_go_away() || error.is_io() {
        Some(LostConnection::Closed)
    } else {
        None
    }
}

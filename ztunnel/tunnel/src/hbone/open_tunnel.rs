//! One CONNECT exchange on a connection: the request, the response, and whether a failure may be
//! retried on another connection.

use std::rc::Rc;

use bytes::Bytes;
use h2::client::ResponseFuture;
use h2::{Reason, RecvStream, SendStream};
use http::{Response, StatusCode};

use super::config::Config;
use super::connection::{Connection, StreamSlot};
use super::error::{LostConnection, OpenError};
use super::request::Connect;
use super::tunnel::Tunnel;

/// A failed CONNECT.
pub(crate) struct OpenFailure<E> {
    pub(crate) error: OpenError<E>,
    pub(crate) retry: Retry,
    /// The connection on which it failed.
    pub(crate) connection: Rc<Connection>,
}

/// Whether the same CONNECT may be sent on another connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Retry {
    /// Yes: the peer did not process the request; or the connection, on which the peer had answered
    /// before, was lost before a byte of the tunnel was sent.
    OtherConnection,
    /// No: a retry would fail again.
    Never,
}

/// Opens a tunnel in the given slot. Dropping the future resets the stream and frees the slot.
pub(crate) async fn open_tunnel<E>(
    slot: StreamSlot,
    connect: &Connect,
    config: &Config,
) -> Result<Tunnel, OpenFailure<E>> {
    let connection = Rc::clone(slot.connection());
    let failure = |(error, retry)| OpenFailure {
        error,
        retry,
        connection: Rc::clone(&connection),
    };
    let (response, send) = send(&connection, connect).map_err(failure)?;
    let after = config.response_timeout;
    let response = match tokio::time::timeout(after, response).await {
        Ok(Ok(response)) => response,
        Ok(Err(error)) => return Err(failure(no_response(error, connect, &connection))),
        Err(_elapsed) => {
            let authority = connect.authority.to_string();
            return Err(failure((
                OpenError::Timeout { authority, after },
                Retry::Never,
            )));
        }
    };
    connection.record_response();
    let status = response.status();
    if status != StatusCode::OK {
        let authority = connect.authority.to_string();
        return Err(failure((
            OpenError::Refused { authority, status },
            Retry::Never,
        )));
    }
    Ok(tunnel(send, response, slot))
}

fn tunnel(send: SendStream<Bytes>, response: Response<RecvStream>, slot: StreamSlot) -> Tunnel {
    Tunnel::new(send, response.into_body(), Some(slot))
}

/// Queues the request. Fails if the connection has ended since it was chosen.
fn send<E>(
    connection: &Connection,
    connect: &Connect,
) -> Result<(ResponseFuture, SendStream<Bytes>), (OpenError<E>, Retry)> {
    let authority = || connect.authority.to_string();
    let request = connect.to_http().map_err(|_malformed| {
        // Only a host name that `Authority`'s parser did not check can fail here.
        let error = h2::Error::from(Reason::INTERNAL_ERROR);
        (
            OpenError::Unsendable {
                authority: authority(),
                error,
            },
            Retry::Never,
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
            Retry::OtherConnection,
        ));
    };
    handle.send_request(request, false).map_err(|error| {
        // This includes a connection whose stream ids are used up.
        connection.retire();
        let authority = authority();
        let error = match loss(&error) {
            Some(lost) => OpenError::Lost {
                authority,
                lost,
                cause: error.to_string(),
            },
            None => OpenError::Unsendable { authority, error },
        };
        (error, Retry::OtherConnection)
    })
}

/// The error, and whether to retry, when the stream or its connection ended before a response.
fn no_response<E>(
    error: h2::Error,
    connect: &Connect,
    connection: &Connection,
) -> (OpenError<E>, Retry) {
    let authority = connect.authority.to_string();
    let lost = match loss(&error) {
        Some(_) if connection.revoked().is_set() => Some(LostConnection::Revoked),
        lost => lost,
    };
    let retry = match lost {
        // A new handshake shows whether the peer has a valid certificate now.
        Some(
            LostConnection::GoingAway | LostConnection::RefusedStream | LostConnection::Revoked,
        ) => Retry::OtherConnection,
        Some(LostConnection::Closed) if connection.has_responded() => Retry::OtherConnection,
        Some(LostConnection::Closed) | None => Retry::Never,
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

/// How the connection was lost; `None` if only the stream failed.
fn loss(error: &h2::Error) -> Option<LostConnection> {
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

//! A tunnel inside a tunnel (double HBONE): a gateway between two networks forwards the inner
//! tunnel without reading it.
//!
//! [`Tunnel::into_stream`] converts the outer tunnel into a byte stream for TLS; [`open_unpooled`]
//! opens the inner tunnel on an HTTP/2 connection of its own, which ends with it. The inner
//! connection is not pooled: the gateway chooses a backend once for each outer tunnel, so a
//! shared inner connection would send all tunnels to one backend.

use std::io;
use std::pin::Pin;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Sleep;

use super::config::Config;
use super::connection::{self, Connection, Owner};
use super::error::{DialFailure, LostConnection, OpenError, TunnelError};
use super::open_tunnel::open_tunnel;
use super::request::Connect;
use super::tunnel::Tunnel;

/// The limit of bytes that one write puts into a frame.
const CHUNK: usize = 64 * 1024;

/// A tunnel as a byte stream. Dropping it before both directions have ended resets the tunnel.
#[derive(Debug)]
pub struct TunnelStream {
    tunnel: Tunnel,
    /// The unread bytes of one frame; they occupy the window until they are read.
    unread: Bytes,
    /// How long the peer may take to end its direction after we ended ours.
    end_timeout: Duration,
    closing: Option<Pin<Box<Sleep>>>,
}

impl Tunnel {
    /// Converts the tunnel into a byte stream. Shutting it down waits until the peer has ended its
    /// direction too, at most for `end_timeout`: dropping the tunnel earlier would reset it and
    /// lose bytes in transit.
    #[must_use]
    pub fn into_stream(self, end_timeout: Duration) -> TunnelStream {
        TunnelStream {
            tunnel: self,
            unread: Bytes::new(),
            end_timeout,
            closing: None,
        }
    }
}

impl AsyncRead for TunnelStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.unread.is_empty() {
            match ready!(self.tunnel.recv.poll_data(cx)) {
                Some(data) => self.unread = data.map_err(io::Error::other)?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.unread.len().min(into.remaining());
        into.put_slice(&self.unread[..count]);
        self.unread.advance(count);
        self.tunnel.recv.release(count).map_err(io::Error::other)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for TunnelStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let wanted = bytes.len().min(CHUNK);
        let granted = match ready!(self.tunnel.send.poll_ready(cx, wanted)) {
            Ok(granted) => granted,
            // Only this direction has ended. An error here would end the inner session and lose its
            // unread bytes; the reader gets the error after it has read them.
            Err(TunnelError::Reset { .. } | TunnelError::Connection { .. }) => {
                return Poll::Ready(Ok(bytes.len()));
            }
            Err(error) => return Poll::Ready(Err(io::Error::other(error))),
        };
        let sent = Bytes::copy_from_slice(&bytes[..granted]);
        self.tunnel.send.send(sent).map_err(io::Error::other)?;
        Poll::Ready(Ok(granted))
    }

    /// h2 holds the written bytes, and the driver of its connection flushes them.
    fn poll_flush(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.tunnel.send.finish() {
            // As in `poll_write`.
            Ok(()) | Err(TunnelError::Reset { .. } | TunnelError::Connection { .. }) => {}
            Err(error) => return Poll::Ready(Err(io::Error::other(error))),
        }
        let this = &mut *self;
        // The stream is no longer read. Received bytes are released, so that flow control does not
        // keep the peer from ending its direction.
        loop {
            let unread = std::mem::take(&mut this.unread).len();
            this.tunnel.recv.release(unread).map_err(io::Error::other)?;
            match this.tunnel.recv.poll_data(cx) {
                Poll::Ready(Some(Ok(data))) => this.unread = data,
                // The peer's direction has ended or failed.
                Poll::Ready(Some(Err(_)) | None) => return Poll::Ready(Ok(())),
                Poll::Pending => break,
            }
        }
        let end_timeout = this.end_timeout;
        let closing = this
            .closing
            .get_or_insert_with(|| Box::pin(tokio::time::sleep(end_timeout)));
        closing.as_mut().poll(cx).map(Ok)
    }
}

/// The owner of a connection that is in no pool.
struct NoOwner;

impl Owner for NoOwner {
    fn slot_released(&self) {}
    fn connection_ended(&self, _connection: &Connection) {}
}

/// Opens a tunnel on a connection that carries no other tunnel and ends with it.
///
/// Must run inside a `LocalSet`. Dropping the future ends the connection.
///
/// # Errors
/// When the peer does not speak HTTP/2, or does not answer with 200.
pub async fn open_unpooled<IO, E>(
    io: IO,
    connect: &Connect,
    config: &Config,
) -> Result<Tunnel, OpenError<E>>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let no_owner: Weak<dyn Owner> = Weak::<NoOwner>::new();
    let after = config.handshake_timeout;
    let handshake = connection::handshake(io, config, no_owner);
    let connection = match tokio::time::timeout(after, handshake).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            let error = Arc::new(error);
            return Err(failed(DialFailure::Handshake { error }));
        }
        Err(_elapsed) => return Err(failed(DialFailure::DialTimeout { after })),
    };
    let connection = RetireOnDrop(connection);
    let Some(slot) = connection.0.try_reserve() else {
        return Err(OpenError::Lost {
            authority: connect.authority.to_string(),
            lost: LostConnection::Closed,
            cause: connection.0.cause(),
        });
    };
    open_tunnel(slot, connect, config)
        .await
        .map_err(|failure| failure.error)
}

fn failed<E>(failure: DialFailure<E>) -> OpenError<E> {
    OpenError::Connection { failure }
}

/// Retires the connection after its first tunnel, also if the tunnel cannot be opened.
struct RetireOnDrop(Rc<Connection>);

impl Drop for RetireOnDrop {
    fn drop(&mut self) {
        self.0.retire();
    }
}

//! The accepting side: an HTTP/2 connection on which every stream must be a CONNECT.
//!
//! `node::proxy` calls [`serve`] with the byte stream of an accepted connection, after TLS, and
//! gets a [`Request`] for each well-formed CONNECT. A malformed request is answered here with 400.
//! The future that `serve` returns drives the connection: poll it until it is done; dropping it
//! ends the connection. Other tasks of the same thread send answers and tunnel bytes through it.

use std::future::{pending, poll_fn};
use std::net::IpAddr;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::watch;
use tokio::time::Instant;

use super::baggage::Baggage;
use super::config::Config;
use super::deferred_flush::DeferredFlush;
use super::error::{ServeError, TunnelError};
use super::keepalive::{Activity, Alarm, Watchdog};
use super::request;
use super::trace::TraceParent;
use super::tunnel::Tunnel;
use mesh::Authority;

/// A CONNECT that waits for its response. If it is dropped without one, its stream is reset.
#[derive(Debug)]
pub struct Request {
    /// The requested destination.
    pub authority: Authority,
    /// The original source address as the client reports it; trust it only from a known gateway.
    pub forwarded: Option<IpAddr>,
    /// The name of the dialled service as the client reports it; for telemetry only.
    pub host: Option<String>,
    /// The trace that the tunnel belongs to.
    pub traceparent: Option<TraceParent>,
    /// The client's description of its workload; for telemetry only.
    pub baggage: Baggage,
    respond: SendResponse<Bytes>,
    recv: RecvStream,
}

impl Request {
    /// Answers 200, which opens the tunnel.
    ///
    /// # Errors
    /// When the client has reset the stream, or the connection is gone.
    pub fn accept(mut self) -> Result<Tunnel, TunnelError> {
        let send = self.respond.send_response(http::Response::new(()), false)?;
        Ok(Tunnel::new(send, self.recv, None))
    }

    /// Answers with another status, which ends the stream: 400 for a destination that is not this
    /// pod, 401 when policy denies it, 503 when the application cannot be reached.
    pub fn refuse(mut self, status: StatusCode) {
        answer(&mut self.respond, status);
    }

    /// Waits until the client resets the request, so that work for it can stop. Pending for ever if
    /// the client does not.
    pub async fn cancelled(&mut self) {
        // Any result means that the client no longer waits for the response.
        drop(poll_fn(|cx| self.respond.poll_reset(cx)).await);
    }
}

fn answer(respond: &mut SendResponse<Bytes>, status: StatusCode) {
    let mut response = http::Response::new(());
    *response.status_mut() = status;
    if let Err(error) = respond.send_response(response, true) {
        tracing::debug!(%error, %status, "the client reset the stream before the response");
    }
}

/// Serves one accepted connection until the client or a drain ends it. `on_request` is called for
/// each CONNECT, on this task: it must pass the request to a task of its own and return. When
/// `drain` becomes true, the client gets a GOAWAY and open tunnels may finish; the caller bounds the
/// time for that.
///
/// # Errors
/// When the client does not speak HTTP/2, violates it, or disappears.
pub async fn serve<IO>(
    io: IO,
    config: &Config,
    drain: watch::Receiver<bool>,
    on_request: impl Fn(Request),
) -> Result<(), ServeError>
where
    IO: AsyncRead + AsyncWrite + Unpin + 'static,
{
    let transport = DeferredFlush::new(io);
    let after = config.handshake_timeout;
    let handshake = transport.flushing(config.server().handshake(transport.clone()));
    let mut h2 = match tokio::time::timeout(after, handshake).await {
        Ok(Ok(Ok(h2))) => h2,
        Ok(Ok(Err(error))) => return Err(ServeError::Handshake { error }),
        Ok(Err(error)) => return Err(ServeError::Unwritable { error }),
        Err(_elapsed) => return Err(ServeError::HandshakeTimeout { after }),
    };
    let keepalive = config
        .keepalive
        .and_then(|keepalive| Some((keepalive, h2.ping_pong()?)));
    let mut server = Server {
        watched: WatchedConnection {
            h2,
            transport,
            idle_since: Instant::now(),
        },
        watchdog: Watchdog::new(keepalive, config.server_idle, config.handshake_timeout),
        closing: Closing::No,
        config,
        on_request,
    };
    let mut drained = pin!(drained(drain));
    poll_fn(|cx| server.poll(cx, drained.as_mut())).await
}

/// Waits for the drain to begin. Never resolves if the sender is dropped.
async fn drained(mut drain: watch::Receiver<bool>) {
    if drain.wait_for(|&draining| draining).await.is_err() {
        pending::<()>().await;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Closing {
    No,
    /// GOAWAY was sent.
    Gracefully,
}

struct WatchedConnection<IO> {
    h2: h2::server::Connection<DeferredFlush<IO>, Bytes>,
    transport: DeferredFlush<IO>,
    idle_since: Instant,
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Activity for WatchedConnection<IO> {
    fn take_received(&mut self) -> bool {
        self.transport.take_received()
    }

    fn idle_since(&mut self) -> Option<Instant> {
        if self.h2.has_streams() {
            self.idle_since = Instant::now();
            return None;
        }
        Some(self.idle_since)
    }

    fn has_settings(&self) -> bool {
        true
    }
}

struct Server<'a, IO, F> {
    watched: WatchedConnection<IO>,
    watchdog: Watchdog,
    closing: Closing,
    config: &'a Config,
    on_request: F,
}

impl<IO, F> Server<'_, IO, F>
where
    IO: AsyncRead + AsyncWrite + Unpin,
    F: Fn(Request),
{
    fn poll<D>(
        &mut self,
        cx: &mut Context<'_>,
        mut drained: Pin<&mut D>,
    ) -> Poll<Result<(), ServeError>>
    where
        D: Future<Output = ()>,
    {
        loop {
            while let Poll::Ready(accepted) = self.watched.h2.poll_accept(cx) {
                match accepted {
                    Some(Ok((request, respond))) => self.handle_request(request, respond),
                    Some(Err(error)) => return Poll::Ready(self.connection_error(error)),
                    None => return Poll::Ready(Ok(())),
                }
            }
            if let Poll::Ready(Err(error)) = self.watched.transport.poll_flush_now(cx) {
                return Poll::Ready(match self.closing {
                    Closing::No => Err(ServeError::Unwritable { error }),
                    Closing::Gracefully => Ok(()),
                });
            }
            let alarm = self.watchdog.poll(cx, &mut self.watched);
            match (alarm, self.closing) {
                (Poll::Ready(Alarm::Dead(after)), _) => {
                    return Poll::Ready(Err(ServeError::Unresponsive { after }));
                }
                // The client kept an unused connection open after GOAWAY.
                (Poll::Ready(Alarm::Idle), Closing::Gracefully) => return Poll::Ready(Ok(())),
                (Poll::Ready(Alarm::Idle), Closing::No) => self.close(),
                (Poll::Pending, Closing::No) if drained.as_mut().poll(cx).is_ready() => {
                    self.close()
                }
                (Poll::Pending, _) => return Poll::Pending,
            }
        }
    }

    /// Sends GOAWAY. Once no stream is open, the client must close within the handshake timeout.
    fn close(&mut self) {
        self.closing = Closing::Gracefully;
        self.watched.idle_since = Instant::now();
        self.watched.h2.graceful_shutdown();
        self.watchdog
            .shorten_idle_limit(self.config.handshake_timeout);
    }

    fn handle_request(
        &mut self,
        request: http::Request<RecvStream>,
        mut respond: SendResponse<Bytes>,
    ) {
        self.watched.idle_since = Instant::now();
        let (head, recv) = request.into_parts();
        match request::parse(&head) {
            Ok(request::Parsed {
                authority,
                forwarded,
                traceparent,
                baggage,
            }) => {
                let request = Request {
                    authority,
                    forwarded: forwarded.client,
                    host: forwarded.host,
                    traceparent,
                    baggage,
                    respond,
                    recv,
                };
                (self.on_request)(request);
            }
            Err(error) => {
                tracing::debug!(%error, reason = error.reason(), "malformed request answered with 400");
                answer(&mut respond, StatusCode::BAD_REQUEST);
            }
        }
    }

    fn connection_error(&self, error: h2::Error) -> Result<(), ServeError> {
        match self.closing {
            // After GOAWAY the client may close before it has read the last frames.
            Closing::Gracefully if error.is_io() => Ok(()),
            _ if error.is_io() => Err(ServeError::Broken { error }),
            _ => Err(ServeError::Protocol { error }),
        }
    }
}

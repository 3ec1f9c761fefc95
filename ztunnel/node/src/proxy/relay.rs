//! Step 5: move bytes, count them.
//!
//! A relay is two [`Flow`]s, one for each direction, polled by one task. A flow holds bytes only in
//! transit: it reads when its sink can accept bytes, and keeps no buffer while it waits. So an idle
//! connection costs no buffer, and a slow reader blocks the writer instead of filling memory. An
//! end of stream is passed on as a half-close; an abort of one side becomes an abort of the other,
//! never an orderly end. Resets by a tunnel's peer: see `ending`.

mod blocks;
mod ending;
mod pipes;
mod splice;
mod tcp;
#[cfg(test)]
mod tests;
mod tunnel_end;

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;

pub(super) use splice::CopyMode;
pub(super) use tcp::{Side, plain, tunnelled};

use super::far_end::FarEnd;
use super::policy::Revoked;
use telemetry::Series;
use tunnel::hbone::{RevokedMark, TunnelError};

/// The source of a flow's bytes.
trait Source {
    /// Waits for bytes; an empty chunk is the end of the stream.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Broken>>;
    /// The last chunk has been passed on: the source may accept more bytes.
    fn taken(&mut self, _bytes: usize) -> Result<(), Broken> {
        Ok(())
    }
    /// Resolves when the other end aborts after its stream has ended.
    fn poll_broken(&mut self, _cx: &mut Context<'_>) -> Poll<Broken> {
        Poll::Pending
    }
}

/// The destination of a flow's bytes.
trait Sink {
    /// Takes some or all of the bytes at the front of `chunk`.
    fn poll_take(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<(), Broken>>;
    /// Ends the stream in an orderly way.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
    /// Resolves when the other end aborts; polled while the sink waits for nothing else.
    fn poll_broken(&mut self, _cx: &mut Context<'_>) -> Poll<Broken> {
        Poll::Pending
    }
}

/// Why a relay did not end in an orderly way.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// An application reset its TCP connection.
    #[error("the {end} reset the connection")]
    Reset {
        /// The application.
        end: AppEnd,
    },
    /// The TCP connection to one of the two ends broke.
    #[error("the connection to the {end} broke: {source}")]
    Tcp {
        /// Which end.
        end: AppEnd,
        /// The system's error.
        source: io::Error,
    },
    /// The tunnel broke.
    #[error("tunnel{}: {source}", .far_end.suffix())]
    Tunnel {
        /// The kind of far end, if known.
        far_end: FarEnd,
        /// The tunnel's error.
        source: TunnelError,
    },
    /// Policy changed, and the connection is no longer allowed.
    #[error(transparent)]
    Revoked(#[from] Revoked),
}

impl Broken {
    /// An error of the TCP connection to an application.
    pub(super) fn tcp(end: AppEnd, source: io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionReset};
        match source.kind() {
            // Not ConnectionAborted: the kernel gives it to a socket that `SOCK_DESTROY` has ended,
            // as after a change of policies.
            ConnectionReset | BrokenPipe => Self::Reset { end },
            _ => Self::Tcp { end, source },
        }
    }
}

/// The application at one end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AppEnd {
    /// The application that opened the connection.
    Client,
    /// The application that accepted it.
    Server,
}

impl fmt::Display for AppEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

impl From<TunnelError> for Broken {
    fn from(source: TunnelError) -> Self {
        Self::Tunnel {
            far_end: FarEnd::default(),
            source,
        }
    }
}

/// The direction of a flow, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From the client to the server. Istio's metrics call these bytes received, at both ends.
    Request,
    /// From the server to the client. Istio's metrics call these bytes sent, at both ends.
    Response,
}

/// One direction of a relay.
trait Transfer {
    /// Moves bytes until the stream has ended and the end has been passed on.
    fn poll(&mut self, cx: &mut Context<'_>, series: &Series) -> Poll<Result<(), Broken>>;
    /// Resolves when the source aborts after the end of its stream; polled when this direction is
    /// done and the other is not.
    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<Broken>;
    /// The direction and the number of bytes moved.
    fn moved(&self) -> (Direction, u64);
}

/// One direction whose bytes pass through the proxy's memory.
struct Flow<From, To> {
    from: From,
    to: To,
    direction: Direction,
    chunk: Bytes,
    state: FlowState,
    bytes: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FlowState {
    Reading,
    Writing,
    Finishing,
    Done,
}

impl<From: Source, To: Sink> Transfer for Flow<From, To> {
    fn poll(&mut self, cx: &mut Context<'_>, series: &Series) -> Poll<Result<(), Broken>> {
        while self.state != FlowState::Done {
            ready!(self.poll_step(cx, series))?;
        }
        Poll::Ready(Ok(()))
    }

    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        self.from.poll_broken(cx)
    }

    fn moved(&self) -> (Direction, u64) {
        (self.direction, self.bytes)
    }
}

impl<From: Source, To: Sink> Flow<From, To> {
    fn new(from: From, to: To, direction: Direction) -> Self {
        Self {
            from,
            to,
            direction,
            chunk: Bytes::new(),
            state: FlowState::Reading,
            bytes: 0,
        }
    }

    fn poll_step(&mut self, cx: &mut Context<'_>, series: &Series) -> Poll<Result<(), Broken>> {
        match self.state {
            FlowState::Reading => return self.poll_read(cx),
            FlowState::Writing => {
                let before = self.chunk.len();
                // Bytes that the sink has taken are counted even if it must wait for the rest.
                let taken = self.to.poll_take(cx, &mut self.chunk);
                self.account(before - self.chunk.len(), series)?;
                ready!(taken)?;
                if self.chunk.is_empty() {
                    self.state = FlowState::Reading;
                }
            }
            FlowState::Finishing => {
                ready!(self.to.poll_finish(cx))?;
                self.state = FlowState::Done;
            }
            FlowState::Done => {}
        }
        Poll::Ready(Ok(()))
    }

    fn poll_read(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        let Poll::Ready(chunk) = self.from.poll_chunk(cx) else {
            if let Poll::Ready(broken) = self.to.poll_broken(cx) {
                return Poll::Ready(Err(broken));
            }
            return Poll::Pending;
        };
        self.chunk = chunk?;
        self.state = if self.chunk.is_empty() {
            FlowState::Finishing
        } else {
            FlowState::Writing
        };
        Poll::Ready(Ok(()))
    }

    fn account(&mut self, moved: usize, series: &Series) -> Result<(), Broken> {
        self.bytes += moved as u64;
        match self.direction {
            Direction::Request => series.received_bytes.add(moved as u64),
            Direction::Response => series.sent_bytes.add(moved as u64),
        }
        self.from.taken(moved)
    }
}

/// How a relay ended.
#[derive(Debug, Default)]
pub(crate) struct Ended {
    /// Bytes from the client to the server.
    pub(crate) request: u64,
    /// Bytes from the server to the client.
    pub(crate) response: u64,
    /// The error, if it did not end in an orderly way.
    pub(crate) broken: Option<Broken>,
    /// How long it took, if that was measured before its end is handled.
    pub(crate) after: Option<Duration>,
}

impl Ended {
    /// Replaces the error by the revocation of the peer's certificate if that is why the tunnel
    /// broke: the relay itself sees only that the connection is gone. Other tunnel errors get the
    /// kind of far end.
    pub(super) fn explained(mut self, revoked: &RevokedMark, at: FarEnd) -> Self {
        match &mut self.broken {
            Some(broken @ Broken::Tunnel { .. }) if revoked.is_set() => {
                *broken = Revoked::Certificate.into();
            }
            Some(Broken::Tunnel { far_end, .. }) => *far_end = at,
            _ => {}
        }
        self
    }
}

/// Polls both directions until both are done, one breaks, or `revoked` resolves.
async fn run(
    mut out: impl Transfer,
    mut back: impl Transfer,
    series: &Series,
    revoked: impl Future<Output = Revoked>,
) -> Ended {
    let mut revoked = pin!(revoked);
    let broken = poll_fn(|cx| {
        if let Poll::Ready(revoked) = revoked.as_mut().poll(cx) {
            return Poll::Ready(Err(revoked.into()));
        }
        let (out_done, back_done) = (out.poll(cx, series)?, back.poll(cx, series)?);
        match (out_done.is_ready(), back_done.is_ready()) {
            (true, true) => Poll::Ready(Ok(())),
            (true, false) => out.poll_aborted(cx).map(Err),
            (false, true) => back.poll_aborted(cx).map(Err),
            (false, false) => Poll::Pending,
        }
    })
    .await
    .err();
    let (request, response) = match (out.moved(), back.moved()) {
        ((Direction::Request, out), (_, back)) => (out, back),
        ((Direction::Response, out), (_, back)) => (back, out),
    };
    Ended {
        request,
        response,
        broken,
        after: None,
    }
}

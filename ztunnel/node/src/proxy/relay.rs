//! Step 5: move bytes, count them.
//!
//! A relay is two [`Flow`]s, one for each direction, polled by one task. A flow holds bytes only
//! while they are on their way: it reads when its sink has room, and keeps nothing while it
//! waits, so an idle connection costs no buffer and a slow reader stops the writer instead of
//! filling memory. An end of stream travels as a half-close; an abort of either side becomes an
//! abort of the other, never an orderly end. What a tunnel's peer may mean by a reset: `ending`.

mod blocks;
mod ending;
mod pipes;
mod splice;
mod tcp;
#[cfg(test)]
mod tests;
mod tunnel_end;

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;

pub(super) use splice::CopyMode;
pub(super) use tcp::{Side, plain, tunnelled};

use super::authorized::Revoked;
use super::open_tunnel::FarEnd;
use telemetry::Series;
use tunnel::hbone::{RevokedMark, TunnelError};

/// Where bytes come from.
trait Source {
    /// Waits for bytes; an empty chunk is the end of the stream.
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Broken>>;
    /// The chunk that was read last has been handed on: room for more.
    fn taken(&mut self, _bytes: usize) -> Result<(), Broken> {
        Ok(())
    }
    /// Resolves when the other end aborts after its stream has ended.
    fn poll_broken(&mut self, _cx: &mut Context<'_>) -> Poll<Broken> {
        Poll::Pending
    }
}

/// Where bytes go.
trait Sink {
    /// Takes bytes from the front of `chunk`, some or all.
    fn poll_take(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<(), Broken>>;
    /// Ends the stream in an orderly way.
    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>>;
    /// Resolves when the other end aborts; asked while nothing else is awaited.
    fn poll_broken(&mut self, _cx: &mut Context<'_>) -> Poll<Broken> {
        Poll::Pending
    }
}

/// Why a relay did not end in an orderly way.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Broken {
    /// The TCP connection on this node broke.
    #[error("{end} connection: {source}")]
    Tcp {
        /// Whose connection.
        end: &'static str,
        /// What the system said.
        source: io::Error,
    },
    /// The tunnel broke.
    #[error("tunnel{}: {source}", .far_end.suffix())]
    Tunnel {
        /// What is at its other end, where that is known.
        far_end: FarEnd,
        /// What it said.
        source: TunnelError,
    },
    /// Policy changed, and it may not be open any more.
    #[error(transparent)]
    Revoked(#[from] Revoked),
}

impl Broken {
    fn read(source: io::Error) -> Self {
        Self::Tcp {
            end: "reading from the",
            source,
        }
    }

    fn write(source: io::Error) -> Self {
        Self::Tcp {
            end: "writing to the",
            source,
        }
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

/// Which way a flow goes, seen from the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    /// From the client to the server. Istio's metrics call these bytes received, at both ends.
    Request,
    /// From the server to the client. Istio's metrics call these bytes sent, at both ends.
    Response,
}

/// One direction of a relay.
trait Transfer {
    /// Moves bytes until the stream has ended and the other side knows.
    fn poll(&mut self, cx: &mut Context<'_>, series: &Series) -> Poll<Result<(), Broken>>;
    /// Resolves when the source aborts although its stream has ended; asked once this direction is
    /// done and while the other is not.
    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<Broken>;
    /// Which way, and how many bytes have gone it.
    fn moved(&self) -> (Direction, u64);
}

/// One direction whose bytes pass through memory.
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
                // What it has taken counts, even if it must wait to take the rest.
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
    /// What broke it, if it did not end in an orderly way.
    pub(crate) broken: Option<Broken>,
    /// How long it took, where the clock was read before its end is noticed.
    pub(crate) after: Option<Duration>,
}

impl Ended {
    /// The same, where a tunnel that broke has broken because its peer's certificate was revoked:
    /// the relay sees no more than a connection that is gone. What else has broken says where.
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

/// Polls both directions until both are done, one breaks, or somebody cuts the connection.
async fn run(
    mut out: impl Transfer,
    mut back: impl Transfer,
    series: &Series,
    cut: impl Future<Output = Revoked>,
) -> Ended {
    let mut cut = pin!(cut);
    let broken = poll_fn(|cx| {
        if let Poll::Ready(revoked) = cut.as_mut().poll(cx) {
            return Poll::Ready(Err(revoked.into()));
        }
        let (there, context) = (out.poll(cx, series)?, back.poll(cx, series)?);
        match (there.is_ready(), context.is_ready()) {
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

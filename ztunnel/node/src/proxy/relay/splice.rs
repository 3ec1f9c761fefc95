//! One direction between two TCP connections, copied or spliced, whichever is cheaper.
//!
//! Small messages are copied: a read and a write cost less than two splices and a pipe. When reads
//! become large, bytes are spliced from socket to pipe to socket and never enter the proxy's
//! memory. The copying flow handles the end of the stream and every error of `splice(2)`: it is
//! always correct.

use std::io;
use std::task::{Context, Poll, ready};

use bytes::BytesMut;
use tokio::io::Interest;

use super::blocks::LARGEST_READ;
use super::pipes::Lease;
use super::tcp::{TcpSink, TcpSource};
use super::{Broken, Direction, Flow, FlowState, Transfer};
use telemetry::Series;

/// Whether bytes may be spliced.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(in crate::proxy) enum CopyMode {
    /// Never: `splice(2)` does not see the bytes of a socket that is joined by sockmap.
    Copy,
    /// When it is cheaper.
    #[default]
    Adaptive,
}

/// When a direction changes between copying and splicing.
#[derive(Debug, Clone, Copy)]
pub(super) struct Thresholds {
    /// A read of at least this many bytes starts splicing.
    pub(super) large: usize,
    /// A splice of fewer bytes is a small one.
    pub(super) small: usize,
    /// This many small splices in a row stop splicing.
    pub(super) patience: u8,
}

impl Thresholds {
    /// Measured by `tests/cost.rs`: exchanges of up to 32 KiB cost the relay as much or more when
    /// they are spliced, from 64 KiB on less.
    pub(super) const MEASURED: Self = Self {
        large: 64 << 10,
        small: 32 << 10,
        patience: 4,
    };
}

/// How a direction moves bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct CopyStrategy {
    /// Whether bytes may be spliced.
    pub(super) mode: CopyMode,
    /// When it changes between copying and splicing.
    pub(super) thresholds: Thresholds,
}

/// How a direction moves bytes at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum CopyState {
    /// Copying until a read is large.
    Copying,
    /// Splicing; `small` is the number of small splices in a row.
    Splicing { small: u8 },
    /// Copying until the end.
    CopyingOnly,
}

/// One direction of a relay between two TCP connections.
pub(super) struct Adaptive<'a> {
    flow: Flow<TcpSource<'a>, TcpSink<'a>>,
    copy_mode: CopyState,
    thresholds: Thresholds,
    /// The leased pipe; held while bytes are in transit.
    pipe: Option<Lease>,
}

impl<'a> Adaptive<'a> {
    pub(super) fn new(flow: Flow<TcpSource<'a>, TcpSink<'a>>, strategy: CopyStrategy) -> Self {
        Self {
            flow,
            copy_mode: match strategy.mode {
                CopyMode::Copy => CopyState::CopyingOnly,
                CopyMode::Adaptive => CopyState::Copying,
            },
            thresholds: strategy.thresholds,
            pipe: None,
        }
    }

    /// One step of the copying flow, which watches for large reads.
    fn poll_copy(&mut self, cx: &mut Context<'_>, series: &Series) -> Poll<Result<(), Broken>> {
        let reading = self.flow.state == FlowState::Reading;
        ready!(self.flow.poll_step(cx, series))?;
        if reading
            && self.copy_mode == CopyState::Copying
            && self.flow.chunk.len() >= self.thresholds.large
        {
            self.copy_mode = CopyState::Splicing { small: 0 };
        }
        Poll::Ready(Ok(()))
    }

    /// Fills a pipe, or returns to copying.
    fn poll_fill(&mut self, cx: &mut Context<'_>, small: u8) -> Poll<Result<(), Broken>> {
        let Some(source) = self.flow.from.stream() else {
            return self.give_up(CopyState::CopyingOnly);
        };
        loop {
            let Poll::Ready(readable) = source.poll_read_ready(cx) else {
                self.pipe = None;
                return Poll::Pending;
            };
            readable.map_err(|error| self.flow.from.broken(error))?;
            let pipe = match &mut self.pipe {
                Some(pipe) => pipe,
                none => match Lease::take() {
                    Ok(pipe) => none.insert(pipe),
                    // A pipe may be free later.
                    Err(_none) => return self.give_up(CopyState::Copying),
                },
            };
            match source.try_io(Interest::READABLE, || pipe.fill(source)) {
                // The next read tells whether this is the end of the stream.
                Ok(0) => return self.give_up(CopyState::CopyingOnly),
                Ok(moved) => {
                    self.copy_mode = self.after(moved, small);
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    return self.give_up(CopyState::CopyingOnly);
                }
                Err(error) => return Poll::Ready(Err(self.flow.from.broken(error))),
            }
        }
    }

    /// The state after a splice of `moved` bytes.
    fn after(&self, moved: usize, small: u8) -> CopyState {
        if moved >= self.thresholds.small {
            CopyState::Splicing { small: 0 }
        } else if small + 1 < self.thresholds.patience {
            CopyState::Splicing { small: small + 1 }
        } else {
            CopyState::Copying
        }
    }

    fn give_up(&mut self, copy_mode: CopyState) -> Poll<Result<(), Broken>> {
        self.pipe = None;
        self.copy_mode = copy_mode;
        Poll::Ready(Ok(()))
    }

    /// Moves the pipe's bytes to the sink.
    fn poll_drain(&mut self, cx: &mut Context<'_>, series: &Series) -> Poll<Result<(), Broken>> {
        let (sink, Some(pipe)) = (self.flow.to.stream(), &mut self.pipe) else {
            return Poll::Ready(Ok(()));
        };
        loop {
            ready!(sink.poll_write_ready(cx)).map_err(|error| self.flow.to.broken(error))?;
            match sink.try_io(Interest::WRITABLE, || pipe.drain(sink)) {
                Ok(0) => {
                    let error = io::ErrorKind::WriteZero.into();
                    return Poll::Ready(Err(self.flow.to.broken(error)));
                }
                Ok(moved) => {
                    self.flow.account(moved, series)?;
                    return Poll::Ready(Ok(()));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                    return Poll::Ready(self.recover());
                }
                Err(error) => return Poll::Ready(Err(self.flow.to.broken(error))),
            }
        }
    }

    /// Moves the pipe's bytes to the copying flow: the sink cannot be spliced to.
    fn recover(&mut self) -> Result<(), Broken> {
        self.copy_mode = CopyState::CopyingOnly;
        let Some(pipe) = &mut self.pipe else {
            return Ok(());
        };
        let mut chunk = BytesMut::zeroed(pipe.inside().min(LARGEST_READ));
        let count = pipe.read(&mut chunk);
        let count = count.map_err(|error| self.flow.from.broken(error))?;
        chunk.truncate(count);
        self.flow.chunk = chunk.freeze();
        self.flow.state = FlowState::Writing;
        Ok(())
    }
}

impl Transfer for Adaptive<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, series: &Series) -> Poll<Result<(), Broken>> {
        while self.flow.state != FlowState::Done {
            let reading = self.flow.state == FlowState::Reading;
            let held = self.pipe.as_ref().is_some_and(|pipe| pipe.inside() > 0);
            match self.copy_mode {
                _ if !reading => ready!(self.poll_copy(cx, series))?,
                CopyState::CopyingOnly if held => self.recover()?,
                _ if held => ready!(self.poll_drain(cx, series))?,
                CopyState::Splicing { small } => ready!(self.poll_fill(cx, small))?,
                CopyState::Copying | CopyState::CopyingOnly => {
                    self.pipe = None;
                    ready!(self.poll_copy(cx, series))?;
                }
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_aborted(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        self.flow.poll_aborted(cx)
    }

    fn moved(&self) -> (Direction, u64) {
        self.flow.moved()
    }
}

//! How the relay of a tunnel ends: both streams end, the peer resets the tunnel, or something breaks.
//!
//! A reset from the peer ends the direction into the tunnel and nothing else. The application first
//! receives all data that arrived before the reset, however slowly it reads. Then it sees an orderly
//! end if its stream has ended, by END_STREAM or by a code that stands for it
//! ([`TunnelError::is_orderly`]); otherwise it sees a reset. A reset is sent to the application only
//! when its send queue is empty, because a reset destroys what is queued.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt as _;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep, sleep};

use super::tcp::{Side, TcpSink, TcpSource};
use super::{Broken, Flow, Source as _, Transfer as _};
use crate::pods::unsent;
use telemetry::Series;
use tunnel::hbone::{Receiver, Sender, TunnelError};

/// An application that takes no byte for this long is considered to have stopped reading. TCP
/// announces a larger window in steps: a reader of 10 KiB a second announces one about every 40
/// seconds.
const STALL_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an application that has received all data may take to close the connection after the
/// peer has reset the tunnel.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(1);
/// The shortest and the longest interval between two checks of a send queue.
const CHECK_INTERVAL: (Duration, Duration) = (Duration::from_millis(2), Duration::from_millis(100));
/// The size of a read whose bytes are discarded.
const DISCARD_SIZE: usize = 16 << 10;

/// The two directions of a tunnel's relay.
pub(super) struct Pair<'a> {
    /// Application to tunnel.
    out: Flow<TcpSource<'a>, &'a mut Sender>,
    /// Tunnel to application.
    back: Flow<&'a mut Receiver, TcpSink<'a>>,
    /// Why the tunnel accepts no more data; `None` while it does.
    closed: Option<TunnelError>,
    stall: Option<Box<Stall>>,
}

impl<'a> Pair<'a> {
    pub(super) fn new(
        out: Flow<TcpSource<'a>, &'a mut Sender>,
        back: Flow<&'a mut Receiver, TcpSink<'a>>,
    ) -> Self {
        Self {
            out,
            back,
            closed: None,
            stall: None,
        }
    }

    /// Moves bytes until both directions are done or one breaks.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        series: &Series,
    ) -> Poll<Result<(), Broken>> {
        let sent = self.poll_out(cx, series)?;
        let received = self.back.poll(cx, series)?;
        match (sent, received) {
            (Poll::Ready(()), Poll::Ready(())) => Poll::Ready(Ok(())),
            (Poll::Ready(()), Poll::Pending) if self.closed.is_some() => self.poll_stalled(cx),
            (Poll::Ready(()), Poll::Pending) => self.out.poll_aborted(cx).map(Err),
            (Poll::Pending, _) => Poll::Pending,
        }
    }

    /// The direction into the tunnel. It is done when the tunnel is closed. What the application
    /// still writes is then discarded: some applications write everything before they read.
    fn poll_out(&mut self, cx: &mut Context<'_>, series: &Series) -> Poll<Result<(), Broken>> {
        if self.closed.is_none() {
            match ready!(self.out.poll(cx, series)) {
                Err(Broken::Tunnel {
                    source: source @ (TunnelError::Reset { .. } | TunnelError::Connection { .. }),
                    ..
                }) => self.closed = Some(source),
                done => return Poll::Ready(done),
            }
        }
        if self.closed.as_ref().is_some_and(TunnelError::is_orderly) {
            self.out.discard(cx);
        }
        Poll::Ready(Ok(()))
    }

    /// Breaks when an application that will be reset does not read the remaining data.
    fn poll_stalled(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        if self.closed.as_ref().is_none_or(TunnelError::is_orderly) {
            return Poll::Pending;
        }
        let (_, moved) = self.back.moved();
        let stall = self.stall.get_or_insert_with(|| Box::new(Stall::new()));
        ready!(stall.poll(cx, moved));
        match self.closed.take() {
            Some(why) => Poll::Ready(Err(why.into())),
            None => Poll::Pending,
        }
    }

    /// The bytes moved in each direction, and how to close the application's connection.
    pub(super) fn ended(
        self,
        result: Result<(), Broken>,
        side: Side,
    ) -> ((u64, u64), Close, Option<Broken>) {
        let ((_, sent), (_, received)) = (self.out.moved(), self.back.moved());
        let (close, broken) = match (result, self.closed) {
            (Ok(()), None) => (Close::Orderly, None),
            (Ok(()), Some(why)) if why.is_orderly() => (Close::AfterGrace, None),
            // At the source the response is complete. At the destination the request is complete,
            // but the response cannot be returned.
            (Ok(()), Some(why)) => {
                let broken = (side == Side::Destination).then(|| why.into());
                (Close::ResetAfterGrace, broken)
            }
            (Err(broken @ Broken::Tunnel { .. }), _) => (Close::ResetOnceDrained, Some(broken)),
            (Err(broken), _) => (Close::Reset, Some(broken)),
        };
        ((sent, received), close, broken)
    }
}

/// How the application's connection is closed after the relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Close {
    /// Both directions have ended.
    Orderly,
    /// The application has got its end of stream; what it still writes is discarded.
    AfterGrace,
    /// As `AfterGrace`, but a reset must tell the application that the peer did not take its data.
    ResetAfterGrace,
    /// The data for the application is incomplete.
    ResetOnceDrained,
    /// The application's connection is broken or revoked.
    Reset,
}

impl Close {
    /// Whether the close has to wait.
    pub(super) const fn waits(self) -> bool {
        !matches!(self, Self::Orderly | Self::Reset)
    }

    /// Whether the connection ends with a reset.
    pub(super) const fn is_reset(self) -> bool {
        !matches!(self, Self::Orderly | Self::AfterGrace)
    }
}

/// Waits until the connection may be dropped: the application has received everything, has stopped
/// reading, or is gone.
pub(super) async fn settle(stream: &TcpStream, close: Close) {
    let settled = async {
        match close {
            Close::Orderly | Close::Reset => {}
            Close::ResetOnceDrained => drained(stream).await,
            Close::ResetAfterGrace => graced(stream).await,
            Close::AfterGrace => tokio::select! {
                () = graced(stream) => {}
                () = discarded(stream) => {}
            },
        }
    };
    tokio::select! {
        () = settled => {}
        _gone = stream.ready(Interest::ERROR) => {}
    }
}

/// Waits until the application has received everything, and then up to [`CLOSE_TIMEOUT`] until it closes.
async fn graced(stream: &TcpStream) {
    drained(stream).await;
    let asked = Instant::now();
    while asked.elapsed() < CLOSE_TIMEOUT && !has_ended(stream) {
        sleep(CHECK_INTERVAL.1).await;
    }
}

/// Whether the application has ended its stream. Data before that end may still be unread.
fn has_ended(stream: &TcpStream) -> bool {
    let ready = stream.ready(Interest::READABLE).now_or_never();
    matches!(ready, Some(Ok(ready)) if ready.is_read_closed())
}

/// Waits until the application's kernel has acknowledged everything, or nothing for [`STALL_TIMEOUT`].
async fn drained(stream: &TcpStream) {
    let (mut pace, slowest) = CHECK_INTERVAL;
    let mut last = (usize::MAX, Instant::now());
    while let Ok(left @ 1..) = unsent(stream) {
        if left < last.0 {
            last = (left, Instant::now());
        } else if last.1.elapsed() >= STALL_TIMEOUT {
            return;
        }
        sleep(pace).await;
        pace = (pace * 2).min(slowest);
    }
}

/// Reads and discards until the stream ends. The kernel would send a reset if the connection were
/// closed with unread data.
async fn discarded(stream: &TcpStream) {
    let mut room = vec![0; DISCARD_SIZE];
    while stream.readable().await.is_ok() {
        match stream.try_read(&mut room) {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
            Err(_gone) => return,
        }
    }
}

/// A timer that restarts whenever bytes have moved.
struct Stall {
    timer: Pin<Box<Sleep>>,
    moved: u64,
}

impl Stall {
    fn new() -> Self {
        Self {
            timer: Box::pin(sleep(STALL_TIMEOUT)),
            moved: 0,
        }
    }

    fn poll(&mut self, cx: &mut Context<'_>, moved: u64) -> Poll<()> {
        if moved > self.moved {
            self.moved = moved;
            self.timer.as_mut().reset(Instant::now() + STALL_TIMEOUT);
        }
        self.timer.as_mut().poll(cx)
    }
}

impl Flow<TcpSource<'_>, &mut Sender> {
    /// Reads what is available and discards it.
    fn discard(&mut self, cx: &mut Context<'_>) {
        while let Poll::Ready(Ok(chunk)) = self.from.poll_chunk(cx) {
            if chunk.is_empty() {
                return;
            }
        }
    }
}

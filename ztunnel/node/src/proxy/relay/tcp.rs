//! The TCP ends of a relay, and the two kinds of relay: TCP to TCP, and TCP to tunnel.

use std::future::{Future, poll_fn};
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::buf::BufMut;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWrite, Interest};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::blocks::{LARGEST_READ, SMALLEST_READ, with_room};
use super::ending::{self, Pair};
use super::splice::{Adaptive, CopyMode, CopyStrategy, Thresholds};
use super::{AppEnd, Broken, Direction, Ended, Flow, Revoked, Sink, Source, run};
use crate::pods::abort_on_drop;
use telemetry::Series;
use tunnel::hbone::Tunnel;

/// The reading half of a TCP connection.
pub(super) struct TcpSource<'a> {
    /// `None` after the end of the stream, when only an abort is awaited.
    half: Option<ReadHalf<'a>>,
    watch: Option<Watch<'a>>,
    want: usize,
    end: AppEnd,
}

/// Resolves when the other end aborts.
type Watch<'a> = Pin<Box<dyn Future<Output = Broken> + 'a>>;

impl TcpSource<'_> {
    /// The connection; `None` after the end of its stream.
    pub(super) fn stream(&self) -> Option<&TcpStream> {
        self.half.as_ref().map(AsRef::as_ref)
    }

    /// An error of this connection.
    pub(super) fn broken(&self, source: io::Error) -> Broken {
        Broken::tcp(self.end, source)
    }
}

impl Source for TcpSource<'_> {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Broken>> {
        let want = self.want;
        let Some(half) = &mut self.half else {
            return Poll::Ready(Ok(Bytes::new()));
        };
        let chunk = ready!(with_room(want, |block| {
            let polled = {
                let mut room = (&mut *block).limit(want);
                let reading = pin!(half.read_buf(&mut room));
                reading.poll(cx)
            };
            polled.map_ok(|_bytes| block.split().freeze())
        }))
        .map_err(|error| Broken::tcp(self.end, error))?;
        // A read that fills its buffer doubles the next one.
        if chunk.len() == want {
            self.want = (want * 2).min(LARGEST_READ);
        } else if chunk.len() < want / 4 {
            self.want = (want / 2).max(SMALLEST_READ);
        }
        Poll::Ready(Ok(chunk))
    }

    fn poll_broken(&mut self, cx: &mut Context<'_>) -> Poll<Broken> {
        if let Some(half) = self.half.take() {
            self.watch = Some(Box::pin(watch(half, self.end)));
        }
        match &mut self.watch {
            Some(watch) => watch.as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

/// Waits for an error. After the end of its stream a socket is always readable, and mostly
/// writable: a reset shows only as an error.
async fn watch(half: ReadHalf<'_>, end: AppEnd) -> Broken {
    let stream = half.as_ref();
    loop {
        if let Err(gone) = stream.ready(Interest::ERROR).await {
            return Broken::tcp(end, gone);
        }
        let told = stream.try_io(Interest::ERROR, || match stream.take_error()? {
            Some(error) => Ok(error),
            None => Err(io::ErrorKind::WouldBlock.into()),
        });
        match told {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Ok(error) | Err(error) => return Broken::tcp(end, error),
        }
    }
}

/// The writing half of a TCP connection.
pub(super) struct TcpSink<'a> {
    half: WriteHalf<'a>,
    end: AppEnd,
}

impl TcpSink<'_> {
    pub(super) fn stream(&self) -> &TcpStream {
        self.half.as_ref()
    }

    /// An error of this connection.
    pub(super) fn broken(&self, source: io::Error) -> Broken {
        Broken::tcp(self.end, source)
    }
}

impl Sink for TcpSink<'_> {
    fn poll_take(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<(), Broken>> {
        let written = match ready!(Pin::new(&mut self.half).poll_write(cx, chunk)) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            written => written,
        };
        let written = written.map_err(|error| self.broken(error))?;
        chunk.advance(written);
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match ready!(Pin::new(&mut self.half).poll_shutdown(cx)) {
            // The peer has already closed both directions.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done.map_err(|error| self.broken(error))),
        }
    }
}

fn halves(stream: &mut TcpStream, end: AppEnd) -> (TcpSource<'_>, TcpSink<'_>) {
    let (read, write) = stream.split();
    (
        TcpSource {
            half: Some(read),
            watch: None,
            want: SMALLEST_READ,
            end,
        },
        TcpSink { half: write, end },
    )
}

/// A TCP connection that ends with a reset unless its relay has finished. If the relay is dropped
/// with its task, the peer must not take the truncated stream for an orderly end.
struct Relayed {
    stream: TcpStream,
    finished: bool,
}

impl Relayed {
    fn new(stream: TcpStream) -> Self {
        Self {
            stream,
            finished: false,
        }
    }
}

impl Drop for Relayed {
    fn drop(&mut self) {
        if !self.finished {
            abort_on_drop(&self.stream);
        }
    }
}

/// Relays between two TCP connections, until `revoked` resolves. `client` is the one that was
/// accepted.
pub(in crate::proxy) async fn plain(
    client: TcpStream,
    server: TcpStream,
    mode: CopyMode,
    series: &Series,
    revoked: impl Future<Output = Revoked>,
) -> Ended {
    let strategy = CopyStrategy {
        mode,
        thresholds: Thresholds::MEASURED,
    };
    between(client, server, strategy, series, revoked).await
}

/// As [`plain`], with given thresholds.
pub(super) async fn between(
    client: TcpStream,
    server: TcpStream,
    strategy: CopyStrategy,
    series: &Series,
    revoked: impl Future<Output = Revoked>,
) -> Ended {
    let (mut client, mut server) = (Relayed::new(client), Relayed::new(server));
    let ended = {
        let (client_source, client_sink) = halves(&mut client.stream, AppEnd::Client);
        let (server_source, server_sink) = halves(&mut server.stream, AppEnd::Server);
        let out = Flow::new(client_source, server_sink, Direction::Request);
        let back = Flow::new(server_source, client_sink, Direction::Response);
        let [out, back] = [out, back].map(|flow| Adaptive::new(flow, strategy));
        run(out, back, series, revoked).await
    };
    client.finished = ended.broken.is_none();
    server.finished = client.finished;
    ended
}

/// Which end of a tunnel this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::proxy) enum Side {
    /// The client's: the application writes requests.
    Source,
    /// The server's: the application writes responses.
    Destination,
}

/// Relays between an application's TCP connection and a tunnel, until `revoked` resolves.
pub(in crate::proxy) async fn tunnelled(
    app: TcpStream,
    mut tunnel: Tunnel,
    side: Side,
    series: &Series,
    revoked: impl Future<Output = Revoked>,
) -> Ended {
    let (into, from, end) = match side {
        Side::Source => (Direction::Request, Direction::Response, AppEnd::Client),
        Side::Destination => (Direction::Response, Direction::Request, AppEnd::Server),
    };
    let mut app = Relayed::new(app);
    let mut revoked = pin!(revoked);
    let (moved, close, broken) = {
        let (app_source, app_sink) = halves(&mut app.stream, end);
        let out = Flow::new(app_source, &mut tunnel.send, into);
        let back = Flow::new(&mut tunnel.recv, app_sink, from);
        let mut pair = Pair::new(out, back);
        let result = poll_fn(|cx| match revoked.as_mut().poll(cx) {
            Poll::Ready(revoked) => Poll::Ready(Err(revoked.into())),
            Poll::Pending => pair.poll(cx, series),
        })
        .await;
        pair.ended(result, side)
    };
    // Not delayed until the application has read the rest.
    tunnel.abort();
    let (request, response) = match into {
        Direction::Request => moved,
        Direction::Response => (moved.1, moved.0),
    };
    let mut ended = Ended {
        request,
        response,
        broken,
        after: None,
    };
    app.finished = !close.is_reset();
    if close.waits() {
        // Boxed, so that open connections do not carry its memory.
        tokio::select! {
            () = Box::pin(ending::settle(&app.stream, close)) => {}
            reason = revoked => {
                app.finished = false;
                ended.broken = Some(reason.into());
            }
        }
    }
    ended
}

//! The TCP ends of a relay, and the two relays there are: TCP to TCP, and TCP to tunnel.

use std::future::Future;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::buf::BufMut;
use bytes::{Buf, Bytes};
use tokio::io::{AsyncReadExt, AsyncWrite};
use tokio::net::TcpStream;
use tokio::net::tcp::{ReadHalf, WriteHalf};

use super::blocks::{LARGEST_READ, SMALLEST_READ, with_room};
use super::{Broken, Ended, Flow, Sink, Source, Way, run};
use crate::hbone::Tunnel;
use crate::pods::abort_on_drop;
use crate::telemetry::Series;

/// The reading half of a TCP connection.
struct TcpSource<'a> {
    half: ReadHalf<'a>,
    want: usize,
}

impl Source for TcpSource<'_> {
    fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<Result<Bytes, Broken>> {
        let (half, want) = (&mut self.half, self.want);
        let chunk = ready!(with_room(want, |block| {
            let polled = {
                let mut room = (&mut *block).limit(want);
                let reading = pin!(half.read_buf(&mut room));
                reading.poll(cx)
            };
            polled.map_ok(|_bytes| block.split().freeze())
        }))
        .map_err(Broken::read)?;
        // A read that comes back full doubles the next.
        if chunk.len() == want {
            self.want = (want * 2).min(LARGEST_READ);
        } else if chunk.len() < want / 4 {
            self.want = (want / 2).max(SMALLEST_READ);
        }
        Poll::Ready(Ok(chunk))
    }
}

/// The writing half of a TCP connection.
struct TcpSink<'a> {
    half: WriteHalf<'a>,
}

impl Sink for TcpSink<'_> {
    fn poll_take(&mut self, cx: &mut Context<'_>, chunk: &mut Bytes) -> Poll<Result<(), Broken>> {
        let written =
            ready!(Pin::new(&mut self.half).poll_write(cx, chunk)).map_err(Broken::write)?;
        if written == 0 {
            return Poll::Ready(Err(Broken::write(io::ErrorKind::WriteZero.into())));
        }
        chunk.advance(written);
        Poll::Ready(Ok(()))
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Broken>> {
        match ready!(Pin::new(&mut self.half).poll_shutdown(cx)) {
            // The other side has closed both directions already.
            Err(error) if error.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
            done => Poll::Ready(done.map_err(Broken::write)),
        }
    }
}

fn halves(stream: &mut TcpStream) -> (TcpSource<'_>, TcpSink<'_>) {
    let (read, write) = stream.split();
    (
        TcpSource {
            half: read,
            want: SMALLEST_READ,
        },
        TcpSink { half: write },
    )
}

/// A TCP connection that ends with a reset unless its relay has finished: where the relay is
/// dropped with its task, nobody may take what was cut off for an orderly end.
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

/// Relays between two TCP connections. `client` is the one that was accepted.
pub(in crate::path) async fn plain(client: TcpStream, server: TcpStream, series: &Series) -> Ended {
    let (mut client, mut server) = (Relayed::new(client), Relayed::new(server));
    let ended = {
        let (client_source, client_sink) = halves(&mut client.stream);
        let (server_source, server_sink) = halves(&mut server.stream);
        let out = Flow::new(client_source, server_sink, Way::Request);
        let back = Flow::new(server_source, client_sink, Way::Response);
        run(out, back, series).await
    };
    client.finished = ended.broken.is_none();
    server.finished = client.finished;
    ended
}

/// Which end of a tunnel this node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::path) enum Side {
    /// The client's: the application writes requests.
    Source,
    /// The server's: the application writes responses.
    Destination,
}

/// Relays between an application's TCP connection and a tunnel.
pub(in crate::path) async fn tunnelled(
    app: TcpStream,
    mut tunnel: Tunnel,
    side: Side,
    series: &Series,
) -> Ended {
    let (into, from) = match side {
        Side::Source => (Way::Request, Way::Response),
        Side::Destination => (Way::Response, Way::Request),
    };
    let mut app = Relayed::new(app);
    let ended = {
        let (app_source, app_sink) = halves(&mut app.stream);
        let out = Flow::new(app_source, &mut tunnel.send, into);
        let back = Flow::new(&mut tunnel.recv, app_sink, from);
        run(out, back, series).await
    };
    app.finished = ended.broken.is_none();
    if !app.finished {
        tunnel.abort();
    }
    ended
}

//! How the end of a tunnel reaches the application. The peer runs a script: it sends the bytes and
//! the frames that end them in one write, so that h2 has all of them before the relay sees any.

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::rc::Rc;

use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::TcpSocket;
use tokio::sync::watch;
use tokio::task::LocalSet;

use super::super::tcp::{Side, tunnelled};
use super::*;
use tunnel::hbone::{Config, Connect, OpenError, Request, Tunnel, open_unpooled, serve};

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;
/// The id of the only stream.
const STREAM: u32 = 1;

/// Codes of RST_STREAM (RFC 9113, section 7).
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const CANCEL: u32 = 8;
const CONNECT_ERROR: u32 = 10;

/// More than any socket buffer of a slow reader, and less than a stream's window.
const SENT: usize = 700_000;

/// How the peer ends the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Stream,
    Reset(u32),
    GoAway,
    /// The connection closes under the tunnel.
    Lost,
}

/// What the application sees after the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    End,
    Reset,
}

/// Each way to end the stream, and what the application sees.
const ENDS: [(&[End], Seen); 12] = [
    // Envoy 1.36 to 1.39, and for TCP 1.40.
    (&[End::Stream, End::Reset(NO_ERROR)], Seen::End),
    // Envoy 1.40 for HTTP.
    (&[End::Reset(CONNECT_ERROR)], Seen::End),
    (&[End::Stream, End::Reset(CONNECT_ERROR)], Seen::End),
    (&[End::Reset(NO_ERROR)], Seen::End),
    (&[End::GoAway, End::Stream, End::Reset(NO_ERROR)], Seen::End),
    (&[End::GoAway, End::Reset(CONNECT_ERROR)], Seen::End),
    (&[End::Stream, End::Reset(CANCEL)], Seen::End),
    (&[End::Stream, End::Reset(INTERNAL_ERROR)], Seen::End),
    (&[End::Reset(CANCEL)], Seen::Reset),
    (&[End::Reset(INTERNAL_ERROR)], Seen::Reset),
    (&[End::GoAway, End::Reset(CANCEL)], Seen::Reset),
    (&[End::GoAway, End::Lost], Seen::Reset),
];

/// How the application reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    Fast,
    /// With a small receive buffer, in small pieces, after a delay.
    Slow,
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = length[1..].to_vec();
    frame.extend([kind, flags]);
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// The bytes and the frames that end them.
fn script(ends: &[End]) -> Vec<u8> {
    let bytes = stretch(0, SENT);
    let data = bytes.chunks(16 << 10);
    let data = data.flat_map(|chunk| frame(DATA, 0, STREAM, chunk));
    // The announced window applies once the SETTINGS are acknowledged.
    let mut script = frame(SETTINGS, ACK, 0, &[]);
    script.extend(data);
    for end in ends {
        script.extend(match end {
            End::Stream => frame(DATA, END_STREAM, STREAM, &[]),
            End::Reset(code) => frame(RST_STREAM, 0, STREAM, &code.to_be_bytes()),
            End::GoAway => frame(GOAWAY, 0, 0, &[0, 0, 0, 1, 0, 0, 0, 0]),
            End::Lost => Vec::new(),
        });
    }
    script
}

/// The peer's end of the connection.
struct Peer(DuplexStream);

impl Peer {
    /// Reads frames until a HEADERS frame.
    async fn headers(&mut self) {
        loop {
            let mut head = [0; 9];
            self.0.read_exact(&mut head).await.unwrap();
            let length = usize::from(head[1]) << 8 | usize::from(head[2]);
            self.0.read_exact(&mut vec![0; length]).await.unwrap();
            if head[3] == HEADERS {
                return;
            }
        }
    }

    /// Writes everything at once and, unless the script ends with `Lost`, keeps the connection open
    /// until the other end closes it.
    async fn play(mut self, all: Vec<u8>, ends: &[End]) {
        self.0.write_all(&all).await.unwrap();
        if !ends.contains(&End::Lost) {
            drop(self.0.read_to_end(&mut Vec::new()).await);
        }
    }
}

/// A tunnel that the proxy has opened: the peer is the server.
async fn opened(ends: &'static [End]) -> Tunnel {
    let (near, far) = tokio::io::duplex(4 << 20);
    tokio::task::spawn_local(async move {
        let mut peer = Peer(far);
        peer.0.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
        peer.headers().await;
        let mut all = frame(SETTINGS, 0, 0, &[]);
        // `:status: 200` is entry 8 of HPACK's static table.
        all.extend(frame(HEADERS, END_HEADERS, STREAM, &[0x88]));
        all.extend(script(ends));
        peer.play(all, ends).await;
    });
    let to: std::net::SocketAddr = "10.0.0.2:8080".parse().unwrap();
    let tunnel: Result<_, OpenError<io::Error>> =
        open_unpooled(near, &Connect::to(to), &config()).await;
    tunnel.unwrap()
}

/// A tunnel that the proxy has accepted: the peer is the client.
async fn accepted(ends: &'static [End]) -> Tunnel {
    let (near, far) = tokio::io::duplex(4 << 20);
    tokio::task::spawn_local(async move {
        let mut peer = Peer(far);
        let mut hello = PREFACE.to_vec();
        hello.extend(frame(SETTINGS, 0, 0, &[]));
        // Two literals that are not indexed: `:method`, entry 2, and `:authority`, entry 1.
        let mut request = vec![0x02, 7];
        request.extend(b"CONNECT");
        request.extend([0x01, 13]);
        request.extend(b"10.0.0.2:8080");
        hello.extend(frame(HEADERS, END_HEADERS, STREAM, &request));
        peer.0.write_all(&hello).await.unwrap();
        peer.headers().await;
        peer.play(script(ends), ends).await;
    });
    let taken = Rc::new(RefCell::new(None));
    let take = {
        let taken = taken.clone();
        move |request: Request| *taken.borrow_mut() = request.accept().ok()
    };
    tokio::task::spawn_local(async move {
        let drain = watch::Sender::new(false);
        drop(serve(near, &config(), drain.subscribe(), take).await);
    });
    loop {
        if let Some(tunnel) = taken.borrow_mut().take() {
            return tunnel;
        }
        tokio::task::yield_now().await;
    }
}

fn config() -> Config {
    Config {
        keepalive: None,
        ..Config::default()
    }
}

/// The application's two ends; a slow reader has small buffers.
async fn application(reader: Reader) -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let socket = TcpSocket::new_v4().unwrap();
    if reader == Reader::Slow {
        socket.set_recv_buffer_size(64 << 10).unwrap();
    }
    let to = listener.local_addr().unwrap();
    let (app, accepted) = tokio::join!(socket.connect(to), listener.accept());
    (app.unwrap(), accepted.unwrap().0)
}

/// Reads until the end of the stream or an error.
async fn read(app: &mut TcpStream, reader: Reader) -> (Vec<u8>, io::Result<()>) {
    let mut all = Vec::new();
    if reader == Reader::Fast {
        let end = app.read_to_end(&mut all).await;
        return (all, end.map(drop));
    }
    let mut room = vec![0; 8192];
    loop {
        tokio::time::sleep(Duration::from_millis(1)).await;
        match app.read(&mut room).await {
            Ok(0) => return (all, Ok(())),
            Ok(count) => all.extend(&room[..count]),
            Err(error) => return (all, Err(error)),
        }
    }
}

/// Relays between an application and a tunnel whose peer runs a script.
async fn relayed<T>(
    side: Side,
    ends: &'static [End],
    reader: Reader,
    play: impl AsyncFnOnce(TcpStream) -> T,
) -> (T, Ended) {
    let relayed = async {
        let tunnel = match side {
            Side::Source => opened(ends).await,
            Side::Destination => accepted(ends).await,
        };
        let (app, ours) = application(reader).await;
        let series = Series::default();
        tokio::join!(
            play(app),
            Box::pin(tunnelled(ours, tunnel, side, &series, pending()))
        )
    };
    let limited = timeout(PATIENCE, LocalSet::new().run_until(relayed)).await;
    limited.expect("the relay hangs")
}

#[tokio::test]
async fn all_bytes_arrive_before_the_end_that_the_peer_has_chosen() {
    for side in [Side::Source, Side::Destination] {
        for reader in [Reader::Fast, Reader::Slow] {
            for half_closed in [false, true] {
                for (ends, seen) in ENDS {
                    let case = format!("{side:?}, {reader:?}, {half_closed}, {ends:?}");
                    let (outcome, ended) = relayed(side, ends, reader, async |mut app| {
                        if half_closed {
                            app.shutdown().await.unwrap();
                        }
                        read(&mut app, reader).await
                    })
                    .await;
                    let (bytes, end) = outcome;
                    assert_eq!(bytes.len(), SENT, "{case}: {end:?}");
                    assert!(bytes == stretch(0, SENT), "{case}");
                    let kind = end.as_ref().map_err(io::Error::kind);
                    let expected = match seen {
                        Seen::End => Ok(&()),
                        Seen::Reset => Err(ErrorKind::ConnectionReset),
                    };
                    assert_eq!(kind, expected, "{case}");
                    counts(side, ends, seen, &ended, &case);
                }
            }
        }
    }
}

/// Checks the report of the connection.
fn counts(side: Side, ends: &[End], seen: Seen, ended: &Ended, case: &str) {
    let received = match side {
        Side::Source => ended.response,
        Side::Destination => ended.request,
    };
    assert_eq!(received, SENT as u64, "{case}");
    let said = ended.broken.as_ref().map(ToString::to_string);
    if seen == Seen::End && side == Side::Source {
        assert_eq!(said, None, "{case}: the answer was whole");
    }
    if seen == Seen::Reset && ends.last() != Some(&End::Lost) {
        let said = said.unwrap_or_default();
        assert!(
            said.contains("the peer reset the tunnel with"),
            "{case}: {said}"
        );
    }
}

#[tokio::test]
async fn an_application_that_writes_all_before_it_reads_gets_the_whole_answer() {
    for ends in [ENDS[0].0, ENDS[1].0] {
        let (outcome, ended) = relayed(Side::Source, ends, Reader::Fast, async |mut app| {
            // The peer's window admits 64 KiB of it.
            app.write_all(&stretch(0, 8 << 20)).await.unwrap();
            read(&mut app, Reader::Fast).await
        })
        .await;
        let (bytes, end) = outcome;
        end.unwrap();
        assert_eq!(bytes.len(), SENT);
        assert!(ended.broken.is_none());
    }
}

#[tokio::test]
async fn an_application_that_stays_learns_that_nothing_is_taken_any_more() {
    for (ends, seen) in ENDS {
        let ((), _ended) = relayed(Side::Source, ends, Reader::Fast, async |mut app| {
            let (bytes, _end) = read(&mut app, Reader::Fast).await;
            assert_eq!(bytes.len(), SENT);
            let error = loop {
                if let Err(error) = app.write_all(b"?").await {
                    break error;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            };
            let kind = error.kind();
            let told = matches!(kind, ErrorKind::ConnectionReset | ErrorKind::BrokenPipe);
            assert!(told, "{ends:?}, {seen:?}: {error}");
        })
        .await;
    }
}

#[tokio::test]
async fn a_policy_that_revokes_the_connection_waits_for_no_reader() {
    let relayed = async {
        let tunnel = opened(&[End::Reset(CANCEL)]).await;
        let (mut app, ours) = application(Reader::Slow).await;
        let (cut, revoked) = tokio::sync::oneshot::channel();
        let revoked = async { revoked.await.unwrap() };
        let series = Series::default();
        let play = async {
            // The relay has started, and most of the data waits.
            app.read_exact(&mut [0; 1000]).await.unwrap();
            cut.send(super::super::super::policy::Revoked::UnknownWorkload)
                .unwrap();
        };
        let relay = Box::pin(tunnelled(ours, tunnel, Side::Source, &series, revoked));
        let ((), ended) = tokio::join!(play, relay);
        assert!(matches!(
            ended.broken,
            Some(super::super::Broken::Revoked(_))
        ));
        let mut rest = Vec::new();
        let broke = app.read_to_end(&mut rest).await.unwrap_err();
        assert_eq!(broke.kind(), ErrorKind::ConnectionReset);
    };
    let limited = timeout(PATIENCE, LocalSet::new().run_until(relayed)).await;
    limited.expect("the relay hangs");
}

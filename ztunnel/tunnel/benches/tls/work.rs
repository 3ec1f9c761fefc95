//! The rows of the benchmark, and the measurement of one sample.

use std::fmt;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, ensure};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::sessions::{ByteStream, Endpoints, Session, Variant};

const KIB: usize = 1024;
/// Bytes of one bulk sample.
const BULK: usize = 1 << 30;
/// Bytes before the measurement of a bulk sample begins.
const BULK_WARM_UP: usize = 16 << 20;
/// The receiver's buffer in bytes.
const READ: usize = 256 * KIB;
/// Requests of one sample.
const REQUESTS: usize = 50_000;
/// Requests before the measurement begins.
const REQUESTS_WARM_UP: usize = 1_000;
/// Bytes of a request.
const REQUEST: usize = 128;
/// Bytes of a response.
const RESPONSE: usize = KIB;
/// The limit of one sample.
const LIMIT: Duration = Duration::from_secs(120);

/// One row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    /// The client sends, with a flush after each write of this size in bytes.
    Bulk(usize),
    /// Requests and responses, one at a time.
    RequestResponse,
}

impl Work {
    pub(crate) const ALL: [Self; 4] = [
        Self::Bulk(16 * KIB),
        Self::Bulk(64 * KIB),
        Self::Bulk(256 * KIB),
        Self::RequestResponse,
    ];

    pub(crate) const fn unit(self) -> &'static str {
        match self {
            Self::Bulk(_) => "s/GB",
            Self::RequestResponse => "us/req",
        }
    }

    /// CPU seconds of a sample in this row's unit.
    fn in_unit(self, seconds: f64) -> f64 {
        match self {
            Self::Bulk(_) => seconds / (BULK as f64 / 1e9),
            Self::RequestResponse => seconds * 1e6 / REQUESTS as f64,
        }
    }
}

impl fmt::Display for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bulk(write) => write!(f, "bulk, writes of {} KiB", write / KIB),
            Self::RequestResponse => write!(f, "{REQUEST} B requests, {RESPONSE} B responses"),
        }
    }
}

/// The CPU time of client and server for one sample, in the row's unit.
pub(crate) fn measure(work: Work, variant: Variant, endpoints: &Endpoints) -> Result<f64> {
    let (client, server) = on_both_ends(
        |socket| async move {
            let mut session = connect(variant, endpoints, socket).await?;
            client(work, &mut *session.stream).await
        },
        |socket| async move {
            let mut session = accept(variant, endpoints, socket).await?;
            server(work, &mut *session.stream).await
        },
    )?;
    Ok(work.in_unit((client + server).as_secs_f64()))
}

/// The cipher suite that client and server negotiate.
pub(crate) fn cipher_suite(variant: Variant, endpoints: &Endpoints) -> Result<String> {
    let (client, server) = on_both_ends(
        |socket| async move {
            let mut session = connect(variant, endpoints, socket).await?;
            session.stream.write_all(b"x").await?;
            session.stream.shutdown().await?;
            Ok(session.cipher_suite)
        },
        |socket| async move {
            let mut session = accept(variant, endpoints, socket).await?;
            let mut received = Vec::new();
            session.stream.read_to_end(&mut received).await?;
            Ok(session.cipher_suite)
        },
    )?;
    ensure!(
        client == server,
        "the client reports the cipher suite {client}, the server {server}"
    );
    Ok(client)
}

async fn connect(variant: Variant, endpoints: &Endpoints, socket: TcpStream) -> Result<Session> {
    endpoints.connect(variant, asynchronous(socket)?).await
}

async fn accept(variant: Variant, endpoints: &Endpoints, socket: TcpStream) -> Result<Session> {
    endpoints.accept(variant, asynchronous(socket)?).await
}

/// Runs client and server on the two ends of a TCP connection, each on a thread of its own.
fn on_both_ends<T: Send, C, S>(
    client: impl FnOnce(TcpStream) -> C + Send,
    server: impl FnOnce(TcpStream) -> S + Send,
) -> Result<(T, T)>
where
    C: Future<Output = Result<T>>,
    S: Future<Output = Result<T>>,
{
    let listener =
        TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("binding a listener on loopback")?;
    let address = listener.local_addr().context("the listener's address")?;
    let near = TcpStream::connect(address).context("connecting to the listener")?;
    let (far, _) = listener.accept().context("accepting the connection")?;
    thread::scope(|scope| {
        let client = scope.spawn(|| run(client(near)).context("the client failed"));
        let server = scope.spawn(|| run(server(far)).context("the server failed"));
        let client = client
            .join()
            .map_err(|_panic| anyhow!("the client's thread panicked"))?;
        let server = server
            .join()
            .map_err(|_panic| anyhow!("the server's thread panicked"))?;
        match (client, server) {
            (Ok(client), Ok(server)) => Ok((client, server)),
            (Err(client), Err(server)) => Err(client.context(format!("{server:#}"))),
            (Err(error), Ok(_)) | (Ok(_), Err(error)) => Err(error),
        }
    })
}

fn run<T>(end: impl Future<Output = Result<T>>) -> Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting a runtime")?;
    runtime.block_on(async {
        tokio::time::timeout(LIMIT, end)
            .await
            .with_context(|| format!("not finished within {LIMIT:?}"))?
    })
}

fn asynchronous(socket: TcpStream) -> Result<tokio::net::TcpStream> {
    socket.set_nodelay(true).context("setting TCP_NODELAY")?;
    socket
        .set_nonblocking(true)
        .context("setting the socket non-blocking")?;
    tokio::net::TcpStream::from_std(socket).context("registering the socket")
}

/// Does the client's part. Returns the CPU time of its thread after the warm-up.
async fn client(work: Work, stream: &mut dyn ByteStream) -> Result<Duration> {
    match work {
        Work::Bulk(write) => {
            let data = vec![7; write];
            send(stream, &data, BULK_WARM_UP).await?;
            let before = thread_time()?;
            send(stream, &data, BULK).await?;
            let used = thread_time()?.saturating_sub(before);
            stream.shutdown().await.context("closing")?;
            Ok(used)
        }
        Work::RequestResponse => {
            request(stream, REQUESTS_WARM_UP).await?;
            let before = thread_time()?;
            request(stream, REQUESTS).await?;
            let used = thread_time()?.saturating_sub(before);
            stream.shutdown().await.context("closing")?;
            Ok(used)
        }
    }
}

/// Does the server's part. Returns the CPU time of its thread after the warm-up.
async fn server(work: Work, stream: &mut dyn ByteStream) -> Result<Duration> {
    let used = match work {
        Work::Bulk(_) => {
            let mut buffer = vec![0; READ];
            let extra = receive(stream, &mut buffer, BULK_WARM_UP).await?;
            let before = thread_time()?;
            receive(stream, &mut buffer, BULK - extra).await?;
            thread_time()?.saturating_sub(before)
        }
        Work::RequestResponse => {
            respond(stream, REQUESTS_WARM_UP).await?;
            let before = thread_time()?;
            respond(stream, REQUESTS).await?;
            thread_time()?.saturating_sub(before)
        }
    };
    let rest = stream
        .read(&mut [0])
        .await
        .context("reading the end of the stream")?;
    ensure!(rest == 0, "the client sent more bytes than expected");
    Ok(used)
}

async fn send(stream: &mut dyn ByteStream, data: &[u8], total: usize) -> Result<()> {
    for _ in 0..total / data.len() {
        stream.write_all(data).await.context("sending")?;
        stream.flush().await.context("flushing")?;
    }
    Ok(())
}

/// Receives at least `total` bytes. Returns how many more it received.
async fn receive(stream: &mut dyn ByteStream, buffer: &mut [u8], total: usize) -> Result<usize> {
    let mut received = 0;
    while received < total {
        let count = stream.read(buffer).await.context("receiving")?;
        ensure!(
            count > 0,
            "the stream ended after {received} of {total} bytes"
        );
        received += count;
    }
    Ok(received - total)
}

async fn request(stream: &mut dyn ByteStream, count: usize) -> Result<()> {
    let mut response = [0; RESPONSE];
    for _ in 0..count {
        stream
            .write_all(&[1; REQUEST])
            .await
            .context("sending a request")?;
        stream.flush().await.context("flushing a request")?;
        stream
            .read_exact(&mut response)
            .await
            .context("receiving a response")?;
    }
    Ok(())
}

async fn respond(stream: &mut dyn ByteStream, count: usize) -> Result<()> {
    let mut request = [0; REQUEST];
    for _ in 0..count {
        stream
            .read_exact(&mut request)
            .await
            .context("receiving a request")?;
        stream
            .write_all(&[2; RESPONSE])
            .await
            .context("sending a response")?;
        stream.flush().await.context("flushing a response")?;
    }
    Ok(())
}

/// The CPU time of this thread, in user space and in the kernel.
fn thread_time() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).context("reading the thread's CPU time")?;
    let mut total = Duration::ZERO;
    for time in [usage.user_time(), usage.system_time()] {
        total += Duration::from_secs(u64::try_from(time.tv_sec()).context("CPU seconds")?);
        total += Duration::from_micros(u64::try_from(time.tv_usec()).context("microseconds")?);
    }
    Ok(total)
}

//! HTTP requests over keep-alive connections: one epoll loop, and one request at a time on each
//! connection.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::epoll::{Epoll, Interest};
use super::http;
use super::latency::{Latency, Recorder};

/// The longest wait for an answer on any connection before the run fails.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The buffer size for a response, in bytes.
const RESPONSE_BYTES: usize = 8 * 1024;

/// The result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The number of answered requests.
    pub requests: u64,
    /// The duration.
    pub seconds: f64,
    /// The rate.
    pub per_second: f64,
    /// The latency from sending a request to its complete answer.
    pub latency: Latency,
}

const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nhost: load\r\nx-marker: load\r\n\r\n";

struct Connection {
    stream: TcpStream,
    sent: Instant,
    pending: Vec<u8>,
}

/// Sends requests over `connections` connections for `length`.
///
/// # Errors
/// When a connection fails or the server stops answering.
pub fn run(to: SocketAddr, connections: usize, length: Duration) -> Result<Report> {
    let mut epoll = Epoll::new().context("creating an epoll instance")?;
    let mut all = connect(to, connections, &epoll)?;
    let mut recorder = Recorder::new();
    let started = Instant::now();
    for connection in &mut all {
        connection.send_request(Instant::now())?;
    }
    drive(&mut epoll, &mut all, started + length, &mut recorder)
        .with_context(|| format!("requests to {to}"))?;
    let seconds = started.elapsed().as_secs_f64();
    let requests = recorder.count();
    #[allow(
        clippy::cast_precision_loss,
        reason = "a rate needs no more than 52 bits"
    )]
    let per_second = requests as f64 / seconds;
    Ok(Report {
        requests,
        seconds,
        per_second,
        latency: recorder.summary(),
    })
}

fn connect(to: SocketAddr, connections: usize, epoll: &Epoll) -> Result<Vec<Connection>> {
    let mut all = Vec::with_capacity(connections);
    for token in 0..connections {
        let stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        epoll.add(&stream, token as u64, Interest::Input)?;
        all.push(Connection {
            stream,
            sent: Instant::now(),
            pending: Vec::new(),
        });
    }
    Ok(all)
}

fn drive(
    epoll: &mut Epoll,
    all: &mut [Connection],
    end: Instant,
    recorder: &mut Recorder,
) -> Result<()> {
    let mut buffer = vec![0; RESPONSE_BYTES];
    let mut tokens = Vec::new();
    while Instant::now() < end {
        tokens.clear();
        tokens.extend(
            epoll
                .wait(TIMEOUT)?
                .filter_map(|token| usize::try_from(token).ok()),
        );
        ensure!(!tokens.is_empty(), "no answer within {TIMEOUT:?}");
        for token in &tokens {
            let Some(connection) = all.get_mut(*token) else {
                continue;
            };
            if connection.read(&mut buffer)? {
                let now = Instant::now();
                recorder.record(now - connection.sent);
                connection.send_request(now)?;
            }
        }
    }
    Ok(())
}

impl Connection {
    fn send_request(&mut self, now: Instant) -> Result<()> {
        self.sent = now;
        self.stream.write_all(REQUEST).context("sending a request")
    }

    /// Reads more of the answer. Returns whether it is complete.
    fn read(&mut self, buffer: &mut [u8]) -> Result<bool> {
        let count = match self.stream.read(buffer) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(false),
            Err(error) => return Err(error).context("reading an answer"),
        };
        ensure!(count > 0, "the server closed a connection");
        let received = if self.pending.is_empty() {
            &buffer[..count]
        } else {
            self.pending.extend_from_slice(&buffer[..count]);
            &self.pending
        };
        let Some(response) = http::response(received)? else {
            if self.pending.is_empty() {
                self.pending.extend_from_slice(&buffer[..count]);
            }
            return Ok(false);
        };
        ensure!(
            response.status == 200,
            "the server answered with status {}",
            response.status
        );
        ensure!(
            response.length == received.len(),
            "more than one answer to one request"
        );
        self.pending.clear();
        Ok(true)
    }
}

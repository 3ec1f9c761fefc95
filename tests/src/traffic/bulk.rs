//! Bulk transfers, one thread per connection.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use serde::{Deserialize, Serialize};

use super::server::BULK_BYTES;
use super::{IoMode, Stream, tune};

/// The time limit for connecting.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The direction of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From the client to a [`super::Kind::Sink`].
    Forward,
    /// From a [`super::Kind::Source`] to the client.
    Reverse,
}

/// The parameters of a bulk transfer.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// The server.
    pub to: SocketAddr,
    /// The number of concurrent connections.
    pub connections: usize,
    /// The duration.
    pub length: Duration,
    /// The direction.
    pub direction: Direction,
    /// The size of one write of the client, in bytes.
    pub chunk: usize,
    /// The I/O mode of the client.
    pub io_mode: IoMode,
}

/// The result of a transfer.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Payload bytes that arrived on all connections.
    pub bytes: u64,
    /// The time from the first connect to the arrival of the last byte.
    pub seconds: f64,
    /// The rate.
    pub gbit_per_second: f64,
    /// Congestion control of the client's sockets.
    pub congestion: String,
}

/// Runs the transfer.
///
/// # Errors
/// When a connection fails.
pub fn run(plan: &Plan) -> Result<Report> {
    let mut streams = Vec::new();
    for _ in 0..plan.connections {
        streams.push(Stream::connect(plan.to, plan.io_mode, TIMEOUT)?);
    }
    let congestion = streams
        .first()
        .map(tune::congestion)
        .transpose()?
        .unwrap_or_default();
    let started = Instant::now();
    let end = started + plan.length;
    let threads: Vec<_> = streams
        .into_iter()
        .map(|stream| {
            let Plan {
                direction, chunk, ..
            } = *plan;
            thread::spawn(move || match direction {
                Direction::Forward => send(&stream, chunk, end),
                Direction::Reverse => receive(&stream, end),
            })
        })
        .collect();
    let mut bytes = 0;
    for thread in threads {
        bytes += thread
            .join()
            .map_err(|_panic| anyhow!("a connection's thread panicked"))??;
    }
    let seconds = started.elapsed().as_secs_f64();
    #[allow(
        clippy::cast_precision_loss,
        reason = "a rate needs no more than 52 bits"
    )]
    let gbit_per_second = bytes as f64 * 8e-9 / seconds;
    Ok(Report {
        bytes,
        seconds,
        gbit_per_second,
        congestion,
    })
}

fn send(mut stream: &Stream, chunk: usize, end: Instant) -> io::Result<u64> {
    let buffer = vec![0xa5; chunk];
    while Instant::now() < end {
        stream.write_all(&buffer)?;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut count = [0; 8];
    stream.read_exact(&mut count)?;
    Ok(u64::from_be_bytes(count))
}

fn receive(mut stream: &Stream, end: Instant) -> io::Result<u64> {
    let mut buffer = vec![0; BULK_BYTES];
    let mut total = 0;
    while Instant::now() < end {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        total += count as u64;
    }
    Ok(total)
}

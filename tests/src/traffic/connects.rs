//! New connections: each carries one request, and the server closes it.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use serde::{Deserialize, Serialize};

use super::latency::{Latency, Recorder};

/// The result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Connections that were opened, answered and closed.
    pub connections: u64,
    /// The duration.
    pub seconds: f64,
    /// The rate.
    pub per_second: f64,
    /// The latency from connect to the end of the stream.
    pub latency: Latency,
}

/// Opens connections for `length`, `at_a_time` of them concurrently.
///
/// # Errors
/// When a connection fails.
pub fn run(to: SocketAddr, at_a_time: usize, length: Duration) -> Result<Report> {
    let started = Instant::now();
    let end = started + length;
    let threads: Vec<_> = (0..at_a_time)
        .map(|_| {
            thread::spawn(move || -> Result<Recorder> {
                let mut recorder = Recorder::new();
                // At least one, even if the thread starts late.
                loop {
                    let begun = Instant::now();
                    once(to)?;
                    recorder.record(begun.elapsed());
                    if Instant::now() >= end {
                        return Ok(recorder);
                    }
                }
            })
        })
        .collect();
    let mut all = Recorder::new();
    for thread in threads {
        all.merge(
            &thread
                .join()
                .map_err(|_panic| anyhow!("a client thread panicked"))??,
        );
    }
    let seconds = started.elapsed().as_secs_f64();
    let connections = all.count();
    #[allow(
        clippy::cast_precision_loss,
        reason = "a rate needs no more than 52 bits"
    )]
    let per_second = connections as f64 / seconds;
    Ok(Report {
        connections,
        seconds,
        per_second,
        latency: all.summary(),
    })
}

fn once(to: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(to).with_context(|| format!("connecting to {to}"))?;
    // The server closes first, so that TIME_WAIT occupies a port of the server, not of the client.
    stream
        .write_all(b"GET / HTTP/1.1\r\nhost: load\r\nconnection: close\r\n\r\n")
        .context("sending a request")?;
    let mut buffer = [0; 1024];
    let mut total = 0;
    loop {
        let count = stream.read(&mut buffer).context("reading an answer")?;
        if count == 0 {
            ensure!(total > 0, "the connection ended without an answer");
            return Ok(());
        }
        total += count;
    }
}

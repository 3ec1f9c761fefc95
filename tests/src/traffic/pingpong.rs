//! Round trips of one byte, which measure the latency of the path.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::latency::{Latency, Recorder};
use super::{IoMode, Stream};

/// The time limit for connecting.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The result.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The number of round trips.
    pub rounds: u64,
    /// The latency of one round trip.
    pub latency: Latency,
}

/// Exchanges bytes with a [`super::Kind::Echo`] for `length`.
///
/// # Errors
/// When the connection fails.
pub fn run(to: SocketAddr, length: Duration, io_mode: IoMode) -> Result<Report> {
    let mut stream =
        Stream::connect(to, io_mode, TIMEOUT).with_context(|| format!("connecting to {to}"))?;
    stream.set_nodelay(true)?;
    let mut recorder = Recorder::new();
    let end = Instant::now() + length;
    let mut byte = [0x2a];
    let mut now = Instant::now();
    while now < end {
        stream.write_all(&byte).context("sending")?;
        stream.read_exact(&mut byte).context("receiving")?;
        let after = Instant::now();
        recorder.record(after - now);
        now = after;
    }
    Ok(Report {
        rounds: recorder.count(),
        latency: recorder.summary(),
    })
}

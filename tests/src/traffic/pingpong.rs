//! One byte there and back, again and again: the latency that the path adds.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::latency::{Latency, Recorder};
use super::{End, Manner};

/// How long a connection may take to come up.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was measured.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// Round trips.
    pub rounds: u64,
    /// Of one round trip.
    pub latency: Latency,
}

/// Plays with a [`super::Kind::Echo`] for `length`.
///
/// # Errors
/// When the connection fails.
pub fn run(to: SocketAddr, length: Duration, manner: Manner) -> Result<Report> {
    let mut stream =
        End::connect(to, manner, PATIENCE).with_context(|| format!("connecting to {to}"))?;
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

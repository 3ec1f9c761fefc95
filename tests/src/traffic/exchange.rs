//! Sends many bytes to an echo server and compares the echo.

use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::thread;

use super::Stream;
use anyhow::{Context as _, Result, anyhow, ensure};

const CHUNK: usize = 64 * 1024;

/// A reproducible pseudo-random byte stream (xorshift, Marsaglia 2003), which detects lost, duplicated
/// and reordered pieces.
struct Pattern(u64);

impl Pattern {
    fn new() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }

    fn fill(&mut self, buffer: &mut [u8; CHUNK]) {
        for word in buffer.chunks_exact_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes());
        }
    }
}

/// Sends `bytes` (rounded up to 64 KiB) to a [`super::Kind::Echo`], reads the echo at the same time,
/// half-closes, and checks that the echo is exactly what was sent, followed by the end of the stream.
///
/// # Errors
/// When the connection fails, or a byte differs.
pub fn exchange(stream: &Stream, bytes: usize) -> Result<()> {
    let chunks = bytes.div_ceil(CHUNK);
    thread::scope(|scope| {
        let sender = scope.spawn(|| send(stream, chunks));
        let received = receive(stream, chunks);
        let sent = sender
            .join()
            .map_err(|_panic| anyhow!("the sending thread panicked"))?;
        received?;
        sent.context("sending")
    })
}

fn send(mut stream: &Stream, chunks: usize) -> io::Result<()> {
    let mut pattern = Pattern::new();
    let mut chunk = [0; CHUNK];
    for _ in 0..chunks {
        pattern.fill(&mut chunk);
        stream.write_all(&chunk)?;
    }
    stream.shutdown(Shutdown::Write)
}

fn receive(mut stream: &Stream, chunks: usize) -> Result<()> {
    let mut pattern = Pattern::new();
    let (mut expected, mut found) = ([0; CHUNK], [0; CHUNK]);
    for index in 0..chunks {
        pattern.fill(&mut expected);
        stream
            .read_exact(&mut found)
            .with_context(|| format!("receiving chunk {index} of {chunks}"))?;
        let differs = expected
            .iter()
            .zip(&found)
            .position(|(expected, found)| expected != found);
        if let Some(at) = differs {
            anyhow::bail!(
                "byte {} of the echo differs from the sent byte",
                index * CHUNK + at
            );
        }
    }
    ensure!(
        stream.read(&mut found).context("waiting for the end")? == 0,
        "the echo is longer than the sent data"
    );
    Ok(())
}

//! Idle connections, for measuring the memory of each.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use anyhow::{Context as _, Result};

/// Opens `count` connections to a [`super::Kind::Http`] server and sends one request on each, so that the
/// whole path is established. The connections stay open until the value is dropped.
///
/// # Errors
/// When a connection fails.
pub fn open(to: SocketAddr, count: usize) -> Result<Vec<TcpStream>> {
    let mut streams = Vec::with_capacity(count);
    let mut buffer = [0; 4096];
    for index in 0..count {
        let mut stream =
            TcpStream::connect(to).with_context(|| format!("connection {index} to {to}"))?;
        stream
            .write_all(b"GET / HTTP/1.1\r\nhost: idle\r\n\r\n")
            .context("sending")?;
        let received = stream.read(&mut buffer).context("receiving")?;
        anyhow::ensure!(received > 0, "connection {index} to {to} ended");
        streams.push(stream);
    }
    Ok(streams)
}

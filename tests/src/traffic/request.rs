//! One HTTP request, with the addresses that both ends see.

use std::io::{self, Read as _, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::http;
use super::{IoMode, Stream};

/// The answer of a [`super::Kind::Http`] server, and the addresses of the client's socket.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The client's address from the view of the server.
    pub peer: SocketAddr,
    /// The server's local address from the view of the server.
    pub local: SocketAddr,
    /// The marker that the server returned.
    pub marker: String,
    /// The client's `getsockname`.
    pub client_local: SocketAddr,
    /// The client's `getpeername`.
    pub client_peer: SocketAddr,
    /// The time from connect to the last byte.
    pub latency: Duration,
}

#[derive(Deserialize)]
struct Body {
    peer: SocketAddr,
    local: SocketAddr,
    marker: String,
}

/// Connects and sends one request.
///
/// # Errors
/// When connecting, sending or receiving fails or takes longer than `limit`.
pub fn get(address: SocketAddr, marker: &str, limit: Duration) -> io::Result<Answer> {
    get_as(IoMode::Blocking, address, marker, limit)
}

/// As [`get`], with an I/O mode.
///
/// # Errors
/// When connecting, sending or receiving fails or takes longer than `limit`.
pub fn get_as(
    io_mode: IoMode,
    address: SocketAddr,
    marker: &str,
    limit: Duration,
) -> io::Result<Answer> {
    let started = Instant::now();
    let mut stream = Stream::connect(address, io_mode, limit)?;
    let mut answer = get_over(&mut stream, marker, limit)?;
    answer.latency = started.elapsed();
    Ok(answer)
}

/// Sends one request over an open connection.
///
/// # Errors
/// When sending or receiving fails or takes longer than `limit`.
pub fn get_over(stream: &mut Stream, marker: &str, limit: Duration) -> io::Result<Answer> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let started = Instant::now();
    let request = format!(
        "GET / HTTP/1.1\r\nhost: test\r\n{}: {marker}\r\n\r\n",
        http::MARKER
    );
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    let response = loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        bytes.extend_from_slice(&buffer[..count]);
        if let Some(response) = http::response(&bytes)? {
            break response;
        }
    };
    let latency = started.elapsed();
    let body: Body = serde_json::from_slice(&bytes[response.body..response.length])?;
    Ok(Answer {
        status: response.status,
        peer: body.peer,
        local: body.local,
        marker: body.marker,
        client_local: stream.local_addr()?,
        client_peer: stream.peer_addr()?,
        latency,
    })
}

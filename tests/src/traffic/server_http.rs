//! The HTTP server: one epoll loop, as many connections as the file limit allows.
//!
//! The body of a response is JSON: the address of the client, the local address of the server, and the
//! marker of the request.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::epoll::{Epoll, Interest};
use super::http;
use super::server::Shared;

/// The token of the listener.
const LISTENER: u64 = u64::MAX;
/// The interval at which the loop checks whether to stop.
const TIMEOUT: Duration = Duration::from_millis(100);
/// The largest head of a request, in bytes; a connection with a longer one is closed.
const HEAD_BYTES: usize = 16 * 1024;

struct Connection {
    stream: TcpStream,
    peer: SocketAddr,
    local: SocketAddr,
    pending: Vec<u8>,
}

enum Next {
    Keep,
    Close,
}

/// Serves until the server is stopped.
pub(super) fn run(shared: &Shared) -> io::Result<()> {
    shared.listener.set_nonblocking(true)?;
    let mut epoll = Epoll::new()?;
    epoll.add(&shared.listener, LISTENER, Interest::Input)?;
    let mut connections: Vec<Option<Connection>> = Vec::new();
    let mut free: Vec<usize> = Vec::new();
    let mut tokens = Vec::new();
    let mut buffer = vec![0; HEAD_BYTES];
    while !shared.stopping.load(Ordering::Relaxed) {
        tokens.clear();
        tokens.extend(epoll.wait(TIMEOUT)?);
        for token in &tokens {
            if *token == LISTENER {
                if !shared.stopping.load(Ordering::Relaxed) {
                    accept_all(shared, &epoll, &mut connections, &mut free)?;
                }
                continue;
            }
            let Ok(slot) = usize::try_from(*token) else {
                continue;
            };
            let Some(entry) = connections.get_mut(slot) else {
                continue;
            };
            let Some(connection) = entry else { continue };
            if matches!(connection.answer(&mut buffer), Ok(Next::Keep)) {
                continue;
            }
            *entry = None;
            free.push(slot);
        }
    }
    Ok(())
}

fn accept_all(
    shared: &Shared,
    epoll: &Epoll,
    connections: &mut Vec<Option<Connection>>,
    free: &mut Vec<usize>,
) -> io::Result<()> {
    loop {
        let (stream, peer) = match shared.listener.accept() {
            Ok(accepted) => accepted,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        shared.accepted.fetch_add(1, Ordering::Relaxed);
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        // A connection that was closed already has no address.
        let Ok(local) = stream.local_addr() else {
            continue;
        };
        let slot = free.pop().unwrap_or_else(|| {
            connections.push(None);
            connections.len() - 1
        });
        epoll.add(&stream, slot as u64, Interest::Input)?;
        let connection = Connection {
            stream,
            peer: canonical(peer),
            local: canonical(local),
            pending: Vec::new(),
        };
        if let Some(entry) = connections.get_mut(slot) {
            *entry = Some(connection);
        }
    }
}

/// Converts an IPv4-mapped address to IPv4.
fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

impl Connection {
    fn answer(&mut self, buffer: &mut [u8]) -> io::Result<Next> {
        let count = match self.stream.read(buffer) {
            Ok(0) => return Ok(Next::Close),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(Next::Keep),
            Err(error) => return Err(error),
        };
        if self.pending.is_empty() {
            let (used, next) = self.answer_all(&buffer[..count])?;
            self.pending.extend_from_slice(&buffer[used..count]);
            return Ok(next);
        }
        self.pending.extend_from_slice(&buffer[..count]);
        let pending = std::mem::take(&mut self.pending);
        let (used, next) = self.answer_all(&pending)?;
        self.pending.extend_from_slice(&pending[used..]);
        if self.pending.len() > HEAD_BYTES {
            Ok(Next::Close)
        } else {
            Ok(next)
        }
    }

    /// Answers every complete request in `bytes`. Returns the number of bytes of these requests.
    fn answer_all(&mut self, bytes: &[u8]) -> io::Result<(usize, Next)> {
        let mut used = 0;
        while let Some(request) = http::request(&bytes[used..])? {
            used += request.length;
            let close = request.close;
            self.respond(request.marker, close)?;
            if close {
                return Ok((used, Next::Close));
            }
        }
        Ok((used, Next::Keep))
    }

    fn respond(&mut self, marker: &str, close: bool) -> io::Result<()> {
        let body = format!(
            r#"{{"peer":"{}","local":"{}","marker":"{marker}"}}"#,
            self.peer, self.local
        );
        let connection = if close { "close" } else { "keep-alive" };
        let response = format!(
            "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\nconnection: {connection}\r\n\r\n{body}",
            body.len(),
        );
        // The response fits into the send buffer if the client reads its answers. Otherwise the connection
        // is closed.
        self.stream.write_all(response.as_bytes())
    }
}

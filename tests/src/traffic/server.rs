//! Servers that run in threads of this process.

use std::collections::HashMap;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv6Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, SockRef, Socket, Type};

use super::server_http;
use super::{IoMode, Stream};
use crate::net::Host;

/// The size of one read or write in a bulk transfer, in bytes.
pub const BULK_BYTES: usize = 256 * 1024;
/// The backlog of a listener; larger than the number of connections of any test.
const BACKLOG: i32 = 8192;
/// The stack size of a connection's thread, in bytes.
const STACK_BYTES: usize = 128 * 1024;
/// The greeting of [`Kind::First`].
pub const GREETING: &[u8] = b"220 ready when you are\r\n";

/// The behaviour of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    /// Echoes, and half-closes after the client has.
    Echo,
    /// Reads to the end, then sends the number of bytes, 8 bytes big-endian.
    Sink,
    /// Sends until the client closes.
    Source,
    /// Sends a greeting first, then echoes.
    First,
    /// Waits for the first byte, then resets the connection.
    Reset,
    /// Never reads; keeps the connection until the client resets it or the server stops.
    NoRead,
    /// HTTP/1.1 with keep-alive. The body has the addresses that the server sees, and the marker.
    Http,
}

/// A running server. It stops when it is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) listener: TcpListener,
    pub(crate) stopping: AtomicBool,
    pub(crate) accepted: AtomicU64,
    live: Mutex<HashMap<u64, TcpStream>>,
}

impl Host {
    /// Runs a server on this host, on both address families; port 0 lets the kernel choose.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve(&self, kind: Kind, port: u16) -> Result<Server> {
        self.serve_as(kind, port, IoMode::Blocking)
    }

    /// As [`Self::serve`], with an I/O mode.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve_as(&self, kind: Kind, port: u16, io_mode: IoMode) -> Result<Server> {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        self.enter(|| serve_as(kind, any, io_mode))
    }
}

/// Runs a server in the calling thread's network namespace.
///
/// # Errors
/// When the address is taken.
pub fn serve(kind: Kind, address: SocketAddr) -> Result<Server> {
    serve_as(kind, address, IoMode::Blocking)
}

/// As [`serve`], with an I/O mode. HTTP is always event-driven.
///
/// # Errors
/// When the address is taken.
pub fn serve_as(kind: Kind, address: SocketAddr, io_mode: IoMode) -> Result<Server> {
    let listener = listen(address)?;
    let address = listener
        .local_addr()
        .context("reading the server's address")?;
    let shared = Arc::new(Shared {
        listener,
        stopping: AtomicBool::new(false),
        accepted: AtomicU64::new(0),
        live: Mutex::default(),
    });
    let run = Arc::clone(&shared);
    let thread = thread::spawn(move || {
        let outcome = match kind {
            Kind::Http => server_http::run(&run),
            other => accept(other, io_mode, &run),
        };
        if let Err(error) = outcome {
            eprintln!("the server at {address} has failed: {error}");
        }
    });
    Ok(Server {
        address,
        shared,
        thread: Some(thread),
    })
}

impl Server {
    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.address.port()
    }

    /// The number of accepted connections so far.
    #[must_use]
    pub fn accepted(&self) -> u64 {
        self.shared.accepted.load(Ordering::Relaxed)
    }

    /// Serves until the process ends.
    pub fn run_forever(mut self) {
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        // Wakes the thread that blocks in accept(). Fails only if the thread has ended.
        drop(SockRef::from(&self.shared.listener).shutdown(Shutdown::Both));
        for stream in self.shared.live().values() {
            drop(stream.shutdown(Shutdown::Both));
        }
        if let Some(thread) = self.thread.take() {
            drop(thread.join());
        }
    }
}

impl Shared {
    fn live(&self) -> std::sync::MutexGuard<'_, HashMap<u64, TcpStream>> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn listen(address: SocketAddr) -> Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)
        .context("creating a listening socket")?;
    socket
        .set_reuse_address(true)
        .context("setting SO_REUSEADDR")?;
    if address.is_ipv6() {
        socket
            .set_only_v6(false)
            .context("listening on both families")?;
    }
    socket
        .bind(&address.into())
        .with_context(|| format!("binding to {address}"))?;
    socket
        .listen(BACKLOG)
        .with_context(|| format!("listening on {address}"))?;
    Ok(socket.into())
}

fn accept(kind: Kind, io_mode: IoMode, shared: &Arc<Shared>) -> io::Result<()> {
    loop {
        let stream = match shared.listener.accept() {
            Ok((stream, _)) => stream,
            Err(_) if shared.stopping.load(Ordering::Relaxed) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
            Err(error) => return Err(error),
        };
        let id = shared.accepted.fetch_add(1, Ordering::Relaxed);
        shared.live().insert(id, stream.try_clone()?);
        let stream = Stream::new(stream, io_mode)?;
        let run = Arc::clone(shared);
        thread::Builder::new()
            .stack_size(STACK_BYTES)
            .spawn(move || {
                // A reset by the client and a stop of the server are normal ends of a connection.
                drop(serve_connection(kind, &stream));
                run.live().remove(&id);
            })?;
    }
}

fn serve_connection(kind: Kind, stream: &Stream) -> io::Result<()> {
    match kind {
        Kind::Echo | Kind::Http => echo(stream),
        Kind::Sink => sink(stream),
        Kind::Source => source(stream),
        Kind::Reset => reset(stream),
        Kind::NoRead => no_read(stream),
        Kind::First => {
            let mut writer = stream;
            writer.write_all(GREETING)?;
            echo(stream)
        }
    }
}

fn echo(mut stream: &Stream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            return stream.shutdown(Shutdown::Write);
        }
        stream.write_all(&buffer[..count])?;
    }
}

fn sink(mut stream: &Stream) -> io::Result<()> {
    let mut buffer = vec![0; BULK_BYTES];
    let mut total = 0u64;
    loop {
        let count = stream.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        total += count as u64;
    }
    stream.write_all(&total.to_be_bytes())?;
    stream.shutdown(Shutdown::Write)
}

fn source(mut stream: &Stream) -> io::Result<()> {
    let buffer = vec![0x5a; BULK_BYTES];
    loop {
        stream.write_all(&buffer)?;
    }
}

fn reset(mut stream: &Stream) -> io::Result<()> {
    stream.read_exact(&mut [0])?;
    // With SO_LINGER of zero, closing sends RST (socket(7)). The copy of this socket in the list of live
    // ones is closed right after this.
    SockRef::from(stream).set_linger(Some(Duration::ZERO))
}

fn no_read(stream: &Stream) -> io::Result<()> {
    loop {
        thread::sleep(Duration::from_millis(50));
        // A reset by the client is a pending error of the socket. After a stop of the server, the
        // socket is shut down and `peek` returns 0.
        if stream.take_error()?.is_some() || stream.peek(&mut [0])? == 0 {
            return Ok(());
        }
    }
}

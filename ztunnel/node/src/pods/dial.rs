//! The connections that the proxy opens inside a pod's network namespace: those that leave the pod, and
//! deliveries to its applications.
//!
//! A delivery has the client's address. If it had the port of one of the client's own plaintext
//! connections to the same application, both connections would have the same pair of addresses in one
//! namespace, and the later one would not open. So a delivery takes its port from a range that clients do
//! not use: Linux connects from 32768 to 60999 by default (`ip_local_port_range`).

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, Socket, TcpKeepalive, Type};
use tokio::net::{TcpStream, UdpSocket};

use super::Netns;
use super::routing::DELIVERY_MARK;

/// The ports of deliveries.
const PORTS: RangeInclusive<u16> = 61000..=65535;
/// How many of these ports are tried before the kernel chooses one, which may be one of the client's. A
/// single client can have thousands of connections to one application: if half of the range is open, one
/// delivery in 65,536 finds none free.
const TRIES: usize = 16;

/// Ports that only privileged processes may bind by default.
const PRIVILEGED: RangeInclusive<u16> = 1..=1023;
/// Those that clients use; servers have the lower ones.
const PRIVILEGED_SOURCES: RangeInclusive<u16> = 600..=1023;
/// The ports of servers among them (IANA's registry of service names): IPMI, IPP, LDAPS, Kerberos, DNS and
/// FTP over TLS, rsync, IMAPS, POP3S.
const SERVICES: [u16; 10] = [623, 631, 636, 749, 853, 873, 989, 990, 993, 995];

thread_local! {
    /// The next port to try. Each worker begins at another one.
    static NEXT: Cell<u16> = Cell::new(rand::random_range(PORTS));
}

/// How the proxy opens a connection from inside a pod.
#[derive(Debug, Clone)]
pub struct Dial {
    /// How long to wait for the connection to open.
    pub timeout: Duration,
    /// The keep-alive probes, if enabled.
    pub keepalive: Option<TcpKeepalive>,
}

impl Dial {
    /// Connects to `to` from inside the namespace with the pod's address; the connection leaves the pod.
    /// By `mark` the kernel programs recognize the proxy's own sockets. Must be called on a worker
    /// thread, which stays in the namespace.
    ///
    /// # Errors
    /// As `connect(2)`; `TimedOut` after the timeout.
    pub async fn connect(&self, netns: &Netns, to: SocketAddr, mark: u32) -> io::Result<TcpStream> {
        self.connect_after(netns, to, mark, |_| Ok(())).await
    }

    /// As [`Self::connect`]; `before` gets the socket before it connects.
    ///
    /// # Errors
    /// As [`Self::connect`], and the error of `before`.
    pub async fn connect_after(
        &self,
        netns: &Netns,
        to: SocketAddr,
        mark: u32,
        before: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> io::Result<TcpStream> {
        netns.enter().map_err(io::Error::other)?;
        let socket = self.socket(to)?;
        socket.set_mark(mark)?;
        before(&socket)?;
        self.completed(begin(socket, to)?, to).await
    }

    /// Delivers to the application at `to`, over the loopback device of the namespace: the application
    /// sees the address `client`. Must be called on a worker thread, which stays in the namespace.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub async fn deliver(
        &self,
        netns: &Netns,
        to: SocketAddr,
        client: IpAddr,
    ) -> io::Result<TcpStream> {
        netns.enter().map_err(io::Error::other)?;
        self.completed(self.begin_delivery(to, client)?, to).await
    }

    /// Opens a UDP socket inside the namespace that is connected to `to` and has the mark. The kernel
    /// picks a random port. Must be called on a worker thread.
    ///
    /// # Errors
    /// As `socket(2)` and `connect(2)`.
    pub fn connect_udp(netns: &Netns, to: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
        netns.enter().map_err(io::Error::other)?;
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_mark(mark)?;
        socket.connect(&to.into())?;
        UdpSocket::from_std(socket.into())
    }

    fn socket(&self, to: SocketAddr) -> io::Result<Socket> {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(keepalive) = &self.keepalive {
            socket.set_tcp_keepalive(keepalive)?;
        }
        Ok(socket)
    }

    fn begin_delivery(&self, to: SocketAddr, client: IpAddr) -> io::Result<Attempt> {
        if client.is_ipv4() != to.is_ipv4() {
            // The application could not see a client address of the other family.
            let socket = self.socket(to)?;
            socket.bind_device(Some(b"lo"))?;
            return begin(socket, to)?.again(to);
        }
        let mut waited = false;
        for _ in 0..TRIES {
            match self.begin_from(to, (client, next_port()).into()) {
                // Over loopback the handshake is complete by now, as a rule. Either the
                // application's queue is full, or the client has a connection with this port:
                // another one shows which.
                Ok(Attempt::Waiting(_)) if !waited => waited = true,
                Err(error) if is_taken(&error) => {}
                other => return other,
            }
            leave_run();
        }
        self.begin_from(to, (client, 0).into())
    }

    fn begin_from(&self, to: SocketAddr, client: SocketAddr) -> io::Result<Attempt> {
        let socket = self.socket(to)?;
        bind_to_client(&socket, client)?;
        begin(socket, to)?.again(to)
    }

    /// Waits until a connection is open.
    async fn completed(&self, attempt: Attempt, to: SocketAddr) -> io::Result<TcpStream> {
        match attempt {
            Attempt::Done(socket) => TcpStream::from_std(socket.into()),
            Attempt::Waiting(socket) => {
                let finished = tokio::time::timeout(self.timeout, finish(socket)).await;
                finished.unwrap_or_else(|_elapsed| {
                    Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("{to} did not answer within {:?}", self.timeout),
                    ))
                })
            }
        }
    }
}

/// A connection attempt.
enum Attempt {
    Done(Socket),
    Waiting(Socket),
}

impl Attempt {
    /// Calls `connect(2)` again. Over loopback the handshake is complete when the first call returns,
    /// unless the application's queue is full. The second call reports that, which saves a round
    /// through the event loop for every delivery.
    fn again(self, to: SocketAddr) -> io::Result<Self> {
        match self {
            Self::Done(socket) => Ok(Self::Done(socket)),
            Self::Waiting(socket) => begin(socket, to),
        }
    }
}

fn begin(socket: Socket, to: SocketAddr) -> io::Result<Attempt> {
    match socket.connect(&to.into()) {
        Ok(()) => Ok(Attempt::Done(socket)),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINPROGRESS | libc::EALREADY)
            ) =>
        {
            Ok(Attempt::Waiting(socket))
        }
        Err(error) => Err(error),
    }
}

async fn finish(socket: Socket) -> io::Result<TcpStream> {
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    match stream.take_error()? {
        None => Ok(stream),
        Some(error) => Err(error),
    }
}

fn next_port() -> u16 {
    let port = NEXT.get();
    NEXT.set(if port == *PORTS.end() {
        *PORTS.start()
    } else {
        port + 1
    });
    port
}

/// Goes on from a random port of the range. Connections that stay open have runs of adjacent ports, because
/// each worker takes one after the other: the ports next to one that is taken are probably taken too.
fn leave_run() {
    NEXT.set(rand::random_range(PORTS));
}

/// Whether another socket has the port: one that listens, or a connection between the same addresses.
fn is_taken(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::EADDRINUSE | libc::EADDRNOTAVAIL)
    )
}

/// Whether only privileged processes may bind a port by default.
#[must_use]
pub fn is_privileged(port: u16) -> bool {
    PRIVILEGED.contains(&port)
}

/// Binds a socket that stands for an application's to the address that the application has chosen, and to
/// a privileged port if the application's is one: some servers (NFS) accept no others. The application's
/// own port is taken. Without the right to bind privileged ports (CAP_NET_BIND_SERVICE) the port is any.
///
/// # Errors
/// As `bind(2)`.
pub fn bind_source(socket: &Socket, source: IpAddr, port: u16) -> io::Result<()> {
    if is_privileged(port) {
        for _ in 0..TRIES {
            let port = rand::random_range(PRIVILEGED_SOURCES);
            if SERVICES.contains(&port) {
                continue;
            }
            match socket.bind(&SocketAddr::new(source, port).into()) {
                Ok(()) => return Ok(()),
                Err(error) if is_taken(&error) => {}
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => break,
                Err(error) => return Err(error),
            }
        }
    }
    setsockopt(&socket.as_fd(), sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

/// Prepares a delivery socket with the client's address. `IP_TRANSPARENT` allows any source address,
/// the mark routes the replies back to the proxy, and inbound capture ignores the connection because
/// the socket is bound to the loopback device. With port 0 the kernel chooses one at `connect(2)`.
pub(super) fn bind_to_client(socket: &Socket, client: SocketAddr) -> io::Result<()> {
    match client {
        SocketAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        SocketAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_mark(DELIVERY_MARK)?;
    socket.bind_device(Some(b"lo"))?;
    if client.port() == 0 {
        setsockopt(&socket.as_fd(), sockopt::IpBindAddressNoPort, &true)?;
    } else {
        // Deliveries to several applications share the port.
        socket.set_reuse_address(true)?;
    }
    socket.bind(&client.into())
}

#[cfg(test)]
mod tests;

//! The sockets the proxy uses inside a pod's namespace: what it listens on and how it dials.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use mesh::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg, setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::delivery::DELIVERY_MARK;
use super::{Error, Netns};

/// Where redirected outbound TCP arrives, on loopback (wire facts, "Ports").
/// Where redirected DNS arrives, on loopback.
const DNS: u16 = 15053;
/// Where applications say by SOCKS where they want to go, on loopback.
const SOCKS5: u16 = 15080;

/// Connections that may wait for `accept`, per listener and worker.
const BACKLOG: i32 = 4096;

/// One worker's listeners in one pod. All workers' listeners on a port form a `SO_REUSEPORT`
/// group, and a connection stays with the worker the kernel picked.
#[derive(Debug)]
pub struct Listeners {
    /// 127.0.0.1:15001.
    pub outbound_v4: std::net::TcpListener,
    /// [::1]:15001; absent where the pod has no IPv6.
    pub outbound_v6: Option<std::net::TcpListener>,
    /// Port 15006, both families.
    pub inbound: std::net::TcpListener,
    /// Port 15008, both families; none where the pod speaks HBONE itself and has the port.
    pub hbone: Option<std::net::TcpListener>,
    /// Where DNS is captured.
    pub dns: Vec<DnsSockets>,
    /// 127.0.0.1:15080 and [::1]:15080, where they are wanted.
    pub socks5: Vec<std::net::TcpListener>,
}

/// Port 15053 of one loopback address.
#[derive(Debug)]
pub struct DnsSockets {
    /// For queries in datagrams.
    pub udp: std::net::UdpSocket,
    /// For queries on connections.
    pub tcp: std::net::TcpListener,
}

/// What a pod is served besides its connections. A port of these that somebody else has is no reason
/// to leave the pod without a mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extra {
    /// Names are answered.
    Dns,
    /// Applications may say by SOCKS where they want to go.
    Socks5,
    /// Tunnels end at the proxy. No extra but for a pod that speaks HBONE itself
    /// (`native_tunnel`): they may end at that one instead.
    Tunnels,
}

impl Extra {
    /// The port that it takes in the pod.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Dns => DNS,
            Self::Socks5 => SOCKS5,
            Self::Tunnels => HBONE_PORT,
        }
    }
}

/// The listeners of all workers in one pod.
#[derive(Debug)]
pub struct Opened {
    /// A set for each worker.
    pub sets: Vec<Listeners>,
    /// What was wanted and is in none of the sets, because somebody else in the pod has its port.
    pub without: Vec<(Extra, Error)>,
}

impl Opened {
    /// Whether this was wanted and is not there.
    #[must_use]
    pub fn lacks(&self, extra: Extra) -> bool {
        self.without.iter().any(|(without, _)| *without == extra)
    }
}

impl Listeners {
    /// Opens the listeners of all workers in the namespace of the calling thread, and those for
    /// what is wanted besides. An extra is there for all workers or for none.
    ///
    /// # Errors
    /// Names the address that could not be bound.
    pub fn open(workers: usize, wanted: &[Extra]) -> Result<Opened, Error> {
        let v6 = std::path::Path::new("/proc/net/if_inet6").exists();
        let sets: Result<Vec<_>, _> = (0..workers).map(|_| Self::bare(v6)).collect();
        let mut sets = sets?;
        let mut without = Vec::new();
        if !wanted.contains(&Extra::Tunnels) {
            sets.iter_mut()
                .try_for_each(|set| set.add(Extra::Tunnels, v6))?;
        }
        for &extra in wanted {
            let added = sets.iter_mut().try_for_each(|set| set.add(extra, v6));
            match added {
                Err(error) if error.is_taken() => {
                    sets.iter_mut().for_each(|set| set.remove(extra));
                    without.push((extra, error));
                }
                other => other?,
            }
        }
        Ok(Opened { sets, without })
    }

    /// What no pod can be served without.
    fn bare(v6: bool) -> Result<Self, Error> {
        Ok(Self {
            outbound_v4: listen((Ipv4Addr::LOCALHOST, OUTBOUND_PORT).into())?,
            outbound_v6: v6.then(|| listen_v6(OUTBOUND_PORT)).transpose()?.flatten(),
            inbound: listen((any(v6), INBOUND_PORT).into())?,
            hbone: None,
            dns: Vec::new(),
            socks5: Vec::new(),
        })
    }

    fn add(&mut self, extra: Extra, v6: bool) -> Result<(), Error> {
        match extra {
            Extra::Tunnels => self.hbone = Some(listen((any(v6), HBONE_PORT).into())?),
            Extra::Dns => self.dns = DnsSockets::open(v6)?,
            Extra::Socks5 => {
                let v6 = v6.then(|| listen_v6(SOCKS5)).transpose()?.flatten();
                let v4 = listen((Ipv4Addr::LOCALHOST, SOCKS5).into())?;
                self.socks5 = [Some(v4), v6].into_iter().flatten().collect();
            }
        }
        Ok(())
    }

    fn remove(&mut self, extra: Extra) {
        match extra {
            Extra::Tunnels => self.hbone = None,
            Extra::Dns => self.dns.clear(),
            Extra::Socks5 => self.socks5.clear(),
        }
    }
}

/// All addresses, of both families where there are both.
fn any(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

/// On the IPv6 loopback address; none where the device does not have it.
fn listen_v6(port: u16) -> Result<Option<std::net::TcpListener>, Error> {
    match listen((Ipv6Addr::LOCALHOST, port).into()) {
        Err(error) if error.is_absent() => Ok(None),
        other => other.map(Some),
    }
}

impl DnsSockets {
    fn open(v6: bool) -> Result<Vec<Self>, Error> {
        let at = |ip: IpAddr| {
            let address = (ip, DNS).into();
            Ok(Self {
                udp: receive(address)?,
                tcp: listen(address)?,
            })
        };
        let mut all = vec![at(Ipv4Addr::LOCALHOST.into())?];
        match v6.then(|| at(Ipv6Addr::LOCALHOST.into())) {
            Some(Err(error)) if error.is_absent() => {}
            other => all.extend(other.transpose()?),
        }
        Ok(all)
    }
}

/// A UDP socket of one of the workers. The kernel gives all datagrams of a client to the same one.
fn receive(address: SocketAddr) -> Result<std::net::UdpSocket, Error> {
    let open = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::DGRAM,
            Some(Protocol::UDP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.set_reuse_port(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        Ok(socket.into())
    };
    open().map_err(|source| Error::Listen { address, source })
}

/// Takes a UDP socket out of its `SO_REUSEPORT` group: the kernel gives what comes to the others,
/// and where there is none it tells the sender that nobody is there. What this one was given before
/// can still be read, and it can still send to anybody.
///
/// Of such a group a connected socket is passed over (`reuseport_select_sock` in
/// net/core/sock_reuseport.c, Linux 5.4). It is connected to itself, from where nothing comes.
///
/// # Errors
/// As `connect(2)`.
pub fn step_aside(socket: &UdpSocket) -> io::Result<()> {
    SockRef::from(socket).connect(&socket.local_addr()?.into())
}

/// Sends a datagram that bears another of the machine's addresses than the one that the socket is
/// bound to.
///
/// # Errors
/// As `sendmsg(2)`.
pub async fn send_from(
    socket: &UdpSocket,
    source: Ipv4Addr,
    to: SocketAddr,
    datagram: &[u8],
) -> io::Result<()> {
    let SocketAddr::V4(to) = to else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    let source = libc::in_pktinfo {
        ipi_ifindex: 0,
        ipi_spec_dst: libc::in_addr {
            s_addr: u32::from(source).to_be(),
        },
        ipi_addr: libc::in_addr { s_addr: 0 },
    };
    let send = || {
        let bytes = [IoSlice::new(datagram)];
        let control = [ControlMessage::Ipv4PacketInfo(&source)];
        let to = SockaddrIn::from(to);
        sendmsg(
            socket.as_raw_fd(),
            &bytes,
            &control,
            MsgFlags::empty(),
            Some(&to),
        )?;
        Ok(())
    };
    socket.async_io(Interest::WRITABLE, send).await
}

fn listen(address: SocketAddr) -> Result<std::net::TcpListener, Error> {
    let open = || {
        let socket = Socket::new(
            Domain::for_address(address),
            Type::STREAM,
            Some(Protocol::TCP),
        )?;
        if address.is_ipv6() {
            socket.set_only_v6(!address.ip().is_unspecified())?;
        }
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        // Accepted sockets inherit it.
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(|source| Error::Listen { address, source })
}

/// Whose address a dialled connection bears.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The pod's; the connection leaves the pod and capture must leave it alone.
    Pod {
        /// The mark by which the kernel programs know the proxy's own sockets.
        mark: u32,
    },
    /// The client's: the connection is delivered to the pod itself, over its loopback device.
    Client {
        /// The address the application shall see.
        address: IpAddr,
    },
}

/// How the proxy opens a connection from inside a pod.
#[derive(Debug, Clone)]
pub struct Dial {
    /// How long to wait for the other end.
    pub timeout: Duration,
    /// Keep-alive probes, if any.
    pub keepalive: Option<TcpKeepalive>,
}

impl Dial {
    /// Connects to `to` from inside the namespace. Must be called on a worker thread, which
    /// stays in the namespace.
    ///
    /// # Errors
    /// As `connect(2)`; `TimedOut` after the timeout.
    pub async fn connect(
        &self,
        netns: &Netns,
        to: SocketAddr,
        source: Source,
    ) -> io::Result<TcpStream> {
        self.connect_after(netns, to, source, |_| Ok(())).await
    }

    /// As [`Self::connect`]; the socket is shown to `before` when it is made and not connected yet.
    ///
    /// # Errors
    /// As [`Self::connect`], and what `before` says.
    pub async fn connect_after(
        &self,
        netns: &Netns,
        to: SocketAddr,
        source: Source,
        before: impl FnOnce(&Socket) -> io::Result<()>,
    ) -> io::Result<TcpStream> {
        let socket = self.prepare(netns, to, source)?;
        before(&socket)?;
        match begin(&socket, to, source)? {
            Progress::Done => TcpStream::from_std(socket.into()),
            Progress::Waiting => match tokio::time::timeout(self.timeout, finish(socket)).await {
                Ok(connected) => connected,
                Err(_elapsed) => Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    format!("{to} did not answer within {:?}", self.timeout),
                )),
            },
        }
    }

    /// A UDP socket inside the namespace that is connected to `to`, has a port of its own that the
    /// kernel has picked at random, and bears the mark. Must be called on a worker thread.
    ///
    /// # Errors
    /// As `socket(2)` and `connect(2)`.
    pub fn datagrams(netns: &Netns, to: SocketAddr, mark: u32) -> io::Result<UdpSocket> {
        netns.enter().map_err(io::Error::other)?;
        let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP))?;
        socket.set_nonblocking(true)?;
        socket.set_mark(mark)?;
        socket.connect(&to.into())?;
        UdpSocket::from_std(socket.into())
    }

    fn prepare(&self, netns: &Netns, to: SocketAddr, source: Source) -> io::Result<Socket> {
        netns.enter().map_err(io::Error::other)?;
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        if let Some(keepalive) = &self.keepalive {
            socket.set_tcp_keepalive(keepalive)?;
        }
        match source {
            Source::Pod { mark } => socket.set_mark(mark)?,
            Source::Client { address } if address.is_ipv4() == to.is_ipv4() => {
                spoof(&socket, address)?;
            }
            // A client of the other family has no address that the application could see.
            Source::Client { .. } => socket.bind_device(Some(b"lo"))?,
        }
        Ok(socket)
    }
}

/// How far a connection attempt has come.
enum Progress {
    Done,
    Waiting,
}

fn begin(socket: &Socket, to: SocketAddr, source: Source) -> io::Result<Progress> {
    let to = to.into();
    let mut attempt = progress(socket.connect(&to))?;
    // Over loopback the handshake is over by the time connect() returns, unless the
    // application's queue is full. Asked again it says so, which saves a trip through the event
    // loop for every delivery.
    if matches!(
        (&attempt, source),
        (Progress::Waiting, Source::Client { .. })
    ) {
        attempt = progress(socket.connect(&to))?;
    }
    Ok(attempt)
}

fn progress(attempt: io::Result<()>) -> io::Result<Progress> {
    match attempt {
        Ok(()) => Ok(Progress::Done),
        Err(error)
            if matches!(
                error.raw_os_error(),
                Some(libc::EINPROGRESS | libc::EALREADY)
            ) =>
        {
            Ok(Progress::Waiting)
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

/// Prepares a delivery socket that bears the client's address: any address may be bound
/// (`IP_TRANSPARENT`), replies find their way back by the mark, and because the socket is bound
/// to the loopback device, inbound capture sees where the connection comes from and lets it be.
pub(super) fn spoof(socket: &Socket, address: IpAddr) -> io::Result<()> {
    match address {
        IpAddr::V4(_) => socket.set_ip_transparent_v4(true)?,
        IpAddr::V6(_) => socket.set_ip_transparent_v6(true)?,
    }
    socket.set_mark(DELIVERY_MARK)?;
    socket.bind_device(Some(b"lo"))?;
    setsockopt(&socket.as_fd(), sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(address, 0).into())
}

/// Makes dropping `stream` send a reset instead of an orderly close: the peer must not take a
/// broken connection for a finished one.
pub fn abort_on_drop(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot arm a reset");
    }
}

/// The peer's address with v4-mapped addresses unwrapped.
///
/// # Errors
/// When the connection is gone already.
pub fn peer_of(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.peer_addr().map(canonical)
}

/// The address that was dialled, with v4-mapped addresses unwrapped.
///
/// # Errors
/// When the connection is gone already.
pub fn local_of(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.local_addr().map(canonical)
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// Accepts the next connection and unwraps the client's address.
///
/// # Errors
/// As `accept(2)`.
pub async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    let (stream, client) = listener.accept().await?;
    Ok((stream, canonical(client)))
}

#[cfg(test)]
mod tests;

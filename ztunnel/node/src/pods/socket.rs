//! The proxy's listeners inside a pod's network namespace.

use std::io::{self, IoSlice};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd};
use std::time::Duration;

use mesh::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use nix::sys::socket::{ControlMessage, MsgFlags, SockaddrIn, sendmsg};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::Error;
use crate::bpf::ListenerRole;

/// The port for redirected DNS, on loopback.
const DNS: u16 = 15053;
/// The port of the SOCKS server, on loopback.
const SOCKS5: u16 = 15080;

/// An address that leads nowhere: one for documentation (RFC 5737).
const NOWHERE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);

/// The queue of connections that wait for `accept`, per listener and worker.
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
    /// Port 15008, both families; none if the pod speaks HBONE itself and has the port.
    pub hbone: Option<std::net::TcpListener>,
    /// The listeners that the kernel programs give captured connections to; none where rules capture.
    pub captured: Option<CapturedListeners>,
    /// The sockets for redirected DNS; empty if DNS is off.
    pub dns: Vec<DnsSockets>,
    /// 127.0.0.1:15080 and [::1]:15080; empty if SOCKS is off.
    pub socks5: Vec<std::net::TcpListener>,
}

/// Listeners for both families. `getsockname()` of a connection that they accept returns the address that
/// the application dialled.
#[derive(Debug)]
pub struct CapturedListeners {
    /// For all captured connections but those of `dns`.
    pub outbound: std::net::TcpListener,
    /// For connections to resolvers; none if DNS is off.
    pub dns: Option<std::net::TcpListener>,
}

/// Marks a socket, before it listens, as a listener of the proxy.
pub type MarkListener<'a> = &'a dyn Fn(BorrowedFd<'_>, ListenerRole) -> io::Result<()>;

/// Port 15053 of one loopback address.
#[derive(Debug)]
pub struct DnsSockets {
    /// For queries over UDP.
    pub udp: std::net::UdpSocket,
    /// For queries over TCP.
    pub tcp: std::net::TcpListener,
}

/// A listener that a pod can be served without. If another process in the pod has its port, the pod is
/// enrolled without that listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OptionalListener {
    /// The DNS server.
    Dns,
    /// The SOCKS server.
    Socks5,
    /// The HBONE server. It is optional only for a pod that speaks HBONE itself (`native_tunnel`) and
    /// may terminate its tunnels.
    Hbone,
}

impl OptionalListener {
    /// The port of the listener in the pod.
    #[must_use]
    pub const fn port(self) -> u16 {
        match self {
            Self::Dns => DNS,
            Self::Socks5 => SOCKS5,
            Self::Hbone => HBONE_PORT,
        }
    }
}

/// The listeners of all workers in one pod.
#[derive(Debug)]
pub struct Opened {
    /// A set for each worker.
    pub sets: Vec<Listeners>,
    /// The requested listeners that are in none of the sets.
    pub missing: Vec<Missing>,
}

/// An optional listener that could not be opened, because another process in the pod has its port.
#[derive(Debug)]
pub struct Missing {
    /// The listener.
    pub listener: OptionalListener,
    /// The error of the attempt.
    pub error: Error,
}

impl Opened {
    /// Whether this listener was requested and could not be opened.
    #[must_use]
    pub fn lacks(&self, listener: OptionalListener) -> bool {
        let mut missing = self.missing.iter();
        missing.any(|missing| missing.listener == listener)
    }
}

impl Listeners {
    /// Opens the listeners of all workers in the calling thread's network namespace, with the requested
    /// optional ones. An optional listener is open for all workers or for none. `mark` is given where
    /// programs capture. It gets each inbound and captured socket before the socket listens: another
    /// process may serve the port, and the kernel shares connections out from then on.
    ///
    /// # Errors
    /// When an address cannot be bound, or a socket cannot be marked; the error names the address.
    pub fn open(
        workers: usize,
        requested: &[OptionalListener],
        mark: Option<MarkListener<'_>>,
    ) -> Result<Opened, Error> {
        let v6 = std::path::Path::new("/proc/net/if_inet6").exists();
        let sets: Result<Vec<_>, _> = (0..workers).map(|_| Self::required(v6, mark)).collect();
        let mut sets = sets?;
        let mut missing = Vec::new();
        if !requested.contains(&OptionalListener::Hbone) {
            sets.iter_mut()
                .try_for_each(|set| set.add(OptionalListener::Hbone, v6))?;
        }
        for &listener in requested {
            let add = |set: &mut Self| -> Result<(), Error> {
                set.add(listener, v6)?;
                match (listener, &mut set.captured, mark) {
                    (OptionalListener::Dns, Some(captured), Some(mark)) => {
                        captured.dns = Some(listen_captured(v6, DNS, mark)?);
                        Ok(())
                    }
                    _ => Ok(()),
                }
            };
            match sets.iter_mut().try_for_each(add) {
                Err(error) if error.is_in_use() => {
                    sets.iter_mut().for_each(|set| set.remove(listener));
                    missing.push(Missing { listener, error });
                }
                other => other?,
            }
        }
        Ok(Opened { sets, missing })
    }

    /// The listeners that every pod needs.
    fn required(v6: bool, mark: Option<MarkListener<'_>>) -> Result<Self, Error> {
        let inbound = (any(v6), INBOUND_PORT).into();
        let mark_inbound = |socket: &Socket| {
            mark.map_or(Ok(()), |mark| mark(socket.as_fd(), ListenerRole::Inbound))
        };
        let captured = |mark| {
            Ok(CapturedListeners {
                outbound: listen_captured(v6, OUTBOUND_PORT, mark)?,
                dns: None,
            })
        };
        Ok(Self {
            outbound_v4: listen((Ipv4Addr::LOCALHOST, OUTBOUND_PORT).into())?,
            outbound_v6: v6.then(|| listen_v6(OUTBOUND_PORT)).transpose()?.flatten(),
            inbound: listen_after(inbound, |_| Ok(()), mark_inbound)?,
            captured: mark.map(captured).transpose()?,
            hbone: None,
            dns: Vec::new(),
            socks5: Vec::new(),
        })
    }

    fn add(&mut self, listener: OptionalListener, v6: bool) -> Result<(), Error> {
        match listener {
            OptionalListener::Hbone => self.hbone = Some(listen((any(v6), HBONE_PORT).into())?),
            OptionalListener::Dns => self.dns = DnsSockets::open(v6)?,
            OptionalListener::Socks5 => {
                let v6 = v6.then(|| listen_v6(SOCKS5)).transpose()?.flatten();
                let v4 = listen((Ipv4Addr::LOCALHOST, SOCKS5).into())?;
                self.socks5 = [Some(v4), v6].into_iter().flatten().collect();
            }
        }
        Ok(())
    }

    fn remove(&mut self, listener: OptionalListener) {
        match listener {
            OptionalListener::Hbone => self.hbone = None,
            OptionalListener::Dns => {
                self.dns.clear();
                if let Some(captured) = &mut self.captured {
                    captured.dns = None;
                }
            }
            OptionalListener::Socks5 => self.socks5.clear(),
        }
    }
}

/// The unspecified address, of IPv6 if the pod has IPv6.
fn any(v6: bool) -> IpAddr {
    if v6 {
        Ipv6Addr::UNSPECIFIED.into()
    } else {
        Ipv4Addr::UNSPECIFIED.into()
    }
}

/// Listens on the IPv6 loopback address; none if the loopback device does not have it.
fn listen_v6(port: u16) -> Result<Option<std::net::TcpListener>, Error> {
    match listen((Ipv6Addr::LOCALHOST, port).into()) {
        Err(error) if error.is_absent() => Ok(None),
        other => other.map(Some),
    }
}

impl DnsSockets {
    fn open(v6: bool) -> Result<Vec<Self>, Error> {
        let open_on = |ip: IpAddr| {
            let address = (ip, DNS).into();
            Ok(Self {
                udp: bind_udp(address)?,
                tcp: listen(address)?,
            })
        };
        let mut all = vec![open_on(Ipv4Addr::LOCALHOST.into())?];
        match v6.then(|| open_on(Ipv6Addr::LOCALHOST.into())) {
            Some(Err(error)) if error.is_absent() => {}
            other => all.extend(other.transpose()?),
        }
        Ok(all)
    }
}

/// Binds the UDP socket of one worker. The kernel gives all datagrams of a client to the same socket of
/// the `SO_REUSEPORT` group.
fn bind_udp(address: SocketAddr) -> Result<std::net::UdpSocket, Error> {
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

/// Takes a UDP socket out of its `SO_REUSEPORT` group. The kernel gives new datagrams to the other
/// sockets of the group; if there is none, the sender gets a port-unreachable error. The socket can
/// still receive the datagrams in its queue, and send to any address.
///
/// The kernel skips a connected socket of such a group (`reuseport_select_sock` in
/// net/core/sock_reuseport.c, Linux 5.4). So the socket is connected to its own address, which sends
/// nothing.
///
/// # Errors
/// As `connect(2)`.
pub fn leave_reuseport_group(socket: &UdpSocket) -> io::Result<()> {
    SockRef::from(socket).connect(&socket.local_addr()?.into())
}

/// Sends a datagram with a source address other than the one that the socket is bound to.
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
    listen_after(address, |_| Ok(()), |_| Ok(()))
}

/// Listens for captured connections. The kernel programs give the listener connections to any address; it
/// cannot be reached otherwise. On an IPv6 socket the address is in mapped form: bound to another one, the
/// socket would accept no IPv4.
pub(crate) fn listen_captured(
    v6: bool,
    port: u16,
    mark: MarkListener<'_>,
) -> Result<std::net::TcpListener, Error> {
    let address: IpAddr = if v6 {
        NOWHERE.to_ipv6_mapped().into()
    } else {
        NOWHERE.into()
    };
    listen_after(
        (address, port).into(),
        // Accepted sockets inherit the option, and answer from the address that was dialled.
        |socket| match address {
            IpAddr::V6(_) => {
                socket.set_only_v6(false)?;
                socket.set_ip_transparent_v6(true)
            }
            IpAddr::V4(_) => socket.set_ip_transparent_v4(true),
        },
        |socket| mark(socket.as_fd(), ListenerRole::Captured),
    )
}

/// Listens; `prepare` gets the socket before it is bound, `before` the bound socket before it listens.
fn listen_after(
    address: SocketAddr,
    prepare: impl FnOnce(&Socket) -> io::Result<()>,
    before: impl FnOnce(&Socket) -> io::Result<()>,
) -> Result<std::net::TcpListener, Error> {
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
        // Accepted sockets inherit this option.
        socket.set_tcp_nodelay(true)?;
        socket.set_nonblocking(true)?;
        prepare(&socket)?;
        socket.bind(&address.into())?;
        before(&socket)?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    open().map_err(|source| Error::Listen { address, source })
}

/// Makes dropping `stream` send a reset instead of an orderly close, so that the peer does not take an
/// aborted connection for a complete one.
pub fn abort_on_drop(stream: &TcpStream) {
    if let Err(error) = SockRef::from(stream).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "cannot set SO_LINGER: the connection may end without a reset");
    }
}

/// The peer's address with v4-mapped addresses unwrapped.
///
/// # Errors
/// When the connection has ended already.
pub fn peer_of(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.peer_addr().map(canonical)
}

/// The local address, which the client dialled, with v4-mapped addresses unwrapped.
///
/// # Errors
/// When the connection has ended already.
pub fn local_of(stream: &TcpStream) -> io::Result<SocketAddr> {
    stream.local_addr().map(canonical)
}

pub(super) fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(address.ip().to_canonical(), address.port())
}

/// The mark (`SO_MARK`) of an accepted connection: that of the client's socket, if the connection stays in
/// the pod (`tcp_fwmark_accept`).
///
/// # Errors
/// As `getsockopt(2)`.
pub fn mark_of(stream: &TcpStream) -> io::Result<u32> {
    SockRef::from(stream).mark()
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

//! Looks up sockets and destroys them over `NETLINK_SOCK_DIAG` (linux/sock_diag.h and
//! linux/inet_diag.h).

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
    Parseable as _,
};
use netlink_packet_sock_diag::inet::{
    ExtensionFlags, InetRequest, InetResponseHeader, SocketId, StateFlags,
};
use netlink_packet_sock_diag::{
    AF_INET, AF_INET6, IPPROTO_TCP, SockDiagDestroy, SockDiagMessage, TCP_CLOSE, TCP_LISTEN,
    TCP_SYN_RECV, TCP_SYN_SENT, TCP_TIME_WAIT,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};

use super::{Connection, Error, ListedSocket};

/// `INET_DIAG_NOCOOKIE`, both halves.
const NO_COOKIE: u64 = u64::MAX;
/// Requests in one datagram. Their answers wait in the socket's buffer, which holds more than
/// twice as many by default.
const BATCH: usize = 64;
/// The longest answer: a message with every attribute is shorter than 1 KiB.
const ANSWER_BYTES: usize = 8 << 10;
/// `sizeof(struct inet_diag_msg)`: attributes follow.
const MESSAGE_BYTES: usize = 72;
/// `INET_DIAG_CGROUP_ID` (Linux 5.9).
const CGROUP_ID: u16 = 21;
/// More datagrams than the sockets of any pod fill; bounds the loop that reads them.
const MAX_DATAGRAMS: usize = 10_000;
/// The most devices on which bound sockets are looked up; a pod has one or two.
const MAX_DEVICES: usize = 64;

/// The TCP state of a socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State(u8);

impl State {
    /// Whether the handshake is under way.
    pub(super) fn is_opening(self) -> bool {
        matches!(self.0, TCP_SYN_SENT | TCP_SYN_RECV)
    }

    /// Whether the connection can still be used.
    fn is_alive(self) -> bool {
        !matches!(self.0, TCP_TIME_WAIT | TCP_CLOSE | TCP_LISTEN)
    }
}

/// A socket in the kernel's table.
#[derive(Debug, Clone, Copy)]
pub(super) struct FoundSocket {
    pub(super) state: State,
    /// The kernel's number of the socket; never reused.
    pub(super) cookie: u64,
    /// The index of the device that it is bound to, or 0.
    pub(super) device: u32,
}

/// A socket that a process has open.
#[derive(Debug, Clone, Copy)]
pub(in super::super) struct OpenSocket {
    /// Its own address.
    pub(in super::super) local: SocketAddr,
    /// Whether it listens.
    pub(in super::super) listens: bool,
    /// The id of the cgroup in which it was created.
    pub(in super::super) cgroup: u64,
}

impl OpenSocket {
    /// Reads a `struct inet_diag_msg` with its attributes. None if no process has the socket open, or
    /// the kernel does not name its cgroup.
    fn parse(message: &[u8]) -> Option<Self> {
        let header = InetResponseHeader::parse(message).ok()?;
        let attributes = NlasIterator::new(message.get(MESSAGE_BYTES..)?);
        let mut cgroups = attributes
            .filter_map(Result::ok)
            .filter(|attribute| attribute.kind() == CGROUP_ID)
            .filter_map(|attribute| attribute.value().try_into().ok());
        let id = header.socket_id;
        let socket = Self {
            local: SocketAddr::new(id.source_address.to_canonical(), id.source_port),
            listens: header.state == TCP_LISTEN,
            cgroup: u64::from_ne_bytes(cgroups.next()?),
        };
        (header.inode != 0).then_some(socket)
    }
}

/// A request about the socket of a connection.
fn request(connection: &Connection, device: u32, cookie: u64) -> SockDiagMessage {
    let Connection { local, remote, .. } = connection;
    SockDiagMessage::InetRequest(request_between(*local, *remote, device, cookie))
}

fn request_between(local: SocketAddr, remote: SocketAddr, device: u32, cookie: u64) -> InetRequest {
    InetRequest {
        family: if local.is_ipv4() { AF_INET } else { AF_INET6 },
        protocol: IPPROTO_TCP,
        extensions: ExtensionFlags::empty(),
        states: StateFlags::all(),
        socket_id: SocketId {
            source_port: local.port(),
            destination_port: remote.port(),
            source_address: local.ip(),
            destination_address: remote.ip(),
            interface_id: device,
            cookie: swap_words(cookie).to_ne_bytes(),
        },
    }
}

/// Converts between a cookie and its form in messages: two words, the lower one first
/// (net/core/sock_diag.c).
const fn swap_words(cookie: u64) -> u64 {
    if cfg!(target_endian = "big") {
        cookie.rotate_left(32)
    } else {
        cookie
    }
}

/// An answer: the sequence number of its request, and the kernel's message.
struct Answer<'a> {
    sequence: u32,
    kind: u16,
    payload: &'a [u8],
}

/// A netlink socket for the network namespace in which it was opened.
pub(in super::super) struct Diag {
    socket: Socket,
    sequence: u32,
}

impl Diag {
    pub(in super::super) fn open() -> Result<Self, Error> {
        let failed = |source| Error::Netlink {
            what: "open a socket for requests about sockets",
            source,
        };
        let mut socket = Socket::new(NETLINK_SOCK_DIAG).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&NetlinkAddress::new(0, 0)).map_err(failed)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Looks up connections that are alive.
    pub(super) fn find(
        &mut self,
        wanted: &[Connection],
    ) -> Result<Vec<Option<FoundSocket>>, Error> {
        let mut found = self.find_bound(0, wanted)?;
        // The kernel finds a socket that is bound to a device only if the request names that device.
        // Any application may bind a socket, and must not escape termination that way.
        if found.iter().any(Option::is_none) {
            for device in devices()? {
                self.find_missing(device, wanted, &mut found)?;
            }
        }
        if !wanted.is_empty() && found.iter().all(Option::is_none) {
            Self::open()?.check_tcp_support()?;
        }
        Ok(found)
    }

    fn find_missing(
        &mut self,
        device: u32,
        wanted: &[Connection],
        found: &mut [Option<FoundSocket>],
    ) -> Result<(), Error> {
        let missing = wanted.iter().zip(found.iter());
        let missing: Vec<Connection> = missing
            .filter(|(_, found)| found.is_none())
            .map(|(connection, _)| *connection)
            .collect();
        let on_device = self.find_bound(device, &missing)?;
        let slots = found.iter_mut().filter(|found| found.is_none());
        for (slot, socket) in slots.zip(on_device) {
            *slot = socket;
        }
        Ok(())
    }

    fn find_bound(
        &mut self,
        device: u32,
        wanted: &[Connection],
    ) -> Result<Vec<Option<FoundSocket>>, Error> {
        let mut found = vec![None; wanted.len()];
        for (wanted, found) in wanted.chunks(BATCH).zip(found.chunks_mut(BATCH)) {
            let requests = wanted.iter().map(|connection| {
                let cookie = connection.cookie.map_or(NO_COOKIE, u64::from);
                request(connection, device, cookie)
            });
            let mut failed = None;
            self.exchange(requests, 0, |at, answer| {
                if answer.kind == NLMSG_ERROR {
                    match error_code(answer.payload) {
                        Err(error) if error.kind() != io::ErrorKind::NotFound => {
                            failed = Some(error);
                        }
                        _ => {}
                    }
                } else if let (Some(slot), Some(connection)) = (found.get_mut(at), wanted.get(at)) {
                    *slot = read(answer.payload, connection);
                }
            })?;
            if let Some(source) = failed {
                let what = "look up sockets";
                return Err(Error::Netlink { what, source });
            }
        }
        Ok(found)
    }

    /// Destroys sockets. Returns the kernel's answer for each.
    pub(super) fn destroy(
        &mut self,
        sockets: &[ListedSocket],
    ) -> Result<Vec<io::Result<()>>, Error> {
        let mut results = Vec::with_capacity(sockets.len());
        for sockets in sockets.chunks(BATCH) {
            let requests = sockets.iter().map(|ListedSocket { connection, found }| {
                SockDiagDestroy::new(request(connection, found.device, found.cookie))
            });
            let mut answers: Vec<io::Result<()>> = sockets.iter().map(|_| Ok(())).collect();
            self.exchange(requests, NLM_F_ACK, |at, answer| {
                if let Some(slot) = answers.get_mut(at)
                    && answer.kind == NLMSG_ERROR
                {
                    *slot = error_code(answer.payload);
                }
            })?;
            results.append(&mut answers);
        }
        Ok(results)
    }

    /// Sends requests in one datagram and reads one answer to each. The kernel answers them before the
    /// call that sends them returns, so this function never waits.
    fn exchange<R: NetlinkSerializable>(
        &mut self,
        requests: impl ExactSizeIterator<Item = R>,
        flags: u16,
        mut handle: impl FnMut(usize, Answer<'_>),
    ) -> Result<(), Error> {
        let count = requests.len();
        let first = self.sequence.wrapping_add(1);
        self.send(requests, NLM_F_REQUEST | flags)?;
        let mut missing = count;
        while missing > 0 {
            self.receive(|answer| {
                let at = usize::try_from(answer.sequence.wrapping_sub(first));
                if let Some(at) = at.ok().filter(|at| *at < count) {
                    missing = missing.saturating_sub(1);
                    handle(at, answer);
                }
            })?;
        }
        Ok(())
    }

    fn send<R: NetlinkSerializable>(
        &mut self,
        requests: impl Iterator<Item = R>,
        flags: u16,
    ) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            header.flags = flags;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
            message.finalize();
            let start = bytes.len();
            bytes.resize(start + message.buffer_len(), 0);
            message.serialize(bytes.get_mut(start..).unwrap_or_default());
        }
        let sent = self.socket.send(&bytes, 0);
        sent.map(drop).map_err(|source| Error::Netlink {
            what: "send a request about sockets",
            source,
        })
    }

    /// Reads one datagram from the kernel.
    fn receive(&self, mut handle: impl FnMut(Answer<'_>)) -> Result<(), Error> {
        let mut bytes: Vec<u8> = Vec::with_capacity(ANSWER_BYTES);
        let received = self.socket.recv_from(&mut bytes, libc::MSG_DONTWAIT);
        let (_length, sender) = received.map_err(|source| Error::Netlink {
            what: "read an answer about sockets",
            source,
        })?;
        if sender.port_number() != 0 {
            return Ok(());
        }
        let mut rest: &[u8] = &bytes;
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest).map_err(|_short| Error::Answer {
                problem: "it is shorter than its length field",
            })?;
            handle(Answer {
                sequence: message.sequence_number(),
                kind: message.message_type(),
                payload: message.payload(),
            });
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    /// Lists the sockets that a process has open: listeners, and connections that are established.
    pub(in super::super) fn list_open(&mut self) -> Result<Vec<OpenSocket>, Error> {
        let mut sockets = Vec::new();
        for any in [Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()] {
            let any = SocketAddr::new(any, 0);
            let mut request = request_between(any, any, 0, NO_COOKIE);
            request.states = StateFlags::LISTEN | StateFlags::ESTABLISHED;
            let request = SockDiagMessage::InetRequest(request);
            self.send(std::iter::once(request), NLM_F_REQUEST | NLM_F_DUMP)?;
            let mut ended = None;
            for _ in 0..MAX_DATAGRAMS {
                self.receive(|answer| match answer.kind {
                    NLMSG_DONE | NLMSG_ERROR => ended = Some(error_code(answer.payload)),
                    _ => sockets.extend(OpenSocket::parse(answer.payload)),
                })?;
                if ended.is_some() {
                    break;
                }
            }
            ended.unwrap_or(Ok(())).map_err(|source| Error::Netlink {
                what: "list sockets",
                source,
            })?;
        }
        Ok(sockets)
    }

    /// Checks whether the kernel supports requests about TCP. "No such socket" and "no such protocol"
    /// are the same error code; a request to list sockets tells them apart.
    fn check_tcp_support(mut self) -> Result<(), Error> {
        let any = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let mut request = request_between(any, any, 0, NO_COOKIE);
        // The shortest list.
        request.states = StateFlags::LISTEN;
        let request = SockDiagMessage::InetRequest(request);
        self.send(std::iter::once(request), NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut unsupported = false;
        self.receive(|answer| {
            unsupported |= matches!(answer.kind, NLMSG_ERROR | NLMSG_DONE)
                && error_code(answer.payload)
                    .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        })?;
        if unsupported {
            Err(Error::NoDiag)
        } else {
            Ok(())
        }
    }
}

/// Reads the error code at the start of an error, an acknowledgement or the end of a list.
fn error_code(payload: &[u8]) -> io::Result<()> {
    let code = ErrorBuffer::new_checked(payload)
        .map_err(io::Error::other)?
        .code();
    code.map_or(Ok(()), |code| {
        Err(io::Error::from_raw_os_error(code.get().saturating_neg()))
    })
}

/// Reads a `struct inet_diag_msg`. None unless it is the requested connection and alive: without such
/// a connection the kernel answers with the listener.
fn read(message: &[u8], wanted: &Connection) -> Option<FoundSocket> {
    let header = InetResponseHeader::parse(message).ok()?;
    let id = header.socket_id;
    let local = SocketAddr::new(id.source_address.to_canonical(), id.source_port);
    let remote = SocketAddr::new(id.destination_address.to_canonical(), id.destination_port);
    let found = FoundSocket {
        state: State(header.state),
        cookie: swap_words(u64::from_ne_bytes(id.cookie)),
        device: id.interface_id,
    };
    let is_wanted = (local, remote) == (wanted.local, wanted.remote);
    (found.state.is_alive() && is_wanted).then_some(found)
}

/// The indices of the devices in the network namespace of the calling thread.
fn devices() -> Result<Vec<u32>, Error> {
    let devices = nix::net::if_::if_nameindex().map_err(|errno| Error::Netlink {
        what: "list devices",
        source: errno.into(),
    })?;
    Ok(devices
        .iter()
        .map(nix::net::if_::Interface::index)
        .take(MAX_DEVICES)
        .collect())
}

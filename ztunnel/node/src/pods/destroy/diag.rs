//! Looks sockets up and destroys them over `NETLINK_SOCK_DIAG` (linux/sock_diag.h and
//! linux/inet_diag.h).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netlink_packet_core::{
    ErrorBuffer, NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable,
};
use netlink_sys::{Socket, SocketAddr as NetlinkAddress, protocols::NETLINK_SOCK_DIAG};

use super::{Connection, Error, ListedSocket};

const SOCK_DIAG_BY_FAMILY: u16 = 20;
const SOCK_DESTROY: u16 = 21;
/// `sizeof(struct inet_diag_req_v2)`.
const REQUEST_BYTES: usize = 56;
/// `sizeof(struct inet_diag_msg)`.
const MESSAGE_BYTES: usize = 72;
/// `INET_DIAG_NOCOOKIE`, both halves.
const NO_COOKIE: u64 = u64::MAX;
/// Requests in one datagram. Their answers wait in the socket's buffer, which holds more than
/// twice as many by default.
const BATCH: usize = 64;
/// The longest answer: a message with every attribute is shorter than 1 KiB.
const ANSWER_BYTES: usize = 8 << 10;
/// A pod has one or two devices; beyond this many a socket bound to one is not looked for.
const MAX_DEVICES: usize = 64;

/// A state of TCP, from include/net/tcp_states.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct State(u8);

impl State {
    const SYN_SENT: Self = Self(2);
    const SYN_RECV: Self = Self(3);
    const TIME_WAIT: Self = Self(6);
    const CLOSE: Self = Self(7);
    const LISTEN: Self = Self(10);

    /// Whether the handshake is still under way.
    pub(super) fn is_opening(self) -> bool {
        matches!(self, Self::SYN_SENT | Self::SYN_RECV)
    }

    /// Whether it is one of a connection that somebody can still use.
    fn is_alive(self) -> bool {
        !matches!(self, Self::TIME_WAIT | Self::CLOSE | Self::LISTEN)
    }
}

/// A socket of the kernel's.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    pub(super) state: State,
    /// Its number; never used again.
    pub(super) cookie: u64,
    /// The index of the device it is bound to, or 0.
    pub(super) device: u32,
}

/// What one request is about.
struct Request {
    kind: u16,
    connection: Connection,
    device: u32,
    cookie: u64,
    states: u32,
}

impl NetlinkSerializable for Request {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        REQUEST_BYTES
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let mut bytes = Vec::with_capacity(REQUEST_BYTES);
        let (local, remote) = (self.connection.local, self.connection.remote);
        let family = if local.is_ipv4() {
            libc::AF_INET
        } else {
            libc::AF_INET6
        };
        // Both are small constants: 2 or 10, and 6.
        bytes.extend([family, libc::IPPROTO_TCP].map(|number| number.to_ne_bytes()[LOW]));
        bytes.extend([0; 2]);
        bytes.extend(self.states.to_ne_bytes());
        bytes.extend(local.port().to_be_bytes());
        bytes.extend(remote.port().to_be_bytes());
        for address in [local.ip(), remote.ip()] {
            match address {
                IpAddr::V4(v4) => {
                    bytes.extend(v4.octets());
                    bytes.extend([0; 12]);
                }
                IpAddr::V6(v6) => bytes.extend(v6.octets()),
            }
        }
        bytes.extend(self.device.to_ne_bytes());
        bytes.extend(halves(self.cookie).into_iter().flatten());
        if let Some(room) = buffer.get_mut(..bytes.len()) {
            room.copy_from_slice(&bytes);
        }
    }
}

/// Where the lowest byte of an int is.
const LOW: usize = if cfg!(target_endian = "little") { 0 } else { 3 };

/// The kernel hands a cookie out as two words, the lower one first (net/core/sock_diag.c).
fn halves(cookie: u64) -> [[u8; 4]; 2] {
    let low = u32::try_from(cookie & u64::from(u32::MAX)).unwrap_or(u32::MAX);
    let high = u32::try_from(cookie >> 32).unwrap_or(u32::MAX);
    [low.to_ne_bytes(), high.to_ne_bytes()]
}

impl From<Request> for NetlinkPayload<Request> {
    fn from(request: Request) -> Self {
        Self::InnerMessage(request)
    }
}

/// An answer: the sequence number of its request and what the kernel says.
struct Answer<'a> {
    sequence: u32,
    kind: u16,
    payload: &'a [u8],
}

/// A socket to the kernel, about the namespace in which it was opened.
pub(super) struct Diag {
    socket: Socket,
    sequence: u32,
}

impl Diag {
    pub(super) fn open() -> Result<Self, Error> {
        let failed = |source| Error::Netlink {
            what: "ask about sockets",
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

    /// Looks connections up that are alive.
    pub(super) fn find(&mut self, wanted: &[Connection]) -> Result<Vec<Option<Found>>, Error> {
        let mut found = self.find_bound(0, wanted)?;
        // The kernel finds a socket that is bound to a device only if that device is named. Any
        // application may bind one, and must not escape in that way.
        if found.iter().any(Option::is_none) {
            for device in devices()? {
                self.find_missing(device, wanted, &mut found)?;
            }
        }
        if !wanted.is_empty() && found.iter().all(Option::is_none) {
            Self::open()?.tells_about_tcp()?;
        }
        Ok(found)
    }

    fn find_missing(
        &mut self,
        device: u32,
        wanted: &[Connection],
        found: &mut [Option<Found>],
    ) -> Result<(), Error> {
        let missing = wanted.iter().zip(found.iter());
        let missing: Vec<Connection> = missing
            .filter(|(_, found)| found.is_none())
            .map(|(connection, _)| *connection)
            .collect();
        let here = self.find_bound(device, &missing)?;
        let places = found.iter_mut().filter(|found| found.is_none());
        for (place, here) in places.zip(here) {
            *place = here;
        }
        Ok(())
    }

    fn find_bound(
        &mut self,
        device: u32,
        wanted: &[Connection],
    ) -> Result<Vec<Option<Found>>, Error> {
        let mut found = vec![None; wanted.len()];
        for (wanted, found) in wanted.chunks(BATCH).zip(found.chunks_mut(BATCH)) {
            let requests = wanted.iter().map(|connection| Request {
                kind: SOCK_DIAG_BY_FAMILY,
                connection: *connection,
                device,
                cookie: connection.cookie.map_or(NO_COOKIE, u64::from),
                states: u32::MAX,
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
                } else if let (Some(place), Some(connection)) = (found.get_mut(at), wanted.get(at))
                {
                    *place = read(answer.payload, connection);
                }
            })?;
            if let Some(source) = failed {
                let what = "look sockets up";
                return Err(Error::Netlink { what, source });
            }
        }
        Ok(found)
    }

    /// Destroys sockets; the kernel's word on each.
    pub(super) fn destroy(
        &mut self,
        targets: &[ListedSocket],
    ) -> Result<Vec<io::Result<()>>, Error> {
        let mut results = Vec::with_capacity(targets.len());
        for targets in targets.chunks(BATCH) {
            let requests = targets.iter().map(|target| Request {
                kind: SOCK_DESTROY,
                connection: target.connection,
                device: target.found.device,
                cookie: target.found.cookie,
                states: u32::MAX,
            });
            let mut answers: Vec<io::Result<()>> = targets.iter().map(|_| Ok(())).collect();
            self.exchange(requests, NLM_F_ACK, |at, answer| {
                if let Some(place) = answers.get_mut(at)
                    && answer.kind == NLMSG_ERROR
                {
                    *place = error_code(answer.payload);
                }
            })?;
            results.append(&mut answers);
        }
        Ok(results)
    }

    /// Sends requests in one datagram and reads one answer to each. The kernel has answered all
    /// of them by the time it has taken them, so nothing is waited for.
    fn exchange(
        &mut self,
        requests: impl ExactSizeIterator<Item = Request>,
        flags: u16,
        mut take: impl FnMut(usize, Answer<'_>),
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
                    take(at, answer);
                }
            })?;
        }
        Ok(())
    }

    fn send(&mut self, requests: impl Iterator<Item = Request>, flags: u16) -> Result<(), Error> {
        let mut bytes = Vec::new();
        for request in requests {
            self.sequence = self.sequence.wrapping_add(1);
            let mut header = NetlinkHeader::default();
            header.flags = flags;
            header.sequence_number = self.sequence;
            let mut message = NetlinkMessage::new(header, NetlinkPayload::from(request));
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

    /// Reads one datagram of the kernel's.
    fn receive(&self, mut take: impl FnMut(Answer<'_>)) -> Result<(), Error> {
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
                problem: "it is shorter than it says",
            })?;
            take(Answer {
                sequence: message.sequence_number(),
                kind: message.message_type(),
                payload: message.payload(),
            });
            let length = usize::try_from(message.length()).unwrap_or(usize::MAX);
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
        Ok(())
    }

    /// "No such socket" and "no such protocol" are the same answer. Listing the listeners tells
    /// them apart.
    fn tells_about_tcp(mut self) -> Result<(), Error> {
        let anything = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), 0);
        let request = Request {
            kind: SOCK_DIAG_BY_FAMILY,
            connection: Connection {
                local: anything,
                remote: anything,
                cookie: None,
            },
            device: 0,
            cookie: NO_COOKIE,
            states: 1 << State::LISTEN.0,
        };
        self.send(std::iter::once(request), NLM_F_REQUEST | NLM_F_DUMP)?;
        let mut absent = false;
        self.receive(|answer| {
            absent |= matches!(answer.kind, NLMSG_ERROR | NLMSG_DONE)
                && error_code(answer.payload)
                    .is_err_and(|error| error.kind() == io::ErrorKind::NotFound);
        })?;
        if absent { Err(Error::NoDiag) } else { Ok(()) }
    }
}

/// Reads the code that an error, an acknowledgement and the end of a list begin with.
fn error_code(payload: &[u8]) -> io::Result<()> {
    let code = ErrorBuffer::new_checked(payload)
        .map_err(io::Error::other)?
        .code();
    code.map_or(Ok(()), |code| {
        Err(io::Error::from_raw_os_error(code.get().saturating_neg()))
    })
}

/// Reads a `struct inet_diag_msg`; none unless it is the connection that was asked for, and
/// alive. The kernel answers with the listener where there is no connection.
fn read(message: &[u8], wanted: &Connection) -> Option<Found> {
    let message: &[u8; MESSAGE_BYTES] = message.first_chunk()?;
    let state = State(message[1]);
    let port = |at: usize| Some(u16::from_be_bytes(*message.get(at..)?.first_chunk()?));
    let word = |at: usize| Some(u32::from_ne_bytes(*message.get(at..)?.first_chunk()?));
    let v4 = i32::from(message[0]) == libc::AF_INET;
    let address = |at: usize| {
        let bytes = message.get(at..)?;
        let address = if v4 {
            IpAddr::V4(Ipv4Addr::from(*bytes.first_chunk::<4>()?))
        } else {
            IpAddr::V6(Ipv6Addr::from(*bytes.first_chunk::<16>()?))
        };
        Some(address.to_canonical())
    };
    let local = SocketAddr::new(address(8)?, port(4)?);
    let remote = SocketAddr::new(address(24)?, port(6)?);
    let found = Found {
        state,
        cookie: u64::from(word(44)?) | u64::from(word(48)?) << 32,
        device: word(40)?,
    };
    let wanted = (wanted.local, wanted.remote);
    (state.is_alive() && (local, remote) == wanted).then_some(found)
}

/// The devices of this namespace.
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

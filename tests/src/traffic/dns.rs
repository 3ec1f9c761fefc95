//! DNS queries of a pod, and a resolver that answers every query with one address.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};

use crate::net::Host;

/// The port of DNS.
pub const DNS: u16 = 53;
/// The type of a record with an IPv4 address (RFC 1035, section 3.2.2).
const A: u8 = 1;
/// The length of a message header, in bytes.
const HEADER: usize = 12;
/// The beginning of an answer record: the name of the question, type A, class IN, TTL 60 s, 4 bytes.
const RECORD: [u8; 12] = [0xc0, 12, 0, A, 0, 1, 0, 0, 0, 60, 0, 4];

/// The transport of a DNS query.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// A UDP socket that is not connected.
    Datagram,
    /// A UDP socket that is connected to the resolver.
    ConnectedDatagram,
    /// A TCP connection.
    Connection,
}

impl Transport {
    /// All transports.
    pub const ALL: [Self; 3] = [Self::Datagram, Self::ConnectedDatagram, Self::Connection];
}

/// A query for the IPv4 addresses of a name.
///
/// # Panics
/// When a label is longer than 255 bytes.
#[must_use]
pub fn query(id: u16, name: &str) -> Vec<u8> {
    let mut message = id.to_be_bytes().to_vec();
    message.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in name.split('.') {
        message.push(u8::try_from(label.len()).expect("a label must have at most 255 bytes"));
        message.extend(label.as_bytes());
    }
    message.extend([0, 0, A, 0, 1]);
    message
}

/// Resolves a name in a pod. Returns the addresses in the order of the answer.
///
/// # Errors
/// Errors of the socket, `TimedOut` or `WouldBlock` after `limit`, and `InvalidData` for a message that is
/// not an answer to the query or comes from another address.
pub fn resolve(
    from: &Host,
    resolver: SocketAddr,
    transport: Transport,
    name: &str,
    limit: Duration,
) -> io::Result<Vec<IpAddr>> {
    from.enter(|| resolve_here(resolver, transport, name, limit))
}

/// As [`resolve`], in the network namespace of the calling thread.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_here(
    resolver: SocketAddr,
    transport: Transport,
    name: &str,
    limit: Duration,
) -> io::Result<Vec<IpAddr>> {
    let query = query(rand::random(), name);
    let response = match transport {
        Transport::Connection => {
            let mut stream = TcpStream::connect(resolver)?;
            stream.set_read_timeout(Some(limit))?;
            write_frame(&mut stream, &query)?;
            read_frame(&mut stream)?
        }
        Transport::Datagram | Transport::ConnectedDatagram => {
            let any: IpAddr = if resolver.is_ipv4() {
                Ipv4Addr::UNSPECIFIED.into()
            } else {
                std::net::Ipv6Addr::UNSPECIFIED.into()
            };
            let socket = UdpSocket::bind((any, 0))?;
            if transport == Transport::ConnectedDatagram {
                socket.connect(resolver)?;
            }
            exchange(&socket, resolver, transport, &query, limit)?
        }
    };
    addresses(&query, &response)
}

/// Resolves a name over a socket that is connected to the resolver.
///
/// # Errors
/// As [`resolve`].
pub fn resolve_over(socket: &UdpSocket, name: &str, limit: Duration) -> io::Result<Vec<IpAddr>> {
    let query = query(rand::random(), name);
    let resolver = socket.peer_addr()?;
    let response = exchange(
        socket,
        resolver,
        Transport::ConnectedDatagram,
        &query,
        limit,
    )?;
    addresses(&query, &response)
}

fn exchange(
    socket: &UdpSocket,
    resolver: SocketAddr,
    transport: Transport,
    query: &[u8],
    limit: Duration,
) -> io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(limit))?;
    if transport == Transport::ConnectedDatagram {
        socket.send(query)?;
    } else {
        socket.send_to(query, resolver)?;
    }
    let mut room = vec![0; 4096];
    let (length, source) = socket.recv_from(&mut room)?;
    if source != resolver {
        return Err(wrong(format!("{source} answered instead of {resolver}")));
    }
    room.truncate(length);
    Ok(room)
}

/// The addresses of a response to this query. The names of its records must be pointers.
fn addresses(query: &[u8], response: &[u8]) -> io::Result<Vec<IpAddr>> {
    let same = response.get(..2) == query.get(..2)
        && response.get(HEADER..query.len()) == query.get(HEADER..);
    let [_, _, flags, code, _, _, _, count, ..] = response else {
        return Err(wrong(format!("{} bytes", response.len())));
    };
    if !same || flags & 0x80 == 0 || code & 0x0f != 0 {
        return Err(wrong(format!("no answer: {response:02x?}")));
    }
    let records = response.get(query.len()..).unwrap_or_default();
    let records = records.chunks_exact(RECORD.len() + 4);
    let address = |record: &[u8]| record.last_chunk::<4>().map(|octets| IpAddr::from(*octets));
    let mut found: Vec<IpAddr> = records.take((*count).into()).filter_map(address).collect();
    found.sort_unstable();
    Ok(found)
}

fn wrong(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

fn read_frame(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_frame(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_long| wrong("too long".to_owned()))?;
    stream.write_all(&[&length.to_be_bytes()[..], message].concat())
}

/// A resolver that answers every query with one IPv4 address and records the queried names.
#[derive(Debug, Clone)]
pub struct Resolver {
    answer: Ipv4Addr,
    delay: Duration,
    queries: Arc<Mutex<Vec<String>>>,
}

impl Resolver {
    /// Serves on a host until the test ends. The address must be a specific one, because an answer must
    /// come from the address that the query was sent to. Each answer is delayed by `delay`.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve(host: &Host, at: SocketAddr, answer: Ipv4Addr, delay: Duration) -> Result<Self> {
        let open = || Ok::<_, io::Error>((UdpSocket::bind(at)?, TcpListener::bind(at)?));
        let (udp, tcp) = host.enter(open).context("opening a resolver's sockets")?;
        let resolver = Self {
            answer,
            delay,
            queries: Arc::default(),
        };
        let serving = resolver.clone();
        thread::spawn(move || serving.datagrams(udp));
        let serving = resolver.clone();
        thread::spawn(move || serving.connections(&tcp));
        Ok(resolver)
    }

    /// The queried names, with repetitions.
    #[must_use]
    pub fn queries(&self) -> Vec<String> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<String>> {
        self.queries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn datagrams(&self, udp: UdpSocket) {
        let udp = Arc::new(udp);
        let mut room = [0; 1024];
        while let Ok((length, client)) = udp.recv_from(&mut room) {
            let (query, udp) = (room.get(..length).unwrap_or_default().to_vec(), udp.clone());
            self.later(move |resolver| {
                if let Some(answer) = resolver.answer(&query) {
                    drop(udp.send_to(&answer, client));
                }
            });
        }
    }

    fn connections(&self, tcp: &TcpListener) {
        while let Ok((mut stream, _)) = tcp.accept() {
            self.later(move |resolver| {
                if let Ok(query) = read_frame(&mut stream)
                    && let Some(answer) = resolver.answer(&query)
                {
                    drop(write_frame(&mut stream, &answer));
                }
            });
        }
    }

    /// Sends an answer after the delay, without delaying other answers.
    fn later(&self, answer: impl FnOnce(&Self) + Send + 'static) {
        let resolver = self.clone();
        thread::spawn(move || {
            thread::sleep(resolver.delay);
            answer(&resolver);
        });
    }

    /// The response: the address for a query of type A, otherwise an empty answer.
    fn answer(&self, query: &[u8]) -> Option<Vec<u8>> {
        let (name, question) = question(query)?;
        self.lock().push(name);
        // Without the records after the question: the resolver does not support EDNS.
        let mut answer = query.get(..question)?.to_vec();
        let kind = *answer.get(question.checked_sub(3)?)?;
        let count = u8::from(kind == A);
        answer
            .get_mut(2..HEADER)?
            .copy_from_slice(&[0x81, 0x80, 0, 1, 0, count, 0, 0, 0, 0]);
        if kind == A {
            answer.extend(RECORD);
            answer.extend(self.answer.octets());
        }
        Some(answer)
    }
}

/// The name in the question of a query, and the end of the question.
fn question(query: &[u8]) -> Option<(String, usize)> {
    let (mut labels, mut at) = (Vec::new(), HEADER);
    loop {
        let length = usize::from(*query.get(at)?);
        let label = query.get(at + 1..at + 1 + length)?;
        at += 1 + length;
        if length == 0 {
            return Some((labels.join("."), at + 4));
        }
        labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
    }
}

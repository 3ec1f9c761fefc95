//! Hears what the sockets of this namespace answer, and sends segments in the name of their
//! peers.

use std::io::{self, Read as _};
use std::net::SocketAddr;
use std::os::fd::AsRawFd as _;
use std::time::{Duration, Instant};

use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};

use super::segment::{Heard, Segment, hear};
use super::{Error, ListedSocket};

/// Connections that one sniffer listens to. The kernel compares each packet of the pod with all
/// of them, and the filter takes about half of what a socket may have for one by default
/// (`net.core.optmem_max`, 20 KiB on older kernels).
pub(super) const MOST: usize = 256;
/// What of a packet is looked at: the longest headers, 60 bytes of IPv4 and 60 of TCP.
const HEADERS: usize = 128;
/// Room for the answers of all connections, several times over.
const BUFFER_BYTES: usize = 4 << 20;

/// An open packet socket, and two to send with.
pub(super) struct Sniffer {
    packets: Socket,
    v4: Option<Socket>,
    v6: Option<Socket>,
}

impl Sniffer {
    /// Listens to these connections, [`MOST`] at most.
    pub(super) fn open(targets: &[ListedSocket]) -> Result<Self, Error> {
        let packets = listen(targets).map_err(|source| Error::Packets {
            what: "listen to packets",
            source,
        })?;
        let needs = |v4: bool| {
            let mut ends = targets.iter().map(|target| target.connection.local);
            ends.any(|end| end.is_ipv4() == v4)
        };
        let raw = |domain: Domain, needed: bool| {
            // IPPROTO_RAW: whoever sends brings the IP header (raw(7)).
            let open = || Socket::new(domain, Type::RAW, Some(Protocol::from(libc::IPPROTO_RAW)));
            let socket = needed.then(open).transpose();
            socket.map_err(|source| Error::Packets {
                what: "open a raw socket",
                source,
            })
        };
        Ok(Self {
            packets,
            v4: raw(Domain::IPV4, needs(true))?,
            v6: raw(Domain::IPV6, needs(false))?,
        })
    }

    /// Sends a segment. To an address of this namespace it goes over loopback, where it is
    /// delivered at once, whatever the reverse path filter thinks of its source.
    pub(super) fn send(&self, segment: &Segment) -> io::Result<()> {
        let socket = match segment.to {
            SocketAddr::V4(_) => self.v4.as_ref(),
            SocketAddr::V6(_) => self.v6.as_ref(),
        };
        let (Some(socket), Some(packet)) = (socket, segment.packet()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        // The port of a raw socket's address is the protocol, which the header names already.
        let to = SocketAddr::new(segment.to.ip(), 0);
        socket.send_to(&packet, &to.into()).map(drop)
    }

    /// Waits for something to be heard and takes everything there is. Empty when `until` came
    /// first.
    pub(super) fn listen(&self, until: Instant, heard: &mut Vec<Heard>) -> io::Result<()> {
        heard.clear();
        let mut bytes = [0; HEADERS];
        while heard.is_empty() {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            // A timeout of less than a microsecond would be none.
            let left = left.max(Duration::from_micros(1));
            self.packets.set_read_timeout(Some(left))?;
            match (&self.packets).read(&mut bytes) {
                Ok(length) => heard.extend(bytes.get(..length).and_then(hear)),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.drain(heard);
        Ok(())
    }

    /// Takes what there is, as much as the buffer holds.
    pub(super) fn drain(&self, heard: &mut Vec<Heard>) {
        let mut bytes = [0; HEADERS];
        // The smallest packet takes more than 256 bytes of it.
        for _ in 0..BUFFER_BYTES / 256 {
            match recv(self.packets.as_raw_fd(), &mut bytes, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => heard.extend(bytes.get(..length).and_then(hear)),
                Err(_empty) => break,
            }
        }
    }
}

/// A packet socket that hears the connections' own ends on every device.
fn listen(targets: &[ListedSocket]) -> io::Result<Socket> {
    // In network byte order.
    let everything = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
    let protocol = Protocol::from(i32::from(everything));
    let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol))?;
    socket.attach_filter(&filter(targets))?;
    nix::sys::socket::setsockopt(
        &socket,
        nix::sys::socket::sockopt::RcvBufForce,
        &BUFFER_BYTES,
    )?;
    Ok(socket)
}

/// A filter of the classic kind (Documentation/networking/filter.rst) that lets TCP headers with
/// these pairs of ports pass. The addresses are compared later.
fn filter(targets: &[ListedSocket]) -> Vec<SockFilter> {
    const LOAD_BYTE: u16 = 0x30;
    const LOAD_HALF: u16 = 0x28;
    const LOAD_WORD: u16 = 0x20;
    const LOAD_WORD_BEHIND: u16 = 0x40;
    const LOAD_V4_HEADER_LENGTH: u16 = 0xb1;
    const SHIFT_RIGHT: u16 = 0x74;
    const IF_EQUAL: u16 = 0x15;
    const IF_ANY_BIT: u16 = 0x45;
    const JUMP: u16 = 0x05;
    const RETURN: u16 = 0x06;
    const TCP: u32 = 6;
    // A jump's numbers say how many instructions are left out if it holds and if not.
    let mut program = vec![
        SockFilter::new(LOAD_BYTE, 0, 0, 0),
        SockFilter::new(SHIFT_RIGHT, 0, 0, 4),
        SockFilter::new(IF_EQUAL, 8, 0, 6),  // IPv6
        SockFilter::new(IF_EQUAL, 0, 11, 4), // not even IPv4: reject
        SockFilter::new(LOAD_BYTE, 0, 0, 9),
        SockFilter::new(IF_EQUAL, 0, 9, TCP), // else reject
        SockFilter::new(LOAD_HALF, 0, 0, 6),
        SockFilter::new(IF_ANY_BIT, 7, 0, 0x1fff), // a later fragment: reject
        SockFilter::new(LOAD_V4_HEADER_LENGTH, 0, 0, 0),
        SockFilter::new(LOAD_WORD_BEHIND, 0, 0, 0),
        SockFilter::new(JUMP, 0, 0, 5), // compare
        // IPv6
        SockFilter::new(LOAD_BYTE, 0, 0, 6),
        SockFilter::new(IF_EQUAL, 0, 2, TCP), // else reject
        SockFilter::new(LOAD_WORD, 0, 0, 40),
        SockFilter::new(JUMP, 0, 0, 1), // compare
        // reject
        SockFilter::new(RETURN, 0, 0, 0),
        // compare
    ];
    let length = u32::try_from(HEADERS).unwrap_or_default();
    for target in targets {
        let (local, remote) = (target.connection.local, target.connection.remote);
        let ports = u32::from(local.port()) << 16 | u32::from(remote.port());
        program.push(SockFilter::new(IF_EQUAL, 0, 1, ports));
        program.push(SockFilter::new(RETURN, 0, 0, length));
    }
    program.push(SockFilter::new(RETURN, 0, 0, 0));
    program
}

//! The kernel's TCP socket tables `/proc/net/tcp` and `/proc/net/tcp6` (proc_net_tcp in the kernel's
//! documentation). They contain the real addresses, not those that the capture programs show to the
//! application.

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;

use super::Host;

/// Both tables of the calling thread's network namespace.
const TABLES: [&str; 2] = ["/proc/thread-self/net/tcp", "/proc/thread-self/net/tcp6"];

/// A TCP socket in the kernel's table. IPv4-mapped addresses are converted to IPv4.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TcpSocket {
    /// The local address.
    pub local: SocketAddr,
    /// The remote address; unspecified for a listener.
    pub remote: SocketAddr,
    /// The state.
    pub state: TcpState,
    /// The inode, as in `/proc/PID/fd`. 0 if no process holds the socket, as in TIME_WAIT.
    pub inode: u64,
}

/// The state of a TCP socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// TCP_ESTABLISHED.
    Established,
    /// TCP_LISTEN.
    Listening,
    /// Any other state.
    Other,
}

impl Host {
    /// Every TCP socket of this host.
    ///
    /// # Errors
    /// When the kernel's tables cannot be read.
    pub fn tcp_sockets(&self) -> io::Result<Vec<TcpSocket>> {
        self.enter(tcp_sockets)
    }
}

/// Every TCP socket of the calling thread's network namespace.
///
/// # Errors
/// When the kernel's tables cannot be read.
pub fn tcp_sockets() -> io::Result<Vec<TcpSocket>> {
    let mut all = Vec::new();
    for table in TABLES {
        all.extend(parse(&fs::read_to_string(table)?));
    }
    Ok(all)
}

/// The other end of a TCP connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FarEnd {
    /// In the same network namespace: a captured connection leads to the proxy's socket there.
    SameNamespace,
    /// Elsewhere, at this address.
    Elsewhere(SocketAddr),
}

/// Where the other end of a connection is, from the socket table of the calling thread's network
/// namespace. None: the socket is not in the table.
///
/// # Errors
/// When the kernel's tables cannot be read.
pub fn far_end(socket: &impl AsFd) -> io::Result<Option<FarEnd>> {
    let inode = nix::sys::stat::fstat(socket)?.st_ino;
    let all = tcp_sockets()?;
    let Some(own) = all.iter().find(|socket| socket.inode == inode) else {
        return Ok(None);
    };
    let is_far_end = |other: &TcpSocket| other.local == own.remote && other.remote == own.local;
    Ok(Some(if all.iter().any(is_far_end) {
        FarEnd::SameNamespace
    } else {
        FarEnd::Elsewhere(own.remote)
    }))
}

fn parse(table: &str) -> impl Iterator<Item = TcpSocket> {
    table.lines().skip(1).filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        Some(TcpSocket {
            local: address(fields.get(1)?)?,
            remote: address(fields.get(2)?)?,
            // include/net/tcp_states.h.
            state: match *fields.get(3)? {
                "01" => TcpState::Established,
                "0A" => TcpState::Listening,
                _ => TcpState::Other,
            },
            inode: fields.get(9)?.parse().ok()?,
        })
    })
}

/// Parses `0100007F:3A99`: 32-bit words in native byte order, and the port.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let port = u16::from_str_radix(port, 16).ok()?;
    let word = |at: usize| {
        let digits = ip.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(digits, 16).ok()?.to_ne_bytes())
    };
    let ip: IpAddr = match ip.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut octets = [0; 16];
            for (at, chunk) in octets.chunks_exact_mut(4).enumerate() {
                chunk.copy_from_slice(&word(at)?);
            }
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some(SocketAddr::new(ip.to_canonical(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(target_endian = "little")]
    #[test]
    fn a_line_of_the_table_is_parsed() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n   \
             0: 0A00020A:1F90 0100007F:3A99 01 00000000:00000000 00:00000000 00000000  1000        0 4242 1\n";
        let found: Vec<_> = parse(table).collect();
        let expected = TcpSocket {
            local: "10.2.0.10:8080".parse().unwrap(),
            remote: "127.0.0.1:15001".parse().unwrap(),
            state: TcpState::Established,
            inode: 4242,
        };
        assert_eq!(found, [expected]);
        assert_eq!(
            address("00000000000000000000000001000000:3A99"),
            Some("[::1]:15001".parse().unwrap())
        );
        assert_eq!(
            address("0000000000000000FFFF00000A00020A:0001"),
            Some("10.2.0.10:1".parse().unwrap())
        );
        assert_eq!(address("0100:1"), None);
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(server).unwrap();
        assert_eq!(far_end(&client).unwrap(), Some(FarEnd::SameNamespace));
        assert!(tcp_sockets().unwrap().iter().any(|socket| {
            (socket.local, socket.state) == (server, TcpState::Listening) && socket.inode != 0
        }));
    }
}

//! What the kernel knows about a socket, whatever its owner is told: the table in
//! `/proc/net/tcp` and `/proc/net/tcp6` (proc_net_tcp in the kernel's documentation).

use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// The remote end of the socket that calls this address its own, in the calling thread's network
/// namespace. For the kernel a captured IPv6 socket is at home on loopback.
pub(super) fn remote_end(local: SocketAddr) -> io::Result<Option<SocketAddr>> {
    let table = match local {
        SocketAddr::V4(_) => "/proc/thread-self/net/tcp",
        SocketAddr::V6(_) => "/proc/thread-self/net/tcp6",
    };
    let table = fs::read_to_string(table)?;
    let on_loopback = SocketAddr::new(Ipv6Addr::LOCALHOST.into(), local.port());
    Ok(find(&table, local).or_else(|| find(&table, on_loopback)))
}

fn find(table: &str, local: SocketAddr) -> Option<SocketAddr> {
    table.lines().skip(1).find_map(|line| {
        let mut fields = line.split_whitespace().skip(1);
        let ends = (fields.next()?, fields.next()?);
        (address(ends.0) == Some(local)).then(|| address(ends.1))?
    })
}

/// Reads `0100007F:3A99`: 32-bit words in the machine's own byte order, and the port.
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
    Some(SocketAddr::new(ip, port))
}

#[cfg(test)]
#[cfg(target_endian = "little")]
mod tests {
    use super::*;

    #[test]
    fn both_tables_are_read() {
        let table =
            "  sl  local_address rem_address   st\n   0: 0A00020A:1F90 0100007F:3A99 01 0\n";
        let local = "10.2.0.10:8080".parse().unwrap();
        assert_eq!(find(table, local), Some("127.0.0.1:15001".parse().unwrap()));
        assert_eq!(find(table, "10.2.0.10:8081".parse().unwrap()), None);
        assert_eq!(
            address("00000000000000000000000001000000:3A99"),
            Some("[::1]:15001".parse().unwrap())
        );
        assert_eq!(address("0100:1"), None);
    }

    #[test]
    fn a_socket_of_this_process_is_found() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let server = listener.local_addr().unwrap();
        let client = std::net::TcpStream::connect(server).unwrap();
        let local = client.local_addr().unwrap();
        assert_eq!(remote_end(local).unwrap(), Some(server));
    }
}

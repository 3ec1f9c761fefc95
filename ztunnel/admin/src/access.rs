//! Who may use the admin server. It listens on loopback, which every process of the machine and every
//! page in a browser on it can reach: a page of another site must not read or change anything, and only
//! root and the proxy's own user may change something.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::http::PageRequest;

/// Refuses requests that a browser sends for a page of another site.
///
/// # Errors
/// The reason, as a line of text.
pub(super) fn check_site(request: &PageRequest) -> Result<(), String> {
    // A name of the attacker's that resolves to 127.0.0.1 makes his page one of this site (DNS
    // rebinding). A client that is no browser may send no host at all (HTTP/1.0).
    if let Some(host) = &request.host
        && !is_loopback(host)
    {
        return Err(format!(
            "The host {host:?} is not a loopback address: use localhost or 127.0.0.1.\n"
        ));
    }
    let same = |host: &String| request.origin == Some(format!("http://{host}"));
    if let Some(origin) = &request.origin
        && !request.host.as_ref().is_some_and(same)
    {
        return Err(format!(
            "A page of {origin:?} may not use the admin interface.\n"
        ));
    }
    // Images, links and forms of other sites come without an origin.
    if let Some(site) = &request.fetch_site
        && !matches!(site.as_str(), "same-origin" | "none")
    {
        return Err(format!(
            "A browser sends this for a page that is {site}: not for the admin interface.\n"
        ));
    }
    Ok(())
}

/// Whether the `Host` header names this machine's loopback device.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.parse::<u16>().is_ok() => name,
        _ => host,
    };
    let address = name
        .strip_prefix('[')
        .and_then(|name| name.strip_suffix(']'))
        .unwrap_or(name);
    address.eq_ignore_ascii_case("localhost")
        || address
            .parse::<IpAddr>()
            .is_ok_and(|address| address.to_canonical().is_loopback())
}

/// Refuses clients that are neither root nor the proxy's own user. The kernel knows the user of the
/// client's socket, because the client is on this machine.
///
/// # Errors
/// The reason, as a line of text.
pub(super) fn check_user(request: &PageRequest) -> Result<(), String> {
    let own = nix::unistd::geteuid().as_raw();
    match confirmed_user_of(request.client, request.server) {
        Ok(Some(user)) if user == 0 || user == own => Ok(()),
        Ok(Some(user)) => Err(format!(
            "Only root and the user {own} may change something here, not the user {user}.\n"
        )),
        Ok(None) => Err(
            "The user of this connection is unknown: the client is not in this \
             network namespace, or it has closed the connection; wait for the response.\n"
                .to_owned(),
        ),
        Err(error) => Err(format!(
            "The user of this connection cannot be read from /proc/thread-self/net: {error}\n"
        )),
    }
}

/// As [`user_of`], asked twice: the kernel may write a line while the client closes its socket, and a user
/// that it has written then is not found again.
fn confirmed_user_of(client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
    let first = user_of(client, server)?;
    let second = user_of(client, server)?;
    Ok(first.filter(|_| first == second))
}

/// The user of the socket at `client` that is connected to `server`, if it is in the network namespace of
/// the calling thread.
fn user_of(client: SocketAddr, server: SocketAddr) -> io::Result<Option<u32>> {
    // An IPv6 socket can connect to an IPv4 address.
    for (file, ends) in [
        ("tcp", ends_in_tcp(client, server)),
        ("tcp6", Some(ends_in_tcp6(client, server))),
    ] {
        let Some(ends) = ends else { continue };
        let table = match fs::read_to_string(format!("/proc/thread-self/net/{file}")) {
            Ok(table) => table,
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if let Some(user) = user_in(&table, &ends) {
            return Ok(Some(user));
        }
    }
    Ok(None)
}

/// The user of the open connection with these ends in the text of `/proc/net/tcp` (proc(5)): a line has
/// its number, both ends, the state, two queues, two timers, the user, a timeout and the inode. A socket
/// that its process has closed has no inode, and the user 0 regardless of who has opened it.
fn user_in(table: &str, ends: &[String; 2]) -> Option<u32> {
    const ESTABLISHED: &str = "01";
    table.lines().find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        match fields[..] {
            [_, client, server, state, _, _, _, user, _, inode, ..]
                if client == ends[0] && server == ends[1] =>
            {
                let is_open = state == ESTABLISHED && inode != "0";
                is_open.then(|| user.parse().ok()).flatten()
            }
            _ => None,
        }
    })
}

fn ends_in_tcp(client: SocketAddr, server: SocketAddr) -> Option<[String; 2]> {
    let end = |at: SocketAddr| match at.ip().to_canonical() {
        IpAddr::V4(v4) => Some(format!(
            "{:08X}:{:04X}",
            u32::from_ne_bytes(v4.octets()),
            at.port()
        )),
        IpAddr::V6(_) => None,
    };
    Some([end(client)?, end(server)?])
}

fn ends_in_tcp6(client: SocketAddr, server: SocketAddr) -> [String; 2] {
    [client, server].map(|at| {
        let v6 = match at.ip() {
            IpAddr::V4(v4) => v4.to_ipv6_mapped(),
            IpAddr::V6(v6) => v6,
        };
        let octets = v6.octets();
        let words = octets.chunks_exact(4).map(|word| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(word);
            format!("{:08X}", u32::from_ne_bytes(bytes))
        });
        format!("{}:{:04X}", words.collect::<String>(), at.port())
    })
}

#[cfg(test)]
mod tests;

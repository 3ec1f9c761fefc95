//! Ports that the proxy needs: each must be free or held by a ztunnel.

use std::fs;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use super::Check;
use settings::Settings;

/// The name of a proxy's process.
const PROXY: &str = "ztunnel";
/// The state LISTEN in /proc/net/tcp.
const LISTEN: &str = "0A";
/// The state of a bound, unconnected socket in /proc/net/udp.
const BOUND: &str = "07";

pub(super) fn examine(settings: &Settings) -> Vec<Check> {
    [
        ("admin", settings.admin),
        ("metrics", settings.metrics),
        ("readiness", settings.readiness),
    ]
    .into_iter()
    .map(|(purpose, address)| server(purpose, address))
    .collect()
}

fn server(purpose: &str, address: SocketAddr) -> Check {
    let name = format!("ports.{purpose}");
    match TcpListener::bind(address) {
        Ok(_free) => Check::ok(name, format!("{address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            match holders(&[address.port()], &[]).first() {
                Some(holder) => Check {
                    name,
                    ..holder.check("")
                },
                None => Check::fail(
                    name,
                    format!("{address} is in use"),
                    format!("stop the process that holds it, or set {purpose}.address"),
                ),
            }
        }
        Err(error) => Check::fail(
            name,
            format!("cannot listen on {address}: {error}"),
            format!("set {purpose}.address to an address of this machine"),
        ),
    }
}

/// A port in use, and the process that holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Holder {
    port: u16,
    /// The process; none if this process may not see it.
    process: Option<Process>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Process {
    id: u32,
    name: String,
}

impl Holder {
    /// The port.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Passes only if a proxy holds the port.
    pub(super) fn check(&self, place: &str) -> Check {
        let port = self.port;
        let name = format!("{place}.port_{port}");
        let remedy = "stop that process or move it to another port: the proxy needs this one";
        match &self.process {
            Some(process) if process.name == PROXY => {
                let detail = format!("port {port} is held by a ztunnel, process {}", process.id);
                Check::ok(name, detail)
            }
            Some(Process { id, name: holder }) => {
                let detail = format!("port {port} is held by {holder}, process {id}");
                Check::fail(name, detail, remedy)
            }
            None => {
                let detail = format!("port {port} is held by a process that this one cannot see");
                Check::fail(name, detail, remedy)
            }
        }
    }
}

/// The holders of these TCP and UDP ports in the calling thread's network namespace. Free ports are
/// left out.
pub(super) fn holders(tcp: &[u16], udp: &[u16]) -> Vec<Holder> {
    let tables = [
        ("tcp", LISTEN, tcp),
        ("tcp6", LISTEN, tcp),
        ("udp", BOUND, udp),
        ("udp6", BOUND, udp),
    ];
    let mut listening: Vec<(u16, u64)> = tables
        .into_iter()
        .filter(|(_, _, ports)| !ports.is_empty())
        .flat_map(|(table, state, ports)| {
            let table = fs::read_to_string(format!("/proc/thread-self/net/{table}"));
            let mut found = listeners(&table.unwrap_or_default(), state);
            found.retain(|(port, _)| ports.contains(port));
            found
        })
        .collect();
    listening.sort_unstable();
    listening.dedup_by_key(|(port, _)| *port);
    if listening.is_empty() {
        return Vec::new();
    }
    let holder = |(port, socket)| Holder {
        port,
        process: owner(Path::new("/proc"), socket),
    };
    listening.into_iter().map(holder).collect()
}

/// The ports and inodes of the sockets in this state, in a table of the format of /proc/net/tcp.
fn listeners(table: &str, state: &str) -> Vec<(u16, u64)> {
    let listener = |line| listener(line, state);
    table.lines().skip(1).filter_map(listener).collect()
}

fn listener(line: &str, state: &str) -> Option<(u16, u64)> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let (_, port) = fields.get(1)?.rsplit_once(':')?;
    let listens = *fields.get(3)? == state;
    let port = u16::from_str_radix(port, 16).ok()?;
    let inode = fields.get(9)?.parse().ok()?;
    listens.then_some((port, inode))
}

/// The first process that has the socket open.
fn owner(processes: &Path, inode: u64) -> Option<Process> {
    let wanted = format!("socket:[{inode}]");
    let entries = fs::read_dir(processes).ok()?.filter_map(Result::ok);
    let mut ids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has = |id: &u32| {
        let open = fs::read_dir(processes.join(id.to_string()).join("fd"));
        open.is_ok_and(|open| {
            open.filter_map(|file| fs::read_link(file.ok()?.path()).ok())
                .any(|target| target.as_os_str() == wanted.as_str())
        })
    };
    let id = ids.find(has)?;
    let name = fs::read_to_string(processes.join(id.to_string()).join("comm")).ok()?;
    Some(Process {
        id,
        name: name.trim_end().to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::doctor::Status;

    const TABLE: &str = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n\
        \x20  0: 0100007F:3A98 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 12345 1 0 100 0 0 10 0\n\
        \x20  1: 0100007F:3A99 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 12346 1 0 20 4 30 10 -1\n\
        \x20  2: 00000000000000000000000001000000:3AAC 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 99 1 0 100 0 0 10 0\n\
        \x20  3: nonsense\n";

    #[test]
    fn listening_sockets_are_found_in_the_kernels_table() {
        assert_eq!(listeners(TABLE, LISTEN), [(15000, 12345), (15020, 99)]);
    }

    #[test]
    fn the_holder_of_a_port_is_named() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let found = holders(&[port], &[]);
        let own = found[0].process.as_ref().unwrap();
        assert_eq!(own.id, std::process::id());
        let check = server("admin", listener.local_addr().unwrap());
        assert_eq!(
            (check.name.as_str(), check.status),
            ("ports.admin", Status::Fail)
        );
        assert!(
            check.detail.contains(&own.id.to_string()),
            "{}",
            check.detail
        );
        drop(listener);
        // A process that another test starts may briefly inherit the socket.
        let until = Instant::now() + Duration::from_secs(5);
        while !holders(&[port], &[]).is_empty() {
            assert!(Instant::now() < until, "{:?}", holders(&[port], &[]));
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    #[test]
    fn the_holder_of_a_udp_port_is_found() {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let port = socket.local_addr().unwrap().port();
        assert_eq!(holders(&[], &[port])[0].port(), port);
        assert!(holders(&[port], &[]).is_empty());
    }

    #[test]
    fn a_proxy_may_hold_its_ports() {
        let held = |name: &str| Holder {
            port: 15006,
            process: Some(Process {
                id: 7,
                name: name.to_owned(),
            }),
        };
        assert_eq!(held("ztunnel").check("pod.a").status, Status::Ok);
        assert_eq!(held("envoy").check("pod.a").status, Status::Fail);
        let unseen = Holder {
            port: 1,
            process: None,
        };
        assert_eq!(unseen.check("pod.a").name, "pod.a.port_1");
    }
}

//! Two pods on one link, connections between them, and the errors that their applications see.

use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use netlink_packet_route::link::LinkAttribute;
use nix::sched::{CloneFlags, unshare};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

use crate::pods::netlab::{add_address, add_default_route, index, set_link_up, veth};

use super::super::super::Netns;
use super::super::{Connection, DestroyMethod, Destroyed, Outcome, destroy_by};

/// An address and port.
pub(super) fn at(address: &str) -> SocketAddr {
    address.parse().unwrap()
}

/// Two pods: 10.11.0.1 and fd11::1, and 10.11.0.2 and fd11::2. What goes to other addresses is
/// never answered.
pub(super) struct World {
    pub(super) client: Netns,
    pub(super) server: Netns,
    /// The thread in whose namespace the client lives ends when this is dropped.
    _alive: (mpsc::Sender<()>, mpsc::Sender<()>),
}

impl World {
    pub(super) fn new() -> Self {
        let (server, server_path, server_alive) = namespace();
        let (client, _, client_alive) = namespace();
        let far = std::fs::File::open(server_path).unwrap();
        client
            .visit(|| {
                link_to(&far);
                set_up(["10.11.0.1", "fd11::1"]);
            })
            .unwrap();
        server.visit(|| set_up(["10.11.0.2", "fd11::2"])).unwrap();
        Self {
            client,
            server,
            _alive: (client_alive, server_alive),
        }
    }

    /// A listener of the server's.
    pub(super) fn listen(&self, address: &str) -> TcpListener {
        let address = at(address);
        let listen = || {
            let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
            if address.is_ipv6() {
                socket.set_only_v6(false).unwrap();
            }
            socket.set_reuse_address(true).unwrap();
            socket.bind(&address.into()).unwrap();
            socket.listen(2048).unwrap();
            socket.into()
        };
        self.server.visit(listen).unwrap()
    }

    /// A socket of the client's.
    pub(super) fn socket(&self, domain: Domain) -> Socket {
        let make = || Socket::new(domain, Type::STREAM, Some(Protocol::TCP)).unwrap();
        self.client.visit(make).unwrap()
    }

    /// Both ends of a new connection.
    pub(super) fn connect(&self, listener: &TcpListener, to: &str) -> JoinMode {
        let to = at(to);
        let socket = self.socket(Domain::for_address(to));
        socket.connect(&to.into()).unwrap();
        let (server, _) = listener.accept().unwrap();
        JoinMode {
            client: socket.into(),
            server,
        }
    }

    /// Destroys connections from one side.
    pub(super) fn destroy(
        &self,
        method: DestroyMethod,
        side: Side,
        connections: &[Connection],
    ) -> Destroyed {
        let netns = match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        };
        let destroyed = netns.visit(|| destroy_by(method, connections)).unwrap();
        let destroyed = destroyed.unwrap();
        assert_eq!(destroyed.method, method);
        assert_eq!(destroyed.outcomes.len(), connections.len());
        destroyed
    }

    /// Destroys connections from one side, all of which are there. With packets that may take
    /// longer than one call does on a busy machine: what goes on is ended by a later one. The node
    /// sweeps twice after a change, and again after the next one.
    pub(super) fn destroy_all(
        &self,
        method: DestroyMethod,
        side: Side,
        connections: &[Connection],
    ) {
        let tries = match method {
            DestroyMethod::Kernel => 1,
            DestroyMethod::Packets => 3,
        };
        let mut left = connections.to_vec();
        let mut failures = Vec::new();
        for number in 0..tries {
            let outcomes = self.destroy(method, side, &left).outcomes;
            failures.clear();
            for (connection, outcome) in std::mem::take(&mut left).into_iter().zip(outcomes) {
                match outcome {
                    Outcome::Destroyed => {}
                    // A reset that was late.
                    Outcome::Gone if number > 0 => {}
                    Outcome::Gone => panic!("{method:?} {side:?}: {connection:?} was not there"),
                    Outcome::Failed(failure) => {
                        left.push(connection);
                        failures.push(failure);
                    }
                }
            }
            if left.is_empty() {
                return;
            }
        }
        panic!("{method:?} {side:?}: {failures:?}");
    }

    /// Destroys one connection from one side.
    pub(super) fn destroy_one(
        &self,
        method: DestroyMethod,
        side: Side,
        connection: Connection,
    ) -> Outcome {
        let mut outcomes = self.destroy(method, side, &[connection]).outcomes;
        outcomes.pop().unwrap()
    }
}

/// From where a connection is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

/// The two ends of a connection.
pub(super) struct JoinMode {
    pub(super) client: TcpStream,
    pub(super) server: TcpStream,
}

impl JoinMode {
    /// The connection as a side sees it.
    pub(super) fn seen_by(&self, side: Side) -> Connection {
        seen(match side {
            Side::Client => &self.client,
            Side::Server => &self.server,
        })
    }

    /// Bytes go through in both directions.
    pub(super) fn is_alive(&self) -> bool {
        let carry = |mut from: &TcpStream, mut to: &TcpStream| {
            let mut byte = [0];
            from.write_all(&[7]).is_ok() && to.read_exact(&mut byte).is_ok() && byte == [7]
        };
        carry(&self.client, &self.server) && carry(&self.server, &self.client)
    }
}

/// The connection of a socket.
pub(super) fn seen(stream: &TcpStream) -> Connection {
    Connection {
        local: stream.local_addr().unwrap(),
        remote: stream.peer_addr().unwrap(),
        cookie: None,
    }
}

/// How long a reset may take to arrive on a busy machine.
const SOON: Duration = Duration::from_secs(5);

/// A thread that reads until it cannot, and says why.
pub(super) fn reader(stream: &TcpStream) -> JoinHandle<io::Result<usize>> {
    let mut stream = stream.try_clone().unwrap();
    stream.set_read_timeout(Some(SOON)).unwrap();
    let thread = std::thread::spawn(move || {
        let mut bytes = vec![0; 1 << 16];
        loop {
            match stream.read(&mut bytes) {
                Ok(1..) => {}
                end => return end,
            }
        }
    });
    // Until it is in read().
    std::thread::sleep(Duration::from_millis(30));
    thread
}

/// Whether the error tells the application that its connection was aborted.
pub(super) fn is_broken(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
    )
}

/// The error that waits at a socket, for which the news may still be under way.
pub(super) fn error_of(stream: &TcpStream) -> Option<io::Error> {
    let started = Instant::now();
    loop {
        let error = SockRef::from(stream).take_error().unwrap();
        if error.is_some() || started.elapsed() > SOON {
            return error;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn namespace() -> (Netns, PathBuf, mpsc::Sender<()>) {
    let (alive, end) = mpsc::channel::<()>();
    let (sender, receiver) = mpsc::channel();
    std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        let thread = nix::unistd::gettid();
        sender
            .send(PathBuf::from(format!("/proc/self/task/{thread}/ns/net")))
            .unwrap();
        // An error is the end of the test.
        end.recv().unwrap_or_default();
    });
    let path = receiver.recv().unwrap();
    (Netns::open(&path).unwrap(), path, alive)
}

const DEVICE: &str = "pod0";

/// A veth pair with one end here and the other one there.
fn link_to(far: &std::fs::File) {
    use std::os::fd::AsRawFd as _;
    let other = vec![
        LinkAttribute::IfName(DEVICE.into()),
        LinkAttribute::NetNsFd(far.as_raw_fd()),
    ];
    veth(DEVICE, other);
}

/// Loopback and the pod's device up, with addresses that can be used at once, and a way to
/// everywhere else.
fn set_up(addresses: [&str; 2]) {
    let device = index(DEVICE);
    set_link_up(1);
    set_link_up(device);
    // The strictest filter: packets of ours must get through it.
    std::fs::write("/proc/sys/net/ipv4/conf/all/rp_filter", "1").unwrap();
    for address in addresses {
        add_address(device, address.parse().unwrap());
    }
    for gateway in ["10.11.0.99", "fd11::99"] {
        add_default_route(device, gateway.parse().unwrap());
    }
}

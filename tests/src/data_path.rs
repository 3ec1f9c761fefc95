//! The data paths of a connection between two pods, and a topology with clients and servers for each.
//!
//! A test case that holds on several data paths is written once, as a function of the [`DataPath`];
//! [`on_paths!`](crate::on_paths) creates a test of it for each. The [`Topology`] places clients and
//! servers at the two ends of the path. [`Topology::dial`] reads the kernel's socket table to find the
//! remote end of a connection, and dials again until the connection is on the path: the proxy carries
//! the first connections of a fast-path key.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use socket2::{Domain, SockRef, Socket, Type};

use crate::net::{FarEnd, Host, World, far_end};
use crate::proxy::{Mesh, MeshBuilder, Settings};
use crate::traffic::{self, Answer, IoMode, Kind, Server, Stream};

/// The time limit of each wait; far more than any operation takes, even on a busy machine.
pub const TIMEOUT: Duration = Duration::from_secs(30);
/// The pause between two attempts of [`Topology::dial`].
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// The backlog of a listener.
const BACKLOG: i32 = 1024;

/// The data path of a connection between two pods of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPath {
    /// Between two nodes, through both proxies.
    Tunnel,
    /// Between two pods of one node, on the fast path.
    Direct,
    /// On the fast path, with the two sockets joined by sockmap; the applications are event-driven.
    Joined,
    /// On the fast path, joined or not as the self-test of the kernel decides; the applications block.
    Auto,
}

impl DataPath {
    /// [`Self::Tunnel`], for [`on_paths!`](crate::on_paths).
    #[must_use]
    pub const fn tunnel() -> Self {
        Self::Tunnel
    }

    /// [`Self::Direct`], for [`on_paths!`](crate::on_paths).
    #[must_use]
    pub const fn direct() -> Self {
        Self::Direct
    }

    /// [`Self::Joined`], for [`on_paths!`](crate::on_paths).
    #[must_use]
    pub const fn joined() -> Self {
        Self::Joined
    }

    /// [`Self::Auto`], for [`on_paths!`](crate::on_paths).
    #[must_use]
    pub const fn auto() -> Self {
        Self::Auto
    }

    /// Whether its connections bypass the proxy once they have a fast-path entry.
    #[must_use]
    pub fn bypasses_the_proxy(self) -> bool {
        self != Self::Tunnel
    }

    /// The I/O mode of applications on this path.
    #[must_use]
    pub fn io_mode(self) -> IoMode {
        match self {
            Self::Joined => IoMode::EventDriven,
            Self::Tunnel | Self::Direct | Self::Auto => IoMode::Blocking,
        }
    }

    /// Sets `sameNode` and `acceleration` in a proxy's settings.
    pub fn configure(self, settings: &mut Settings) {
        let acceleration = match self {
            Self::Tunnel | Self::Direct => "off",
            Self::Joined => "on",
            Self::Auto => "auto",
        };
        let mut set = |key: &str, value| drop(settings.extra.insert(key.to_owned(), json!(value)));
        set("sameNode", "direct");
        set("acceleration", acceleration);
    }

    /// The node of the servers.
    #[must_use]
    pub fn server_node(self) -> &'static str {
        match self {
            Self::Tunnel => "b",
            Self::Direct | Self::Joined | Self::Auto => "a",
        }
    }
}

/// Creates a test of a case for each of the listed data paths.
///
/// ```ignore
/// on_paths!(the_answer_arrives: tunnel, direct, joined, auto);
/// fn the_answer_arrives(data_path: DataPath) { … }
/// ```
#[macro_export]
macro_rules! on_paths {
    ($case:ident: $($data_path:ident),+) => {
        mod $case {
            $(
                #[test]
                fn $data_path() {
                    super::$case($crate::data_path::DataPath::$data_path());
                }
            )+
        }
    };
}

/// A world with clients and servers at the two ends of a data path.
#[derive(Debug)]
pub struct Topology {
    data_path: DataPath,
    world: World,
    dialled: AtomicU64,
}

impl Topology {
    /// Creates the world: two nodes, two clients and two servers.
    ///
    /// # Errors
    /// As [`crate::net::WorldBuilder::build`].
    pub fn new(data_path: DataPath) -> Result<Self> {
        let world = match data_path {
            DataPath::Tunnel => World::two_nodes()?,
            _ => World::builder().node("a", 4).node("b", 1).build()?,
        };
        Ok(Self {
            data_path,
            world,
            dialled: AtomicU64::new(0),
        })
    }

    /// The path.
    #[must_use]
    pub fn data_path(&self) -> DataPath {
        self.data_path
    }

    /// The world.
    #[must_use]
    pub fn world(&self) -> &World {
        &self.world
    }

    /// The clients, pods of node `a`.
    #[must_use]
    pub fn clients(&self) -> [&Host; 2] {
        [0, 1].map(|index| self.world.pod("a", index))
    }

    /// The servers, pods of [`DataPath::server_node`].
    #[must_use]
    pub fn servers(&self) -> [&Host; 2] {
        let indices = match self.data_path {
            DataPath::Tunnel => [0, 1],
            _ => [2, 3],
        };
        indices.map(|index| self.world.pod(self.data_path.server_node(), index))
    }

    /// The first client.
    #[must_use]
    pub fn client(&self) -> &Host {
        self.clients()[0]
    }

    /// The first server.
    #[must_use]
    pub fn server(&self) -> &Host {
        self.servers()[0]
    }

    /// A mesh of every pod, with the path's settings.
    #[must_use]
    pub fn mesh(&self) -> MeshBuilder<'_> {
        let data_path = self.data_path;
        Mesh::builder(&self.world).settings(move |settings| data_path.configure(settings))
    }

    /// With [`DataPath::Auto`], waits until the proxy has decided about acceleration. The decision
    /// invalidates earlier fast-path entries.
    ///
    /// # Errors
    /// When the proxy has not decided in time.
    pub fn wait_for_acceleration(&self, mesh: &mut Mesh<'_>) -> Result<()> {
        if self.data_path == DataPath::Auto {
            let proxy = mesh.proxy(self.data_path.server_node());
            proxy.wait_for_log("acceleration auto", TIMEOUT)?;
        }
        Ok(())
    }

    /// A listener on both address families of a host.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn listen(&self, host: &Host, port: u16) -> io::Result<TcpListener> {
        let any = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port);
        host.enter(|| {
            let socket = Socket::new(Domain::IPV6, Type::STREAM, None)?;
            socket.set_only_v6(false)?;
            socket.set_reuse_address(true)?;
            socket.bind(&any.into())?;
            socket.listen(BACKLOG)?;
            Ok(socket.into())
        })
    }

    /// Runs a server on the first server's host, in the I/O mode of the path.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve(&self, kind: Kind, port: u16) -> Result<Server> {
        self.server().serve_as(kind, port, self.data_path.io_mode())
    }

    /// Connects once from a host. The connection may take any path.
    ///
    /// # Errors
    /// When it is refused.
    pub fn dial_once(&self, from: &Host, to: SocketAddr) -> io::Result<Stream> {
        let end = from.enter(|| Stream::connect(to, self.data_path.io_mode(), TIMEOUT))?;
        self.dialled.fetch_add(1, Ordering::Relaxed);
        set_timeouts(&end)?;
        Ok(end)
    }

    /// The number of connections so far, on any path.
    #[must_use]
    pub fn dialled(&self) -> u64 {
        self.dialled.load(Ordering::Relaxed)
    }

    /// Connects from a host to a running server, repeatedly until the connection is on the path.
    ///
    /// # Errors
    /// When a connection is refused, or none is on the path in time.
    pub fn dial(&self, from: &Host, to: SocketAddr) -> io::Result<Stream> {
        self.repeat_until_on_path(from, to, || self.dial_once(from, to), |end| end)
    }

    /// Connects from the first client to a listener that is reachable at `to`, until the connection is
    /// on the path. Returns both ends.
    ///
    /// # Errors
    /// As [`Self::dial`], or when no connection arrives at the listener.
    pub fn connect(&self, to: SocketAddr, listener: &TcpListener) -> io::Result<(Stream, Stream)> {
        self.connect_from(self.client(), to, listener)
    }

    /// As [`Self::connect`], from any host.
    ///
    /// # Errors
    /// As [`Self::connect`].
    pub fn connect_from(
        &self,
        from: &Host,
        to: SocketAddr,
        listener: &TcpListener,
    ) -> io::Result<(Stream, Stream)> {
        let both = || {
            let near = self.dial_once(from, to)?;
            Ok((near, self.accept(listener)?))
        };
        self.repeat_until_on_path(from, to, both, |(near, _)| near)
    }

    /// Accepts the next connection of a listener, in the I/O mode of the path.
    ///
    /// # Errors
    /// When no connection arrives in time.
    pub fn accept(&self, listener: &TcpListener) -> io::Result<Stream> {
        // SO_RCVTIMEO also limits accept, see socket(7).
        SockRef::from(listener).set_read_timeout(Some(TIMEOUT))?;
        let end = Stream::new(listener.accept()?.0, self.data_path.io_mode())?;
        set_timeouts(&end)?;
        Ok(end)
    }

    /// Sends one request from the first client, over a connection that is on the path.
    ///
    /// # Errors
    /// As [`Self::dial`], or when there is no answer.
    pub fn get(&self, to: SocketAddr, marker: &str) -> io::Result<Answer> {
        self.get_from(self.client(), to, marker)
    }

    /// As [`Self::get`], from any host.
    ///
    /// # Errors
    /// As [`Self::get`].
    pub fn get_from(&self, from: &Host, to: SocketAddr, marker: &str) -> io::Result<Answer> {
        let started = Instant::now();
        let mut end = self.dial(from, to)?;
        let mut answer = traffic::get_over(&mut end, marker, TIMEOUT)?;
        answer.latency = started.elapsed();
        Ok(answer)
    }

    fn repeat_until_on_path<T>(
        &self,
        from: &Host,
        to: SocketAddr,
        mut connect: impl FnMut() -> io::Result<T>,
        near: impl Fn(&T) -> &Stream,
    ) -> io::Result<T> {
        let started = Instant::now();
        loop {
            let connection = connect()?;
            if self.data_path == DataPath::Tunnel || bypasses_the_proxy(from, near(&connection))? {
                return Ok(connection);
            }
            if started.elapsed() > TIMEOUT {
                return Err(io::Error::other(format!(
                    "{} to {to}: no connection bypassed the proxy within {TIMEOUT:?}",
                    from.name
                )));
            }
            drop(connection);
            thread::sleep(POLL_INTERVAL);
        }
    }
}

/// Whether a connection leads to its peer and not to the proxy, whose socket is in the same network
/// namespace. Reads the kernel's socket table.
///
/// # Errors
/// When the socket table does not contain the connection.
pub fn bypasses_the_proxy(host: &Host, end: &Stream) -> io::Result<bool> {
    let far_end = host.enter(|| far_end(end))?.ok_or_else(|| {
        io::Error::other(format!(
            "the socket table of {} does not contain this connection",
            host.name
        ))
    })?;
    Ok(far_end != FarEnd::SameNamespace)
}

/// Sets a time limit for each read and write, so that a connection that hangs fails the test.
fn set_timeouts(end: &Stream) -> io::Result<()> {
    end.set_nodelay(true)?;
    end.set_read_timeout(Some(TIMEOUT))?;
    end.set_write_timeout(Some(TIMEOUT))
}

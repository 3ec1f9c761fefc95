//! The lanes that a connection between two pods may take, and a scene that is the same on each.
//!
//! A case that holds on several lanes is written once, as a function of the [`Lane`], and
//! [`on_lanes!`](crate::on_lanes) makes a test of it for each. The [`Scene`] puts client and
//! server where the lane begins and ends, and its connections are proven to be on that lane:
//! [`Scene::dial`] asks the kernel's socket table whom a connection is really with, and knocks
//! again until it is the server. The first connections of a key are the proxy's to judge.

use std::io;
use std::net::{Ipv6Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;
use serde_json::json;
use socket2::{Domain, SockRef, Socket, Type};

use crate::net::{Host, World, remote_end};
use crate::proxy::{Mesh, MeshBuilder, Settings};
use crate::traffic::{self, Answer, End, Kind, Manner, Server};

/// Far more than anything takes on a machine that is busy with something else.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// Between two knocks of [`Scene::dial`].
const PACE: Duration = Duration::from_millis(5);
/// Waiting connections that a listener holds.
const BACKLOG: i32 = 1024;

/// The way of a connection between two pods of the mesh.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lane {
    /// Between two nodes, through both proxies.
    Tunnel,
    /// On one node, through the kernel alone.
    Direct,
    /// On one node, the two ends joined by sockmap; the applications wait for events.
    Joined,
    /// On one node, joined or not as this kernel's self-test says; the applications block.
    Auto,
}

impl Lane {
    /// [`Self::Tunnel`], for [`on_lanes!`](crate::on_lanes).
    #[must_use]
    pub const fn tunnel() -> Self {
        Self::Tunnel
    }

    /// [`Self::Direct`], for [`on_lanes!`](crate::on_lanes).
    #[must_use]
    pub const fn direct() -> Self {
        Self::Direct
    }

    /// [`Self::Joined`], for [`on_lanes!`](crate::on_lanes).
    #[must_use]
    pub const fn joined() -> Self {
        Self::Joined
    }

    /// [`Self::Auto`], for [`on_lanes!`](crate::on_lanes).
    #[must_use]
    pub const fn auto() -> Self {
        Self::Auto
    }

    /// Whether its connections bypass the proxy once their key is known.
    #[must_use]
    pub fn bypasses_the_proxy(self) -> bool {
        self != Self::Tunnel
    }

    /// How applications on it wait.
    #[must_use]
    pub fn manner(self) -> Manner {
        match self {
            Self::Joined => Manner::EventDriven,
            Self::Tunnel | Self::Direct | Self::Auto => Manner::Blocking,
        }
    }

    /// Writes it into a proxy's settings.
    pub fn choose(self, settings: &mut Settings) {
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

/// Makes a test of a case for each of the lanes that are named.
///
/// ```ignore
/// on_lanes!(the_answer_arrives: tunnel, direct, joined, auto);
/// fn the_answer_arrives(lane: Lane) { … }
/// ```
#[macro_export]
macro_rules! on_lanes {
    ($case:ident: $($lane:ident),+) => {
        mod $case {
            $(
                #[test]
                fn $lane() {
                    super::$case($crate::lane::Lane::$lane());
                }
            )+
        }
    };
}

/// A world whose clients and servers are at the two ends of one lane.
#[derive(Debug)]
pub struct Scene {
    lane: Lane,
    world: World,
    knocks: AtomicU64,
}

impl Scene {
    /// Makes the world: two clients, two servers, and a second node in any case.
    ///
    /// # Errors
    /// As [`crate::net::WorldBuilder::build`].
    pub fn set(lane: Lane) -> Result<Self> {
        let world = match lane {
            Lane::Tunnel => World::two_nodes()?,
            _ => World::builder().node("a", 4).node("b", 1).build()?,
        };
        Ok(Self {
            lane,
            world,
            knocks: AtomicU64::new(0),
        })
    }

    /// The lane.
    #[must_use]
    pub fn lane(&self) -> Lane {
        self.lane
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

    /// The servers, pods of [`Lane::server_node`].
    #[must_use]
    pub fn servers(&self) -> [&Host; 2] {
        let indices = match self.lane {
            Lane::Tunnel => [0, 1],
            _ => [2, 3],
        };
        indices.map(|index| self.world.pod(self.lane.server_node(), index))
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

    /// A mesh of every pod, with the lane's settings.
    #[must_use]
    pub fn mesh(&self) -> MeshBuilder<'_> {
        let lane = self.lane;
        Mesh::builder(&self.world).settings(move |settings| lane.choose(settings))
    }

    /// On the lane that the proxy chooses by itself: waits until it has chosen. A verdict of that
    /// moment does not count any more, and is given again.
    ///
    /// # Errors
    /// When it has not chosen in time.
    pub fn chosen(&self, mesh: &mut Mesh<'_>) -> Result<()> {
        if self.lane == Lane::Auto {
            let proxy = mesh.proxy(self.lane.server_node());
            proxy.wait_for_log("acceleration auto", PATIENCE)?;
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

    /// Runs a server on the first server's host, in the lane's manner.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn serve(&self, kind: Kind, port: u16) -> Result<Server> {
        self.server().serve_as(kind, port, self.lane.manner())
    }

    /// Connects from a host, once, on whatever lane the connection takes.
    ///
    /// # Errors
    /// When it is refused.
    pub fn knock(&self, from: &Host, to: SocketAddr) -> io::Result<End> {
        let end = from.enter(|| End::connect(to, self.lane.manner(), PATIENCE))?;
        self.knocks.fetch_add(1, Ordering::Relaxed);
        limit(&end)?;
        Ok(end)
    }

    /// How many connections were made, on whatever lane.
    #[must_use]
    pub fn knocks(&self) -> u64 {
        self.knocks.load(Ordering::Relaxed)
    }

    /// Connects from a host to a server that accepts by itself, and again until the connection
    /// is on the lane.
    ///
    /// # Errors
    /// When a connection is refused, or none gets onto the lane.
    pub fn dial(&self, from: &Host, to: SocketAddr) -> io::Result<End> {
        self.until_on_lane(from, to, || self.knock(from, to), |end| end)
    }

    /// Both ends of a connection on the lane, from the first client to a listener that is
    /// called at `to`.
    ///
    /// # Errors
    /// As [`Self::dial`], or when nothing arrives at the listener.
    pub fn connect(&self, to: SocketAddr, listener: &TcpListener) -> io::Result<(End, End)> {
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
    ) -> io::Result<(End, End)> {
        let both = || {
            let near = self.knock(from, to)?;
            Ok((near, self.accept(listener)?))
        };
        self.until_on_lane(from, to, both, |(near, _)| near)
    }

    /// The next connection of a listener, as an end in the lane's manner.
    ///
    /// # Errors
    /// When nothing arrives.
    pub fn accept(&self, listener: &TcpListener) -> io::Result<End> {
        // It also limits accept, see socket(7).
        SockRef::from(listener).set_read_timeout(Some(PATIENCE))?;
        let end = End::new(listener.accept()?.0, self.lane.manner())?;
        limit(&end)?;
        Ok(end)
    }

    /// One request from the first client, over a connection that is on the lane.
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
        let mut answer = traffic::get_over(&mut end, marker, PATIENCE)?;
        answer.latency = started.elapsed();
        Ok(answer)
    }

    fn until_on_lane<T>(
        &self,
        from: &Host,
        to: SocketAddr,
        mut connect: impl FnMut() -> io::Result<T>,
        near: impl Fn(&T) -> &End,
    ) -> io::Result<T> {
        let started = Instant::now();
        loop {
            let connection = connect()?;
            if self.lane == Lane::Tunnel || bypasses_the_proxy(from, near(&connection))? {
                return Ok(connection);
            }
            if started.elapsed() > PATIENCE {
                return Err(io::Error::other(format!(
                    "{} to {to}: no connection left the proxy in {PATIENCE:?}",
                    from.name
                )));
            }
            drop(connection);
            thread::sleep(PACE);
        }
    }
}

/// Whether the kernel has a host's connection with its peer itself, not with the proxy, which
/// listens on loopback.
///
/// # Errors
/// When the kernel knows no such connection.
pub fn bypasses_the_proxy(host: &Host, end: &End) -> io::Result<bool> {
    let remote = host
        .enter(|| remote_end(end))?
        .ok_or_else(|| io::Error::other(format!("{} does not have this connection", host.name)))?;
    Ok(!remote.ip().is_loopback())
}

/// Every wait of a test has a limit: a connection that hangs fails it.
fn limit(end: &End) -> io::Result<()> {
    end.set_nodelay(true)?;
    end.set_read_timeout(Some(PATIENCE))?;
    end.set_write_timeout(Some(PATIENCE))
}

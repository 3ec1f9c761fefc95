//! Serves one pod on one worker: a query comes, the mesh knows the answer or a resolver is asked.

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::net::{TcpStream, UdpSocket};

use super::cache::{Cache, Key};
use super::forward::{self, LONGEST_MESSAGE};
use super::query::Query;
use super::reply::{ReplyContext, SERVER_FAILURE};
use super::wire::{self, Header};
use super::{Config, ServerContext};
use mesh::names::may_be_mine;
use mesh::{Snapshot, Workload};
use telemetry::{DnsQuery, DnsRefusal, Telemetry};

/// The longest query that is read from a datagram.
const LONGEST_DATAGRAM: usize = 4096;
/// Queries of one pod that may wait for resolvers on one worker.
const MOST_WAITING: usize = 256;
/// Queries of all pods that may wait for resolvers on one worker: each has a socket.
const MOST_WAITING_IN_ALL: usize = 2048;
/// Connections of one pod to one worker's server.
const MOST_CONNECTIONS: usize = 64;
/// Connections of all pods to one worker's servers: each may hold two messages of 64 KiB.
const MOST_CONNECTIONS_IN_ALL: usize = 1024;
/// A connection that asks nothing for this long, or does not take its answer, is closed.
const IDLE: Duration = Duration::from_secs(10);
/// How long to wait after a socket has failed.
const PAUSE: Duration = Duration::from_millis(50);
/// When nothing has come for this long on a socket that has stepped aside, all has been read: what
/// was on its way to it when it did has arrived.
const QUIET: Duration = Duration::from_millis(10);
/// For how long such a socket is read at most.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// How a query came, and how it is passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Transport {
    Datagram,
    Stream,
}

impl Transport {
    const fn label(self) -> &'static str {
        match self {
            Self::Datagram => "udp",
            Self::Stream => "tcp",
        }
    }
}

/// The DNS server of one pod on one worker.
pub struct Server<S> {
    surroundings: S,
    config: Config,
    telemetry: Arc<Telemetry>,
    common: Rc<Common>,
    waiting: Cell<usize>,
    connections: Cell<usize>,
}

/// What the servers of one worker share.
#[derive(Debug, Default)]
pub struct Common {
    cache: RefCell<Cache>,
    /// How many queries wait for resolvers.
    waiting: Cell<usize>,
    /// How many connections there are.
    connections: Cell<usize>,
    /// Where messages are read into before it is known how long they are.
    room: RefCell<Vec<u8>>,
}

impl Common {
    /// Forgets what was told to the pod whose namespace has this cookie.
    pub fn forget(&self, pod: u64) {
        self.cache.borrow_mut().forget(pod);
    }
}

impl<S> std::fmt::Debug for Server<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("waiting", &self.waiting)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

/// Counts one of something that is bounded while it lives, for its pod and for the worker.
struct Place<'a>([&'a Cell<usize>; 2]);

impl<'a> Place<'a> {
    /// Takes a place; both pairs say how many are taken, and how many there may be. A pod may have
    /// no more than are left of all: so those who want many share alike, and who has none gets one.
    fn take(own: (&'a Cell<usize>, usize), of_all: (&'a Cell<usize>, usize)) -> Option<Self> {
        let left = of_all.1.saturating_sub(of_all.0.get());
        (own.0.get() < own.1.min(left)).then(|| {
            let both = [own.0, of_all.0];
            for taken in both {
                taken.set(taken.get() + 1);
            }
            Self(both)
        })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        for taken in self.0 {
            taken.set(taken.get() - 1);
        }
    }
}

/// A query that the mesh has no answer to.
struct Foreign {
    bytes: Vec<u8>,
    query: Option<Query>,
    counted: DnsQuery,
    transport: Transport,
}

/// What becomes of a message.
enum Decision {
    /// Nobody is answered: it is no query.
    Drop,
    Reply(Vec<u8>),
    Ask(Box<Foreign>),
    /// The mesh does not know the pod yet, and the answer depends on what the pod is.
    Wait(Vec<u8>),
}

impl<S: ServerContext + 'static> Server<S> {
    /// A server that shares its cache and its room with the worker's other pods.
    pub fn new(
        surroundings: S,
        config: Config,
        telemetry: Arc<Telemetry>,
        common: Rc<Common>,
    ) -> Rc<Self> {
        common.room.borrow_mut().resize(LONGEST_MESSAGE, 0);
        Rc::new(Self {
            surroundings,
            config,
            telemetry,
            common,
            waiting: Cell::new(0),
            connections: Cell::new(0),
        })
    }

    /// Answers what comes on a socket, until it is no longer wanted here. What waits for a resolver
    /// does so in a task of its own on the same thread, and is answered whatever happens here.
    ///
    /// A question is lost when nobody reads the socket that the kernel gave it to. So the socket
    /// first steps aside for those of others, and then what it has been given is read.
    pub async fn serve_datagrams(
        self: Rc<Self>,
        socket: UdpSocket,
        unwanted: impl Future<Output = ()>,
    ) {
        let socket = Rc::new(socket);
        let mut unwanted = pin!(unwanted);
        loop {
            let received = tokio::select! {
                received = self.receive(&socket) => received,
                () = &mut unwanted => break,
            };
            match received {
                Ok((decision, client)) => self.act(decision, &socket, client).await,
                Err(error) => {
                    tracing::debug!(%error, "a DNS socket has failed");
                    tokio::time::sleep(PAUSE).await;
                }
            }
        }
        if let Err(error) = self.surroundings.step_aside(&socket) {
            tracing::debug!(%error, "a DNS socket does not step aside");
        }
        // Bounded, as it is not quiet where it could not step aside.
        let until = Instant::now() + LONGEST_REST;
        while Instant::now() < until
            && let Ok(Ok((decision, client))) =
                tokio::time::timeout(QUIET, self.receive(&socket)).await
        {
            self.act(decision, &socket, client).await;
        }
    }

    /// Does what was decided about a datagram.
    async fn act(self: &Rc<Self>, decision: Decision, socket: &Rc<UdpSocket>, client: SocketAddr) {
        match decision {
            Decision::Drop => {}
            Decision::Reply(reply) => self.send(socket, &reply, client).await,
            Decision::Ask(_) | Decision::Wait(_) => {
                let (server, socket) = (self.clone(), socket.clone());
                self.surroundings.spawn(async move {
                    let asked = server.surroundings.asked_by_datagram(client);
                    let reply = server.settle(decision, Transport::Datagram, asked);
                    if let Some(reply) = reply.await {
                        server.send(&socket, &reply, client).await;
                    }
                });
            }
        }
    }

    /// Waits for a datagram, and finds out what becomes of it.
    async fn receive(&self, socket: &UdpSocket) -> io::Result<(Decision, SocketAddr)> {
        loop {
            socket.readable().await?;
            let mut room = self.common.room.borrow_mut();
            // One byte more than is taken shows that it was longer.
            match socket.try_recv_from(&mut room[..=LONGEST_DATAGRAM]) {
                Ok((length, client)) => {
                    return Ok((self.decide(&room[..length], Transport::Datagram), client));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers what comes on a connection, one query after the other, until the client ends it or
    /// is silent for too long, or until it is no longer wanted: whoever has asked by then is
    /// answered.
    pub async fn serve_stream(
        self: Rc<Self>,
        mut stream: TcpStream,
        client: SocketAddr,
        unwanted: impl Future<Output = ()>,
    ) {
        // Asked at once, because the kernel keeps it for a while only.
        let asked = self.surroundings.asked_by_stream(&stream, client);
        let own = (&self.connections, MOST_CONNECTIONS);
        let of_all = (&self.common.connections, MOST_CONNECTIONS_IN_ALL);
        let Some(_place) = Place::take(own, of_all) else {
            self.telemetry.dns().refused(DnsRefusal::TooMany);
            return;
        };
        let ended = self.converse(&mut stream, asked, unwanted).await;
        if let Err(error) = ended {
            tracing::debug!(%error, "a DNS connection has ended");
        }
    }

    async fn send(&self, socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
        let sent = self.surroundings.reply(socket, reply, client).await;
        if let Err(error) = sent {
            tracing::debug!(%error, %client, "a DNS answer could not be sent");
        }
    }

    async fn converse(
        &self,
        stream: &mut TcpStream,
        asked: Option<SocketAddr>,
        unwanted: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let silent = |_elapsed| io::Error::from(io::ErrorKind::TimedOut);
        let mut unwanted = pin!(unwanted);
        loop {
            let reading = tokio::time::timeout(IDLE, forward::read_frame(stream));
            let message = tokio::select! {
                // What has come is read first.
                biased;
                message = reading => message.map_err(silent)??,
                () = &mut unwanted => return Ok(()),
            };
            let decision = self.decide(&message, Transport::Stream);
            let Some(reply) = self.settle(decision, Transport::Stream, asked).await else {
                return Ok(());
            };
            let writing = tokio::time::timeout(IDLE, forward::write_frame(stream, &reply));
            writing.await.map_err(silent)??;
        }
    }

    /// Waits where a decision says so, and returns what the application is told, if anything.
    async fn settle(
        &self,
        decision: Decision,
        transport: Transport,
        asked: Option<SocketAddr>,
    ) -> Option<Vec<u8>> {
        let decision = match decision {
            Decision::Wait(message) => {
                let known = self.surroundings.known().await;
                self.decide_for(&message, transport, Some(known))
            }
            other => other,
        };
        match decision {
            Decision::Drop | Decision::Wait(_) => None,
            Decision::Reply(reply) => Some(reply),
            Decision::Ask(foreign) => self.ask(&foreign, asked).await,
        }
    }

    /// Finds out what becomes of a message, and counts it.
    fn decide(&self, message: &[u8], transport: Transport) -> Decision {
        self.decide_for(message, transport, None)
    }

    /// As [`Self::decide`]; `known` says how the wait for the pod's workload has ended, if the message
    /// has waited.
    fn decide_for(
        &self,
        message: &[u8],
        transport: Transport,
        known: Option<Result<(), DnsRefusal>>,
    ) -> Decision {
        let metrics = self.telemetry.dns();
        let longest = match transport {
            Transport::Datagram => LONGEST_DATAGRAM,
            Transport::Stream => LONGEST_MESSAGE,
        };
        let is_query = |header: &Header| !header.is_response() && message.len() <= longest;
        if Header::of(message).filter(is_query).is_none() {
            metrics.refused(DnsRefusal::Malformed);
            return Decision::Drop;
        }
        let mesh = self.surroundings.mesh();
        let client = self.surroundings.client(&mesh);
        let query = Query::of(message);
        let lacks_client = client.is_none() && self.depends_on_client(&mesh, query.as_ref());
        if lacks_client && known.is_none() {
            return Decision::Wait(message.to_vec());
        }
        let kind = wire::question(message).and_then(wire::kind);
        let counted = DnsQuery::new(kind, transport.label(), client.as_deref());
        metrics.asked(&counted);
        if lacks_client {
            let why = known.and_then(Result::err);
            metrics.refused(why.unwrap_or(DnsRefusal::UnknownWorkload));
            return refuse(message);
        }
        let most = match (transport, &query) {
            (Transport::Datagram, Some(query)) => query.payload(),
            _ => LONGEST_MESSAGE,
        };
        let own = query
            .as_ref()
            .zip(client.as_ref())
            .and_then(|(query, client)| self.own(&mesh, client, query, most));
        own.map_or_else(
            || {
                Decision::Ask(Box::new(Foreign {
                    bytes: message.to_vec(),
                    query,
                    counted,
                    transport,
                }))
            },
            Decision::Reply,
        )
    }

    /// Whether what becomes of a query depends on what the pod is: only names of the mesh do. The
    /// others go to the resolver, whoever asks.
    fn depends_on_client(&self, mesh: &Snapshot, query: Option<&Query>) -> bool {
        let query = query.filter(|query| query.family().is_some());
        let namespace = self.surroundings.namespace();
        query.is_some_and(|query| may_be_mine(mesh, &self.config.domain, namespace, query.name()))
    }

    /// The mesh's answer, if it has one.
    fn own(
        &self,
        mesh: &Snapshot,
        client: &Workload,
        query: &Query,
        most: usize,
    ) -> Option<Vec<u8>> {
        let context = ReplyContext {
            mesh,
            client,
            domain: &self.config.domain,
            random: self.surroundings.random(),
        };
        context.from_mesh(query, most)
    }

    /// The answer of the resolver that the application asked, kept or new.
    async fn ask(&self, foreign: &Foreign, asked: Option<SocketAddr>) -> Option<Vec<u8>> {
        let metrics = self.telemetry.dns();
        let Some(resolver) = asked else {
            metrics.refused(DnsRefusal::UnknownResolver);
            return foreign.fail();
        };
        let key = foreign
            .query
            .as_ref()
            .and_then(|query| Key::of(self.surroundings.pod(), resolver, query));
        if let Some(kept) = key.as_ref().and_then(|key| self.kept(key, foreign)) {
            return Some(kept);
        }
        let own = (&self.waiting, MOST_WAITING);
        let of_all = (&self.common.waiting, MOST_WAITING_IN_ALL);
        let Some(_place) = Place::take(own, of_all) else {
            metrics.refused(DnsRefusal::TooMany);
            return foreign.fail();
        };
        metrics.forwarded(&foreign.counted);
        let began = Instant::now();
        let answered = self.exchange(foreign, resolver).await;
        metrics.answered(&foreign.counted, began.elapsed(), answered.is_ok());
        match answered {
            Ok(answer) => {
                if let Some(key) = key {
                    self.common
                        .cache
                        .borrow_mut()
                        .put(key, &answer, Instant::now());
                }
                Some(answer)
            }
            Err(error) => {
                tracing::debug!(%error, %resolver, "a DNS query could not be passed on");
                foreign.fail()
            }
        }
    }

    fn kept(&self, key: &Key, foreign: &Foreign) -> Option<Vec<u8>> {
        let query = foreign.query.as_ref()?;
        let most = match foreign.transport {
            Transport::Datagram => query.payload(),
            Transport::Stream => LONGEST_MESSAGE,
        };
        let cache = self.common.cache.borrow();
        cache.get(key, query, most, Instant::now())
    }

    async fn exchange(&self, foreign: &Foreign, resolver: SocketAddr) -> io::Result<Vec<u8>> {
        let timeout = self.config.timeout;
        match foreign.transport {
            Transport::Datagram => {
                let socket = self.surroundings.socket(resolver)?;
                forward::by_datagram(socket, &foreign.bytes, timeout, &self.common.room).await
            }
            Transport::Stream => {
                let connect = self.surroundings.connect(resolver);
                forward::by_stream(connect, &foreign.bytes, timeout).await
            }
        }
    }
}

impl Foreign {
    /// Says that it cannot be answered.
    fn fail(&self) -> Option<Vec<u8>> {
        match &self.query {
            Some(query) => Some(query.fail()),
            None => wire::refusal(&self.bytes, SERVER_FAILURE),
        }
    }
}

fn refuse(message: &[u8]) -> Decision {
    wire::refusal(message, SERVER_FAILURE).map_or(Decision::Drop, Decision::Reply)
}

#[cfg(test)]
mod tests;

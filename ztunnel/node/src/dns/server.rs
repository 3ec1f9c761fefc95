//! The DNS server of one pod on one worker: it answers from the mesh or forwards to a resolver.

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

/// The maximum length of a query in a datagram.
const LONGEST_DATAGRAM: usize = 4096;
/// The maximum number of pending resolver queries of one pod on one worker.
const MOST_WAITING: usize = 256;
/// The maximum number of pending resolver queries of one worker: each has a socket.
const MOST_WAITING_IN_ALL: usize = 2048;
/// The maximum number of connections of one pod to one worker's server.
const MOST_CONNECTIONS: usize = 64;
/// The maximum number of connections to one worker's servers: each may hold two messages of 64 KiB.
const MOST_CONNECTIONS_IN_ALL: usize = 1024;
/// A connection that sends no query for this long, or does not read its answer, is closed.
const IDLE: Duration = Duration::from_secs(10);
/// The delay after a socket error.
const PAUSE: Duration = Duration::from_millis(50);
/// When a socket that has stepped aside receives nothing for this long, it has no more datagrams:
/// those in delivery at that time have arrived.
const QUIET: Duration = Duration::from_millis(10);
/// The maximum time that such a socket is still read.
const LONGEST_REST: Duration = Duration::from_secs(1);

/// The transport of a query, which is also used to forward it.
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

/// The state that the servers of one worker share.
#[derive(Debug, Default)]
pub struct Common {
    cache: RefCell<Cache>,
    /// The number of pending resolver queries.
    waiting: Cell<usize>,
    /// The number of open connections.
    connections: Cell<usize>,
    /// The receive buffer, used before the length of a message is known.
    room: RefCell<Vec<u8>>,
}

impl Common {
    /// Removes the cached answers of the pod whose namespace has this cookie.
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

/// One use of a bounded resource, counted for its pod and its worker until it is dropped.
struct Place<'a>([&'a Cell<usize>; 2]);

impl<'a> Place<'a> {
    /// Takes a place. Each pair holds the number in use and its limit. A pod may use no more places
    /// than are left for all pods: so pods with many places get similar shares, and a pod without
    /// any gets one.
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

/// A query that the mesh cannot answer.
struct Foreign {
    bytes: Vec<u8>,
    query: Option<Query>,
    counted: DnsQuery,
    transport: Transport,
}

/// The decision about a message.
enum Decision {
    /// No answer: the message is not a query.
    Drop,
    Reply(Vec<u8>),
    Ask(Box<Foreign>),
    /// The mesh does not know the pod yet, and the answer depends on the pod's workload.
    Wait(Vec<u8>),
}

impl<S: ServerContext + 'static> Server<S> {
    /// Creates a server that shares its cache and its receive buffer with the worker's other pods.
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

    /// Answers datagrams on a socket until `unwanted` resolves. A query that waits for a resolver
    /// runs in its own task on the same thread and is answered even after that.
    ///
    /// A query is lost if the kernel has delivered it to a socket that is not read any more. So the
    /// socket first steps aside in favour of other sockets, and then reads its remaining datagrams.
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
        // Bounded, because new datagrams continue to arrive if the socket could not step aside.
        let until = Instant::now() + LONGEST_REST;
        while Instant::now() < until
            && let Ok(Ok((decision, client))) =
                tokio::time::timeout(QUIET, self.receive(&socket)).await
        {
            self.act(decision, &socket, client).await;
        }
    }

    /// Executes the decision about a datagram.
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

    /// Waits for a datagram and decides about it.
    async fn receive(&self, socket: &UdpSocket) -> io::Result<(Decision, SocketAddr)> {
        loop {
            socket.readable().await?;
            let mut room = self.common.room.borrow_mut();
            // One byte more than the maximum reveals a longer datagram.
            match socket.try_recv_from(&mut room[..=LONGEST_DATAGRAM]) {
                Ok((length, client)) => {
                    return Ok((self.decide(&room[..length], Transport::Datagram), client));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers queries on a connection, one after the other, until the client closes it or is
    /// silent for too long, or until `unwanted` resolves. Queries that have arrived by then are
    /// answered.
    pub async fn serve_stream(
        self: Rc<Self>,
        mut stream: TcpStream,
        client: SocketAddr,
        unwanted: impl Future<Output = ()>,
    ) {
        // Looked up at once, because the kernel keeps the entry only for a limited time.
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
                // Data that has arrived is read first.
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

    /// Waits if the decision requires it, and returns the answer for the application, if there is
    /// one.
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

    /// Decides about a message, and counts it.
    fn decide(&self, message: &[u8], transport: Transport) -> Decision {
        self.decide_for(message, transport, None)
    }

    /// As [`Self::decide`]; `known` is the result of the wait for the pod's workload, if the
    /// message has waited.
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

    /// Whether the decision about a query depends on the pod's workload. Only names of the mesh
    /// depend on it; other queries are forwarded for every client.
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
        context.answer_from_mesh(query, most)
    }

    /// The answer of the resolver that the application addressed, from the cache or from the
    /// resolver.
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
    /// The response that reports a server failure.
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

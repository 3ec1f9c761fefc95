//! The DNS server of one pod on one worker: it answers from the mesh or forwards to a resolver.

mod decide;
mod limits;
mod upstream;

use std::cell::{Cell, RefCell};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use tokio::net::{TcpStream, UdpSocket};

use super::cache::Cache;
use super::forward::{self, MAX_MESSAGE};
use super::query::Query;
use super::{Config, ServerContext};
use decide::Decision;
use limits::{
    DRAIN_IDLE, DRAIN_TIMEOUT, ERROR_DELAY, IDLE_TIMEOUT, MAX_DATAGRAM_QUERY, MAX_POD_CONNECTIONS,
    MAX_WORKER_CONNECTIONS, Permit, Usage,
};
use telemetry::{DnsRefusal, Telemetry};

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

    /// The maximum length of an answer to a query.
    fn max_answer(self, query: &Query) -> usize {
        match self {
            Self::Datagram => query.max_datagram(),
            Self::Stream => MAX_MESSAGE,
        }
    }
}

/// The DNS server of one pod on one worker.
pub struct Server<C> {
    context: C,
    config: Config,
    telemetry: Arc<Telemetry>,
    shared: Rc<SharedState>,
    /// The pod's number of pending resolver queries.
    pending_queries: Cell<usize>,
    /// The pod's number of open connections.
    connections: Cell<usize>,
}

/// The state that the servers of one worker share.
#[derive(Debug, Default)]
pub struct SharedState {
    cache: RefCell<Cache>,
    /// The number of pending resolver queries.
    pending_queries: Cell<usize>,
    /// The number of open connections.
    connections: Cell<usize>,
    /// Used before the length of a message is known.
    receive_buffer: RefCell<Vec<u8>>,
}

impl SharedState {
    /// Removes the cached answers of the pod whose namespace has this cookie.
    pub fn forget(&self, pod: u64) {
        self.cache.borrow_mut().remove_pod(pod);
    }
}

impl<C> std::fmt::Debug for Server<C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("pending_queries", &self.pending_queries)
            .field("connections", &self.connections)
            .finish_non_exhaustive()
    }
}

impl<C: ServerContext + 'static> Server<C> {
    /// Creates a server that shares its cache and its receive buffer with the worker's other pods.
    pub fn new(
        context: C,
        config: Config,
        telemetry: Arc<Telemetry>,
        shared: Rc<SharedState>,
    ) -> Rc<Self> {
        shared.receive_buffer.borrow_mut().resize(MAX_MESSAGE, 0);
        Rc::new(Self {
            context,
            config,
            telemetry,
            shared,
            pending_queries: Cell::new(0),
            connections: Cell::new(0),
        })
    }

    /// Answers datagrams on a socket until `stop` resolves. A query that waits for a resolver runs
    /// in its own task on the same thread and is answered even after that.
    ///
    /// A query is lost if the kernel has delivered it to a socket that is not read any more. So the
    /// socket first leaves its reuseport group, and then reads its remaining datagrams.
    pub async fn serve_datagrams(
        self: Rc<Self>,
        socket: UdpSocket,
        stop: impl Future<Output = ()>,
    ) {
        let socket = Rc::new(socket);
        let mut stop = pin!(stop);
        loop {
            let received = tokio::select! {
                received = self.receive(&socket) => received,
                () = &mut stop => break,
            };
            match received {
                Ok((decision, client)) => self.execute(decision, &socket, client).await,
                Err(error) => {
                    tracing::debug!(%error, "cannot receive from a DNS socket");
                    tokio::time::sleep(ERROR_DELAY).await;
                }
            }
        }
        if let Err(error) = self.context.leave_reuseport_group(&socket) {
            tracing::debug!(%error, "a DNS socket cannot leave its reuseport group");
        }
        // Bounded: new datagrams continue to arrive if the socket could not leave the group.
        let deadline = Instant::now() + DRAIN_TIMEOUT;
        while Instant::now() < deadline
            && let Ok(Ok((decision, client))) =
                tokio::time::timeout(DRAIN_IDLE, self.receive(&socket)).await
        {
            self.execute(decision, &socket, client).await;
        }
    }

    /// Executes the decision about a datagram.
    async fn execute(
        self: &Rc<Self>,
        decision: Decision,
        socket: &Rc<UdpSocket>,
        client: SocketAddr,
    ) {
        match decision {
            Decision::Drop => {}
            Decision::Reply(reply) => self.send(socket, &reply, client).await,
            Decision::Forward(_) | Decision::WaitForWorkload(_) => {
                let (server, socket) = (self.clone(), socket.clone());
                self.context.spawn(async move {
                    let resolver = server.context.resolver_of_datagram(client);
                    let reply = server.complete(decision, Transport::Datagram, resolver);
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
            let mut buffer = self.shared.receive_buffer.borrow_mut();
            // One byte more than the maximum reveals a longer datagram.
            match socket.try_recv_from(&mut buffer[..=MAX_DATAGRAM_QUERY]) {
                Ok((length, client)) => {
                    let decision = self.decide(&buffer[..length], Transport::Datagram, None);
                    return Ok((decision, client));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Answers queries on a connection, one after the other, until the client closes it or is
    /// silent for too long, or until `stop` resolves. Queries that have arrived by then are
    /// answered.
    pub async fn serve_stream(
        self: Rc<Self>,
        mut stream: TcpStream,
        client: SocketAddr,
        stop: impl Future<Output = ()>,
    ) {
        // Looked up at once, because the kernel keeps the entry only for a limited time.
        let resolver = self.context.resolver_of_stream(&stream, client);
        let pod = Usage {
            count: &self.connections,
            limit: MAX_POD_CONNECTIONS,
        };
        let worker = Usage {
            count: &self.shared.connections,
            limit: MAX_WORKER_CONNECTIONS,
        };
        let Some(_permit) = Permit::take(pod, worker) else {
            self.telemetry.dns().refused(DnsRefusal::TooMany);
            return;
        };
        if let Err(error) = self.serve_queries(&mut stream, resolver, stop).await {
            tracing::debug!(%error, "a DNS connection ended with an error");
        }
    }

    async fn send(&self, socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
        let sent = self.context.send_reply(socket, reply, client).await;
        if let Err(error) = sent {
            tracing::debug!(%error, %client, "cannot send a DNS answer");
        }
    }

    /// Answers the queries of a connection.
    async fn serve_queries(
        &self,
        stream: &mut TcpStream,
        resolver: Option<SocketAddr>,
        stop: impl Future<Output = ()>,
    ) -> io::Result<()> {
        let timed_out = |_elapsed| io::Error::from(io::ErrorKind::TimedOut);
        let mut stop = pin!(stop);
        loop {
            let reading = tokio::time::timeout(IDLE_TIMEOUT, forward::read_frame(stream));
            let message = tokio::select! {
                // Data that has arrived is read first.
                biased;
                message = reading => message.map_err(timed_out)??,
                () = &mut stop => return Ok(()),
            };
            let decision = self.decide(&message, Transport::Stream, None);
            let reply = self.complete(decision, Transport::Stream, resolver).await;
            let Some(reply) = reply else {
                return Ok(());
            };
            let writing = tokio::time::timeout(IDLE_TIMEOUT, forward::write_frame(stream, &reply));
            writing.await.map_err(timed_out)??;
        }
    }

    /// Waits for the pod's workload or for the resolver if the decision requires it, and returns
    /// the reply, if there is one.
    async fn complete(
        &self,
        decision: Decision,
        transport: Transport,
        resolver: Option<SocketAddr>,
    ) -> Option<Vec<u8>> {
        let decision = match decision {
            Decision::WaitForWorkload(message) => {
                let waited = self.context.wait_for_workload().await;
                self.decide(&message, transport, Some(waited))
            }
            other => other,
        };
        match decision {
            Decision::Drop | Decision::WaitForWorkload(_) => None,
            Decision::Reply(reply) => Some(reply),
            Decision::Forward(query) => self.forward(&query, resolver).await,
        }
    }
}

#[cfg(test)]
mod tests;

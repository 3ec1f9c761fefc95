//! A small HTTP/1 server that bounds the number of connections, the size of a request's head, the
//! time to send it, and the life of a connection. Request bodies are not read.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, HOST, HeaderValue, ORIGIN};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

/// The most connections of one server. A further one closes the oldest: a client that holds idle
/// connections must not block the kubelet's readiness probe.
const CONNECTIONS: usize = 64;
const BACKLOG: i32 = 128;
const HEAD_BYTES: usize = 16 << 10;
const HEADERS: usize = 64;
/// The time limit for a request's head, also for the first one after a connection became idle.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest life of a connection; it ends clients that do not read their response.
const CONNECTION_LIFE: Duration = Duration::from_secs(600);
/// The time limit for responses in progress at shutdown.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(1);

/// The parts of a request that the pages use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageRequest {
    pub(super) method: Method,
    pub(super) path: String,
    pub(super) query: String,
    /// The `Host` header, if there is one.
    pub(super) host: Option<String>,
    /// The `Origin` header, which browsers send for other sites' pages.
    pub(super) origin: Option<String>,
    /// The `Sec-Fetch-Site` header: how the site of a browser's page is related to this one.
    pub(super) fetch_site: Option<String>,
    pub(super) client: SocketAddr,
    pub(super) server: SocketAddr,
}

impl PageRequest {
    fn new(request: &Request<Incoming>, client: SocketAddr, server: SocketAddr) -> Self {
        let header = |name: &str| {
            let value = request.headers().get(name)?;
            Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        Self {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            query: request.uri().query().unwrap_or_default().to_owned(),
            host: header(HOST.as_str()),
            origin: header(ORIGIN.as_str()),
            fetch_site: header("sec-fetch-site"),
            client,
            server,
        }
    }
}

/// The response of a page.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PageResponse {
    pub(super) status: StatusCode,
    pub(super) content_type: &'static str,
    pub(super) allow: Option<String>,
    pub(super) body: String,
}

impl PageResponse {
    pub(super) const fn text(status: StatusCode, body: String) -> Self {
        Self {
            status,
            content_type: "text/plain; charset=utf-8",
            allow: None,
            body,
        }
    }

    fn into_response(self) -> Response<Full<Bytes>> {
        let mut response = Response::new(Full::from(self.body));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if let Some(Ok(allow)) = self.allow.map(HeaderValue::try_from) {
            headers.insert(ALLOW, allow);
        }
        response
    }
}

/// A bound socket.
#[derive(Debug)]
pub(super) struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens on `address`. An unspecified IPv6 address includes IPv4, regardless of the system's
    /// default; without IPv6 in the kernel it is IPv4 alone.
    pub(super) fn bind(address: SocketAddr) -> std::io::Result<Self> {
        let listener = match socket(address) {
            Err(error) if address.is_ipv6() && address.ip().is_unspecified() => {
                const EAFNOSUPPORT: i32 = libc::EAFNOSUPPORT;
                match error.raw_os_error() {
                    Some(EAFNOSUPPORT) => {
                        socket((std::net::Ipv4Addr::UNSPECIFIED, address.port()).into())?
                    }
                    _ => return Err(error),
                }
            }
            other => other?,
        };
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// The address, with the port that the kernel chose for port 0.
    pub(super) const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown` is true or its sender was dropped.
    pub(super) async fn serve<A>(self, respond: Arc<A>, mut shutdown: watch::Receiver<bool>)
    where
        A: Fn(&PageRequest) -> PageResponse + Send + Sync + 'static,
    {
        let mut connections = JoinSet::new();
        let mut by_age = VecDeque::new();
        loop {
            let accepted = tokio::select! {
                accepted = self.listener.accept() => accepted,
                () = stopped(&mut shutdown) => break,
            };
            while connections.try_join_next().is_some() {}
            by_age.retain(|connection: &AbortHandle| !connection.is_finished());
            match accepted {
                Ok((stream, _client)) => {
                    if by_age.len() >= CONNECTIONS
                        && let Some(oldest) = by_age.pop_front()
                    {
                        oldest.abort();
                    }
                    let connection = connection(stream, respond.clone(), shutdown.clone());
                    by_age.push_back(connections.spawn(connection));
                }
                Err(error) => {
                    // Usually the process is out of file descriptors until others are closed.
                    tracing::warn!(%error, address = %self.address, "cannot accept a connection");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
        }
        drop(self.listener);
        let all = async { while connections.join_next().await.is_some() {} };
        // Dropping the set aborts the connections that are left.
        let _late = tokio::time::timeout(SHUTDOWN_TIMEOUT, all).await.is_err();
    }
}

/// Waits until shutdown is requested or its sender was dropped.
async fn stopped(shutdown: &mut watch::Receiver<bool>) {
    drop(shutdown.wait_for(|&stop| stop).await);
}

fn socket(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    if address.is_ipv6() {
        socket.set_only_v6(!address.ip().is_unspecified())?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

async fn connection<A>(stream: TcpStream, respond: Arc<A>, mut shutdown: watch::Receiver<bool>)
where
    A: Fn(&PageRequest) -> PageResponse + Send + Sync + 'static,
{
    let (Ok(client), Ok(server)) = (stream.peer_addr(), stream.local_addr()) else {
        // The client has reset the connection.
        return;
    };
    let service = service_fn(move |request: Request<Incoming>| {
        let request = PageRequest::new(&request, client, server);
        let response = respond(&request).into_response();
        async move { Ok::<_, Infallible>(response) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES)
        .max_headers(HEADERS)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(served);
    let expired = tokio::time::sleep(CONNECTION_LIFE);
    let result = tokio::select! {
        result = served.as_mut() => result,
        () = expired => return,
        () = stopped(&mut shutdown) => {
            served.as_mut().graceful_shutdown();
            served.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "an admin connection ended with an error");
    }
}

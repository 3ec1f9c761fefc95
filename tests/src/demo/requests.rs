//! The requests of the demo and their results.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::log::{self, Line};
use super::page::Page;
use super::tunnels::Tunnel;
use super::{MARKER, PORT, SERVICE_PORT, TIMEOUT};
use crate::net::{Family, FarEnd, Host, World, far_end};
use crate::proxy::Mesh;
use crate::traffic::{self, Answer, IoMode, Stream};

/// The number of times that a request is repeated; an odd number.
const LATER: usize = 5;

/// The path of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DataPath {
    /// Through both proxies.
    Tunnel,
    /// To a pod of the same node or a host outside the mesh: the proxy carries and authorizes the first
    /// connection of a kind, the kernel carries the others.
    FastPath,
}

/// A request to send.
pub(super) struct Request<'world> {
    client: &'world Host,
    /// The node of the client.
    node: &'world str,
    /// The destination in words.
    destination: String,
    to: SocketAddr,
    /// The address of the server that must receive it.
    backend: SocketAddr,
    data_path: DataPath,
}

/// Requests between nodes in both directions and inside a node, to pod and service addresses, and
/// requests to the host outside, all in both address families.
pub(super) fn requests(world: &World) -> Vec<Request<'_>> {
    let mut requests = Vec::new();
    for ((from, client), (to, server), data_path) in [
        (("a", 0), ("b", 0), DataPath::Tunnel),
        (("a", 0), ("a", 1), DataPath::FastPath),
        (("b", 0), ("a", 1), DataPath::Tunnel),
    ] {
        let (node, client, server) = (
            world.node(from).name(),
            world.pod(from, client),
            world.pod(to, server),
        );
        for family in Family::BOTH {
            let backend = server.at(family, PORT);
            for (kind, address) in [
                ("pod", backend),
                ("service", Mesh::service(server).at(family, SERVICE_PORT)),
            ] {
                requests.push(Request {
                    client,
                    node,
                    destination: format!("{kind} {}", server.name),
                    to: address,
                    backend,
                    data_path,
                });
            }
        }
    }
    for family in Family::BOTH {
        let to = world.outside().at(family, PORT);
        requests.push(Request {
            client: world.pod("a", 0),
            node: world.node("a").name(),
            destination: "outside".to_owned(),
            to,
            backend: to,
            data_path: DataPath::FastPath,
        });
    }
    requests
}

/// The result of a request.
pub(super) struct RequestResult<'world> {
    request: Request<'world>,
    answer: Answer,
    /// The other end of the first request's connection, from the kernel's socket table.
    first_end: Option<FarEnd>,
    /// That of the last request's connection.
    last_end: Option<FarEnd>,
    /// The line in the access log of the client's node.
    line: Option<Line>,
    first: Duration,
    /// The median of the requests after the first.
    later: Duration,
}

/// Sends a request several times, each on a new connection. The first one may have to open a tunnel.
pub(super) fn send<'world>(
    request: Request<'world>,
    mesh: &mut Mesh<'_>,
) -> Result<RequestResult<'world>> {
    let send = || {
        request
            .client
            .enter(|| send_once(request.to))
            .with_context(|| {
                format!(
                    "sending a request from {} to {} at {}",
                    request.client.name, request.destination, request.to
                )
            })
    };
    let (first, first_end) = send()?;
    let mut later = Vec::new();
    for _ in 1..LATER {
        later.push(send()?.0.latency);
    }
    let (answer, last_end) = send()?;
    later.push(answer.latency);
    later.sort_unstable();
    let client = answer.client_local.to_string();
    let line = log::access(mesh.proxy(request.node), |line| {
        line.has("src.addr", &client) && line.has("direction", "outbound")
    });
    Ok(RequestResult {
        request,
        answer,
        first_end,
        last_end,
        line,
        first: first.latency,
        later: later[later.len() / 2],
    })
}

fn send_once(to: SocketAddr) -> Result<(Answer, Option<FarEnd>)> {
    let started = Instant::now();
    let mut stream = Stream::connect(to, IoMode::Blocking, TIMEOUT)?;
    let mut answer = traffic::get_over(&mut stream, MARKER, TIMEOUT)?;
    answer.latency = started.elapsed();
    let end = far_end(&stream)?;
    Ok((answer, end))
}

/// Whether the other end of a connection is the proxy: its socket is in the client's pod.
fn is_proxy(end: Option<FarEnd>) -> bool {
    end == Some(FarEnd::SameNamespace)
}

impl RequestResult<'_> {
    /// The address of the client and the end of the tunnel, if a tunnel carried the request.
    pub(super) fn tunnel(&self) -> Option<(IpAddr, SocketAddr)> {
        let line = self.line.as_ref()?;
        line.field("dst.hbone_addr")?;
        let end = line.field("dst.addr")?.parse().ok()?;
        Some((self.answer.client_local.ip(), end))
    }

    fn data_path(&self) -> Option<DataPath> {
        self.line.as_ref()?;
        Some(match self.tunnel() {
            Some(_) => DataPath::Tunnel,
            None => DataPath::FastPath,
        })
    }

    /// Whether the later connections took the expected path.
    fn on_path(&self) -> bool {
        match self.request.data_path {
            DataPath::Tunnel => is_proxy(self.last_end),
            DataPath::FastPath => self.is_backend(self.last_end),
        }
    }

    fn is_backend(&self, end: Option<FarEnd>) -> bool {
        end == Some(FarEnd::Elsewhere(self.request.backend))
    }

    fn transparent(&self) -> bool {
        let family = match self.request.to {
            SocketAddr::V4(_) => Family::V4,
            SocketAddr::V6(_) => Family::V6,
        };
        self.answer.client_peer == self.request.to
            && self.answer.client_local.ip() == self.request.client.address(family)
    }

    fn row(&self, tunnels: &[Tunnel]) -> Vec<String> {
        let hook = match self.request.to {
            SocketAddr::V4(_) => "connect4",
            SocketAddr::V6(_) => "connect6",
        };
        let leads_to = |end| match end {
            Some(_) if is_proxy(end) => format!("{hook} -> proxy"),
            Some(_) if self.is_backend(end) => "server".to_owned(),
            _ => "unknown".to_owned(),
        };
        let data_path = match (self.data_path(), self.tunnel()) {
            (None, _) => "unknown".to_owned(),
            (Some(_), None) => "fast path".to_owned(),
            (Some(_), Some(key)) => tunnels
                .iter()
                .find(|tunnel| tunnel.key() == key)
                .map_or_else(
                    || "tunnel ?".to_owned(),
                    |tunnel| format!("tunnel {}", tunnel.name),
                ),
        };
        vec![
            format!(
                "{} -> {}",
                self.request.client.name, self.request.destination
            ),
            self.request.to.to_string(),
            leads_to(self.first_end),
            leads_to(self.last_end),
            data_path,
            self.answer.peer.ip().to_string(),
            milliseconds(self.first),
            milliseconds(self.later),
        ]
    }
}

/// Prints the results as a table.
pub(super) fn show(page: &Page, results: &[RequestResult<'_>], tunnels: &[Tunnel]) {
    let headings = [
        "request",
        "address dialled",
        "first leads to",
        "later lead to",
        "path",
        "source address",
        "first",
        "later",
    ];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(results.iter().map(|result| result.row(tunnels)));
    page.table(&rows);
    page.text(&format!(
        "latency: of the first request, and the median of {LATER} later ones, each on a new connection"
    ));
}

/// Checks the claims about all requests.
pub(super) fn check(page: &mut Page, results: &[RequestResult<'_>]) {
    let all = |holds: fn(&RequestResult<'_>) -> bool| results.iter().all(holds);
    page.claim(
        all(|result| result.answer.status == 200 && result.answer.marker == MARKER),
        "every request was answered with status 200 and its marker",
    );
    page.claim(
        all(|result| is_proxy(result.first_end)),
        "eBPF captured the first connection of each kind: its other end is the proxy's socket in the pod",
    );
    page.claim(
        all(|result| result.on_path()),
        "later connections to another node are captured, too; inside a node or to the outside, they lead to the server",
    );
    page.claim(
        all(|result| result.transparent()),
        "applications see their own address (getsockname) and the address that they dialled (getpeername)",
    );
    page.claim(
        all(|result| result.answer.peer.ip() == result.answer.client_local.ip()),
        "every server saw the client pod's own address as the source",
    );
    page.claim(
        all(|result| result.answer.local == result.request.backend),
        "every request arrived at the right backend: service port 80 maps to a pod's port 8080",
    );
    page.claim(
        all(|result| result.data_path() == Some(result.request.data_path)),
        "the access log contains all of them, including those that no proxy carried",
    );
}

/// A duration in milliseconds with one decimal.
pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}

//! The requests of the demonstration, and what became of each.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use super::log::{self, Line};
use super::page::Page;
use super::tunnels::Tunnel;
use super::{MARKER, PATIENCE, PORT, SERVICE_PORT};
use crate::net::{Family, Host, World, remote_end};
use crate::proxy::Mesh;
use crate::traffic::{self, Answer, End, Manner};

/// Where the kernel programs redirect captured connections to, on the pod's loopback.
const OUTBOUND: u16 = 15001;

/// How many times a request is made after the first, an odd number.
const LATER: usize = 5;

/// How a connection travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    /// Through both proxies.
    Tunnel,
    /// To a pod of the same node or to a host outside the mesh: the first of its kind through the
    /// proxy, which judges it, the others by themselves.
    Direct,
}

/// A request to make.
pub(super) struct Request<'world> {
    client: &'world Host,
    /// The node of the client.
    node: &'world str,
    /// Whom it calls, in words.
    called: String,
    to: SocketAddr,
    /// Where it must arrive.
    arrives: SocketAddr,
    lane: Lane,
}

/// Requests across nodes in both directions and within a node, by pod address and by service
/// address, in both families; and requests that leave the mesh.
pub(super) fn requests(world: &World) -> Vec<Request<'_>> {
    let mut requests = Vec::new();
    for ((from, client), (to, server), lane) in [
        (("a", 0), ("b", 0), Lane::Tunnel),
        (("a", 0), ("a", 1), Lane::Direct),
        (("b", 0), ("a", 1), Lane::Tunnel),
    ] {
        let (node, client, server) = (
            world.node(from).name(),
            world.pod(from, client),
            world.pod(to, server),
        );
        for family in Family::BOTH {
            let arrives = server.at(family, PORT);
            for (kind, address) in [
                ("pod", arrives),
                ("service", Mesh::service(server).at(family, SERVICE_PORT)),
            ] {
                requests.push(Request {
                    client,
                    node,
                    called: format!("{kind} {}", server.name),
                    to: address,
                    arrives,
                    lane,
                });
            }
        }
    }
    for family in Family::BOTH {
        let to = world.outside().at(family, PORT);
        requests.push(Request {
            client: world.pod("a", 0),
            node: world.node("a").name(),
            called: "outside".to_owned(),
            to,
            arrives: to,
            lane: Lane::Direct,
        });
    }
    requests
}

/// What became of a request.
pub(super) struct Story<'world> {
    request: Request<'world>,
    answer: Answer,
    /// The other end of the first request's socket, as the client's kernel knows it.
    judged: Option<SocketAddr>,
    /// The other end of the last request's socket.
    led_to: Option<SocketAddr>,
    /// The access log's line of the client's node.
    line: Option<Line>,
    first: Duration,
    /// The median of the requests after the first.
    later: Duration,
}

/// Makes a request several times, each time on a connection of its own: the first may have to
/// open a tunnel, the others show what a connection costs from then on.
pub(super) fn tell<'world>(request: Request<'world>, mesh: &mut Mesh<'_>) -> Result<Story<'world>> {
    let ask = || {
        request.client.enter(|| ask(request.to)).with_context(|| {
            format!(
                "{} called {} at {}",
                request.client.name, request.called, request.to
            )
        })
    };
    let (first, judged) = ask()?;
    let mut later = Vec::new();
    for _ in 1..LATER {
        later.push(ask()?.0.latency);
    }
    let (answer, led_to) = ask()?;
    later.push(answer.latency);
    later.sort_unstable();
    let client = answer.client_local.to_string();
    let line = log::access(mesh.proxy(request.node), |line| {
        line.says("src.addr", &client) && line.says("direction", "outbound")
    });
    Ok(Story {
        request,
        answer,
        judged,
        led_to,
        line,
        first: first.latency,
        later: later[later.len() / 2],
    })
}

fn ask(to: SocketAddr) -> Result<(Answer, Option<SocketAddr>)> {
    let started = Instant::now();
    let mut stream = End::connect(to, Manner::Blocking, PATIENCE)?;
    let mut answer = traffic::get_over(&mut stream, MARKER, PATIENCE)?;
    answer.latency = started.elapsed();
    let redirected = remote_end(&stream)?;
    Ok((answer, redirected))
}

/// Whether a socket leads to the proxy.
fn is_proxy(end: Option<SocketAddr>) -> bool {
    end.is_some_and(|end| end.ip().is_loopback() && end.port() == OUTBOUND)
}

impl Story<'_> {
    /// The tunnel that carried it: who called from where, and where the tunnel ends.
    pub(super) fn tunnel(&self) -> Option<(IpAddr, SocketAddr)> {
        let line = self.line.as_ref()?;
        line.field("dst.hbone_addr")?;
        let end = line.field("dst.addr")?.parse().ok()?;
        Some((self.answer.client_local.ip(), end))
    }

    fn lane(&self) -> Option<Lane> {
        self.line.as_ref()?;
        Some(match self.tunnel() {
            Some(_) => Lane::Tunnel,
            None => Lane::Direct,
        })
    }

    /// Whether the later ones went where they had to: to the proxy, or past it.
    fn on_lane(&self) -> bool {
        match self.request.lane {
            Lane::Tunnel => is_proxy(self.led_to),
            Lane::Direct => self.led_to == Some(self.request.arrives),
        }
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
        let led = |end| match end {
            Some(_) if is_proxy(end) => format!("{hook} -> {OUTBOUND}"),
            Some(_) if end == Some(self.request.arrives) => "to the server".to_owned(),
            _ => "unknown".to_owned(),
        };
        let lane = match (self.lane(), self.tunnel()) {
            (None, _) => "unknown".to_owned(),
            (Some(_), None) => "direct".to_owned(),
            (Some(_), Some(key)) => tunnels
                .iter()
                .find(|tunnel| tunnel.key() == key)
                .map_or_else(
                    || "tunnel ?".to_owned(),
                    |tunnel| format!("tunnel {}", tunnel.name),
                ),
        };
        vec![
            format!("{} -> {}", self.request.client.name, self.request.called),
            self.request.to.to_string(),
            led(self.judged),
            led(self.led_to),
            lane,
            self.answer.peer.ip().to_string(),
            milliseconds(self.first),
            milliseconds(self.later),
        ]
    }
}

/// All stories as a table.
pub(super) fn show(page: &Page, stories: &[Story<'_>], tunnels: &[Tunnel]) {
    let headings = [
        "request",
        "address dialled",
        "first socket leads",
        "later ones",
        "lane",
        "server saw",
        "first",
        "later",
    ];
    let mut rows = vec![headings.map(str::to_owned).to_vec()];
    rows.extend(stories.iter().map(|story| story.row(tunnels)));
    page.table(&rows);
    page.text(&format!(
        "latency: of the first such request, and the median of {LATER} more, each on a new connection"
    ));
}

/// What must be so for every request.
pub(super) fn check(page: &mut Page, stories: &[Story<'_>]) {
    let all = |holds: fn(&Story<'_>) -> bool| stories.iter().all(holds);
    page.claim(
        all(|story| story.answer.status == 200 && story.answer.marker == MARKER),
        "every request was answered with status 200, and its marker came back",
    );
    page.claim(
        all(|story| is_proxy(story.judged)),
        "eBPF captured the first of each: its socket leads to the proxy's port 15001",
    );
    page.claim(
        all(|story| story.on_lane()),
        "later ones to another node are captured too; on one node, or leaving the mesh, they lead straight to the server",
    );
    page.claim(
        all(|story| story.transparent()),
        "the application notices nothing: getpeername is what it dialled, getsockname its own",
    );
    page.claim(
        all(|story| story.answer.peer.ip() == story.answer.client_local.ip()),
        "every server saw the calling pod's own address as the source",
    );
    page.claim(
        all(|story| story.answer.local == story.request.arrives),
        "every request arrived where it should: service port 80 at a pod's port 8080",
    );
    page.claim(
        all(|story| story.lane() == Some(story.request.lane)),
        "the access log has all of them, those that no proxy carried included",
    );
}

/// A duration as people read it.
pub(super) fn milliseconds(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1e3)
}
